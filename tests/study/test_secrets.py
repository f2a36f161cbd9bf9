"""A password in an address is in no file but its own, and in nothing that is shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rich.console import Console

from network_surgery.study import secrets
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search import cluster
from network_surgery.study.search.tracking import default_uri
from network_surgery.study.store import copies
from network_surgery.study.store.folder import Folder

PASSWORDS = ("hunter2", "a b", "p%40ss", "100%", "ü:/?#[]@!", "'\"\\")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", {})
    monkeypatch.delenv(secrets.TRACKING, raising=False)


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("kind", ["https://ada:{}@host:5000/mlflow", "postgresql+psycopg2://ada:{}@[::1]/runs?a=b"])
def test_a_password_is_kept_apart(kind: str, password: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from urllib.parse import quote

    uri, bare = kind.format(quote(password, safe="")), kind.replace(":{}", "")
    study = Folder.make(tmp_path / "study", Settings(tracking_uri=uri), {"fc1": 8})
    assert study.settings.tracking_uri == bare and Settings(tracking_uri=bare).tracking_uri == bare
    kept = study.path / secrets.FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.read_text() == password
    Console().print(study.settings, study.settings.to_data())
    shown = capsys.readouterr().out + (study.path / "study.json").read_text()
    assert password not in shown and quote(password, safe="") not in shown
    assert secrets.hide(f"{uri}: {password} is wrong").count(password) == 0
    assert copies.LEFT_OUT.search(kept.name) and not copies.LEFT_OUT.search("study.json")
    secrets._known.clear()  # another process goes on with it
    assert default_uri(Folder.open(study.path)) == uri


def test_the_environment_s_password_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secrets.TRACKING, "of the environment")
    study = Folder.make(tmp_path / "study", Settings(tracking_uri="http://ada:given@host"), {"fc1": 8})
    assert default_uri(study) == "http://ada:of%20the%20environment@host"
    assert sorted(path.name for path in study.path.iterdir()) == [".study.json", "study.json"]
    assert secrets.hide("of the environment") == "***"


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite:////a/b@c:d.db", "http://ada@host", "databricks", "::", "http://[bad"]
)
def test_an_address_without_a_password_stays(uri: str, tmp_path: Path) -> None:
    assert secrets.take_password("tracking_uri", uri) == uri == secrets.whole(uri, tmp_path)


def test_a_password_among_the_parameters_is_refused_and_not_repeated() -> None:
    with pytest.raises(StudyError, match="tracking_uri has a password after its question mark") as refused:
        Settings(tracking_uri="postgresql://ada@host/runs?password=hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("writable", [True, False])
def test_a_ray_of_ours_has_a_token_where_nothing_can_be_written_at_home(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is unset again afterwards
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / ("home" if writable else "file")))
    cluster._have_token()
    assert (len(os.environ.get("RAY_AUTH_TOKEN", "")) == 64) is not writable
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    cluster._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
