"""Can one unit be killed by too high a learning rate? Evci 2018, *Detecting dead weights and units*, chapter 3."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.attack import measure, page

QUESTION = "Can one unit be killed by too high a learning rate, and does it show?"
EXPERIMENT = Experiment("attack", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
