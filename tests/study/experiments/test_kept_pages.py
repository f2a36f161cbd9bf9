"""Every page that lies beside kept rows is the one that they make now."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from network_surgery.study.bench.experiment import EXPERIMENTS, load, run
from network_surgery.study.bench.page import NOTES, PAGE
from network_surgery.study.bench.rows import FILE

pytestmark = pytest.mark.pictures

KEPT = [name for name in EXPERIMENTS if (load(name).folder / FILE).exists()]
#: Numbers, but for those inside words (such as digests).
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_page_is_made_of_its_rows(name: str, tmp_path: Path) -> None:
    kept = load(name).folder
    if (kept / NOTES).exists():  # they lie beside the page
        shutil.copy(kept / NOTES, tmp_path)
    written = run(name, {}, 1, tmp_path, kept).read_text(encoding="utf-8")
    page = (kept / PAGE).read_text(encoding="utf-8")
    assert NUMBER.sub("#", written) == NUMBER.sub("#", page)
    ours, theirs = ([float(each.replace(",", "")) for each in NUMBER.findall(text)] for text in (written, page))
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)  # a last digit may be rounded the other way
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(path.name for path in kept.glob("*.png"))
    for image in re.findall(r"\((\w+\.png)\)", page):
        assert (kept / image).exists()
