"""The README's picture says what is in the studies that it is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from network_surgery.study.guide.picture import RIVALS, draw

pytestmark = pytest.mark.pictures


def study(epochs: int, restart: float) -> dict[str, Any]:
    """What the picture reads of a study's results.json."""
    means = dict.fromkeys(RIVALS, 0.0) | {"restart_flops": restart}
    contrasts = [{"arm": arm, "difference": d, "interval": [d - 0.01, d + 0.01]} for arm, d in means.items()]
    return {"settings": {"epochs": epochs}, "comparison": {"verdicts": [contrasts[0] | {"others": contrasts[1:]}]}}


def test_every_rival_of_every_study_is_drawn(tmp_path: Path) -> None:
    drawing = draw([study(12, 0.02), study(36, -0.005)])
    (axes,) = drawing.figure.axes
    assert len(axes.containers) == 2 * len(RIVALS)
    assert drawing.title.startswith("Surgery − restart at equal FLOPs, in points: 12 epochs +2.00 [+1.00, +3.00], ")
    assert drawing.title.endswith("36 epochs -0.50 [-1.50, +0.50]")
    assert "original at 36 epochs +0.00" in drawing.alt
    drawing.save_small(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000
