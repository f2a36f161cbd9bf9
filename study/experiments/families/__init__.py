"""Which way to make a network smaller at equal stored bytes? Chen et al. 2015, Denil et al. 2013, Han et al. 2015."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.families import measure, page

QUESTION = "Which network is best at equal stored bytes?"
EXPERIMENT = Experiment("families", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
