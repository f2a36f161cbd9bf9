"""When is a high δ the better choice for EigenRemove? Graham 2019 has two heuristics, in 4.2.1 and in 4.2.3."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment, Options
from network_surgery.study.experiments.heuristics import measure, page

QUESTION = "When is a high δ the better choice for EigenRemove?"
EXPERIMENT = Experiment("heuristics", Path(__file__).parent, QUESTION, Options(), measure.measure, page.parts)
