"""Tests, benchmarks and sweeps use the checkout that they lie in, whatever is installed."""

import os
import sys
from pathlib import Path
from types import ModuleType

package = sys.modules.setdefault("network_surgery", ModuleType("network_surgery"))
package.__path__ = [str(Path(__file__).parents[1])]
# Ray gives way to whatever else runs, by default; here that is other tests, and it would wait for all of them.
os.environ.setdefault("RAY_worker_niceness", "0")
