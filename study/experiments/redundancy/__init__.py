"""How redundant are classical networks? Principal components that their layers need, before and after some training."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.redundancy import measure, page

QUESTION = "How redundant are classical networks, before and after some training?"
EXPERIMENT = Experiment("redundancy", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
