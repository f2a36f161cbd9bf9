"""Tests, benchmarks and sweeps use the checkout that they lie in, whatever is installed."""

import sys
from pathlib import Path
from types import ModuleType

package = sys.modules.setdefault("network_surgery", ModuleType("network_surgery"))
package.__path__ = [str(Path(__file__).parents[1])]
