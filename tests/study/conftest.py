"""Reports that tests make in their own process hold blank pictures, but in files that are marked ``pictures``."""

import base64
from collections.abc import Iterator

import pytest

from network_surgery.study.evidence.drawing import Drawing

#: Files of one pixel, and of nothing.
BLANK = {
    "png": base64.b64decode(
        b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
    ),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.fixture(autouse=True, scope="module")
def blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are made, which finds what is wrong with them; to draw those of one report takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("pictures") is None:
            patch.setattr(Drawing, "image", lambda self, kind: BLANK[kind])
        yield
