"""What is a repair worth, right after an operation and later? Evci 2018 (bias), Rolet 2022 (least squares)."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.repairs import measure, page

QUESTION = "What is a repair worth?"
EXPERIMENT = Experiment("repairs", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
