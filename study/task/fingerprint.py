"""What the data of a study are, so that whoever resumes it elsewhere or later trains on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

Parts = Iterable[bytes]


@dataclass(frozen=True)
class Fingerprint:
    """``name``: as people call the data; ``bytes``: of all sets; ``digest``: the first 16 digits of a SHA-256."""

    name: str
    bytes: int
    digest: str

    @classmethod
    def of(cls, name: str, size: int, parts: Parts) -> Self:
        """Of data whose ``parts`` say what they are: their content, or names and sizes of files."""
        words = hashlib.sha256()
        for part in parts:
            words.update(len(part).to_bytes(8, "little") + part)
        return cls(name, size, words.hexdigest()[:16])

    def __str__(self) -> str:
        return f"{self.name} ({self.bytes:,} bytes, fingerprint {self.digest})"

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)
