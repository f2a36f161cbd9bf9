"""Passwords of addresses: taken out of them, kept apart, and never shown.

Settings hold an address without its password, so nothing that is made of settings can show it. The password is known to
this process, comes from the environment, or lies in a file of the study's folder that its owner alone may read.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from network_surgery.study.errors import StudyError

#: The environment variable that holds the password of ``tracking_uri``, and the file that may hold it.
TRACKING, FILE = "NETWORK_SURGERY_TRACKING_PASSWORD", "tracking-password"
#: Address without its password → the password, of those that this process was given.
_known: dict[str, str] = {}


def take_password(name: str, uri: str) -> str:
    """An address without its password, which this process remembers. ``name``: what it is, for errors.

    >>> take_password("tracking_uri", "https://ada:secret@host/x"), hide("secret is wrong")
    ('https://ada@host/x', '*** is wrong')

    Raises:
        StudyError: the password is among the parameters after the question mark.
    """
    try:
        parts = urlsplit(uri)
        password, among = parts.password, {*parse_qs(parts.query)} & {"password", "passwd", "pass", "token"}
    except ValueError:  # no address at all, which the one who opens it says
        return uri
    if among:
        raise StudyError(
            f"{name} has a {min(among)} after its question mark; write it as USER:PASSWORD@HOST, or put it into the "
            f"environment variable {TRACKING}"
        )
    if password is None:
        return uri
    user, host = parts.netloc.rpartition("@")[::2]
    bare = urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{host}"))
    _known[bare] = unquote(password)
    return bare


def whole(uri: str, folder: Path) -> str:
    """The address with its password, if there is one: of the environment, else of this process, else of the file."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # no address at all, which the one who opens it says
        return uri
    if not (parts.hostname and parts.username) or parts.password is not None:
        return uri
    password = os.environ.get(TRACKING) or _known.get(uri) or _read_kept(folder)
    if not password:
        return uri
    _known[uri] = password
    user, host = parts.netloc.rpartition("@")[::2]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def keep(uri: str | None, folder: Path) -> None:
    """Writes the password that this process was given with an address, for when the study goes on; mode 600."""
    if uri is None or uri not in _known or os.environ.get(TRACKING):
        return
    path = folder / FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_known[uri])


def hide(text: str) -> str:
    """A text, such as what an error says, without the passwords that this process knows."""
    for password in _known.values():
        for form in {password, quote(password, safe="")} - {""}:
            text = text.replace(form, "***")
    return text


def _read_kept(folder: Path) -> str | None:
    try:
        return (folder / FILE).read_text()
    except OSError:
        return None
