"""Which units should go, and what should stay of them? Evci 2018, *Detecting dead weights and units*, chapter 4."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.units import measure, page

QUESTION = "Which units go, and what stays of them?"
EXPERIMENT = Experiment("units", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
