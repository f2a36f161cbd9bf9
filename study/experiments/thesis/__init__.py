"""Is the thesis's application study right? Graham 2019, *Applied HOSVD*, chapter 4, and its published code.

It is a study like any other: the presets here name its search space (``space``) and its page (``page``), and the space
names the operations of the published code (``operations``). As an experiment it measures the same grid of runs without
search, report or MLflow, and keeps their rows.
"""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.thesis import measure, page

QUESTION = "Is the thesis's application study right?"
EXPERIMENT = Experiment("thesis", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.of_rows)
