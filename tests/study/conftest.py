"""Reports that a test makes in its own process hold blank pictures, unless it is marked ``pictures``."""

import base64

import pytest

from network_surgery.study.evidence.drawing import Drawing

#: Files of one pixel, and of nothing.
BLANK = {
    "png": base64.b64decode(
        b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
    ),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.fixture(autouse=True)
def blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, which finds what is wrong with them; to draw those of one report takes seconds."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(Drawing, "image", lambda self, kind: BLANK[kind])
