"""The claims of the PCNS draft at equal seconds of training (Rolet 2022, *Principal Component Network Shrinking*)."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study.bench.experiment import Experiment
from network_surgery.study.experiments.pcns_claims import measure, page

QUESTION = "Do the claims of PCNS hold at equal seconds?"
EXPERIMENT = Experiment("pcns_claims", Path(__file__).parent, QUESTION, measure.Options(), measure.measure, page.parts)
