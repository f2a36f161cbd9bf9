"""What does a widened layer learn, by the shares of its copies, against starting over? Graham 2019, 4.2.2."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.widening import measure, page

QUESTION = "What does a widened layer learn?"
EXPERIMENT = Experiment("widening", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
