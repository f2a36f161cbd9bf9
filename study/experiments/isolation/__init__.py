"""What does an operation do to the output in the instant after it? Graham 2019's isolation study (4.1.1, 4.2.1)."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.isolation import measure, page

QUESTION = "What does an operation alone do to the output?"
EXPERIMENT = Experiment("isolation", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
