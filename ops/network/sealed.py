"""Files of tensors with a checksum, which torch reads like any of its own.

torch does not check what it reads: a flipped bit becomes another weight. What is written here ends with a digest of all
bytes before it, in the place that zip files keep for a comment. A file without one, as earlier versions wrote them, is
checked by the checksums that zip has of each of its parts, which leave a few bytes of its directory unchecked.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from network_surgery.ops.errors import first_line, pass_on_memory

MARK = b"blake2b:"
#: Bytes of a digest, which is written in hexadecimal.
SIZE = 16
SEAL = len(MARK) + 2 * SIZE
#: A zip file ends with a record of 22 bytes, and this record with the length of the comment that follows.
END, ENDS_WITH = 22, b"PK\x05\x06"


class Damaged(Exception):
    """A file that is not as it was written, or that was never written here; the message says what is wrong."""


def write(content: Any, file: IO[bytes]) -> None:
    """Writes tensors in plain containers (``torch.save``) with a checksum. It does not depend on the file's name.

    Raises:
        OSError: the file cannot be written, such as on a full disk.
    """
    sealing = _Sealing(file)
    try:
        torch.save(content, cast(IO[bytes], sealing))
    except RuntimeError as error:
        raise sealing.error or error from None  # of a full disk torch says where in its code it noticed
    sealing.close()


def read(path: str | Path | IO[bytes]) -> Any:
    """What ``write`` has written, or ``torch.save``, on the host; nothing in the file is executed.

    Raises:
        Damaged: a byte is not as it was written, or torch cannot read it.
        OSError: there is no such file, or it cannot be opened.
    """
    if isinstance(path, (str, Path)):
        with open(path, "rb") as file:
            return read(file)
    check(path)
    path.seek(0)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its words are those of torch's developers
        raise Damaged("it holds objects, not only tensors, and is not opened, since that could run code") from error
    except Exception as error:  # a file of somebody else's can fail in any way
        pass_on_memory(error)
        raise Damaged(first_line(error)) from error


def check(file: IO[bytes]) -> None:
    """Raises Damaged where a file's bytes are not those that were written."""
    length = file.seek(0, 2)
    if not length:
        raise Damaged("it is empty")
    file.seek(max(0, length - SEAL - 2))
    tail = file.read()
    if len(tail) == SEAL + 2 and tail[2 : 2 + len(MARK)] == MARK:
        if tail[:2] != SEAL.to_bytes(2, "little") or tail[2 + len(MARK) :] != _digest(file, length - SEAL - 2):
            raise Damaged("its checksum is not that of its content, so something has changed it")
        return
    if tail[-END:][: len(ENDS_WITH)] != ENDS_WITH or tail[-2:] != b"\0\0":
        raise Damaged("it is cut off, or no file of torch's")
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as parts:
            broken = parts.testzip()
    except Exception as error:  # a damaged directory can fail in any way
        pass_on_memory(error)
        raise Damaged(first_line(error)) from error
    if broken is not None:
        raise Damaged(f"the checksum of its part {broken} is not that of its content, so something has changed it")


def _digest(file: IO[bytes], length: int) -> bytes:
    """Of the first ``length`` bytes, in hexadecimal."""
    words = hashlib.blake2b(digest_size=SIZE)
    file.seek(0)
    while length > 0 and (part := file.read(min(length, 2**20))):
        words.update(part)
        length -= len(part)
    return words.hexdigest().encode()


class _Sealing:
    """A file to ``torch.save`` into: it holds back the last two bytes, the length of the comment, until it closes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._words, self._last = file, hashlib.blake2b(digest_size=SIZE), b""
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        part = content
        if len(content) >= 2:
            self._pass(self._last)
        else:
            part = self._last + bytes(content)
        self._pass(memoryview(part)[:-2])
        self._last = bytes(part[-2:])
        return len(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.write(SEAL.to_bytes(2, "little") + MARK + self._words.hexdigest().encode())

    def _pass(self, part: Any) -> None:
        self._words.update(part)
        try:
            self._file.write(part)
        except OSError as error:
            self.error = self.error or error
            raise
