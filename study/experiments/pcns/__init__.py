"""PCNS as its draft asks for it (Rolet 2022, *PCNS: Principal Component Network Shrinking*, sections 3 to 5)."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.pcns import measure, page

QUESTION = "What happens when PCNS shrinks a network?"
EXPERIMENT = Experiment("pcns", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
