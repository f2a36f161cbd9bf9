"""Which weights should go? Evci 2018, *Detecting dead weights and units*, chapter 2."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.weights import measure, page

QUESTION = "Which weights go?"
EXPERIMENT = Experiment("weights", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
