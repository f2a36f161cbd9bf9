"""What is it worth that the optimizer's state follows the units? Three ways through the same surgery, side by side."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment, Options
from network_surgery.study.experiments.optimizer_state import measure, page

QUESTION = "What is it worth that the optimizer's state follows the units?"
EXPERIMENT = Experiment(
    "optimizer_state", Path(__file__).parent, QUESTION, Options(seeds=10), measure.measure, page.parts
)
