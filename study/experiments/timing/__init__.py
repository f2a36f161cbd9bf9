"""How long does an operation interrupt training? Every operation, measured and predicted, against an epoch."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.timing import measure, page

QUESTION = "How long does an operation interrupt training, compared with an epoch?"
EXPERIMENT = Experiment("timing", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
