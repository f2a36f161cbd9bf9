"""A study as somebody browses it: ``surgery ui`` in a browser, with the run table, charts, figures and tables found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from network_surgery.study.search.tracking import EXPERIMENT, default_uri
from network_surgery.study.store.folder import Folder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.timeout(900),
]
#: Milliseconds that a page may take, on a machine that does other things, too.
PATIENCE = 120_000
SETTINGS = """
model: mlp
epochs: 2
seeds: 1
arms: [original, surgery, restart]
device: cpu
schedules:
  - - {when: 1ep, layer: fc1, op: min_weight, keep: 0.5}
    - {when: 1ep, layer: fc2, op: random_remove}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Three training runs of two epochs."""
    place = tmp_path_factory.mktemp("browser")
    (place / "my.yaml").write_text(SETTINGS)
    command = [
        sys.executable,
        "-m",
        "network_surgery.study",
        "study",
        "--config",
        str(place / "my.yaml"),
        "--out",
        str(place / "tiny"),
    ]
    environment = os.environ | {"RAY_memory_monitor_refresh_ms": "0"}
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return Folder.open(place / "tiny")


@pytest.fixture(scope="module")
def address(study: Folder) -> Iterator[str]:
    """The page that ``surgery ui`` says it shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "network_surgery.study", "ui", str(study.path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        found = None
        for line in server.stdout:
            found = found or re.search(r"http://127\.0\.0\.1:\d+/#\S+", line)
            if "startup complete" in line:
                break
        assert found is not None and server.poll() is None
        wait_for(port)
        yield found[0]
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
            process.send_signal(signal.SIGKILL)
        server.wait()


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing answers at port {port}")


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def parent(study: Folder) -> str:
    """Where MLflow shows the study's own run, after the server's address."""
    import mlflow

    client = mlflow.MlflowClient(default_uri(study))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`network_surgery.study` = '{study.identity}'")
    return f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"


def test_the_table_of_runs(page: Any, address: str) -> None:
    """A row for each arm and schedule, and the columns of a comparison; trials of a search are not among them."""
    page.goto(address)
    for name in ("original", "surgery", "restart", "min_weight to ½ of fc1"):
        page.get_by_text(name).first.wait_for()
    for column in ("accuracy/test", "size/parameters"):
        page.get_by_role("columnheader").filter(has_text=column).first.wait_for()
    page.get_by_text("Means by arm").first.wait_for()


def test_a_chart(page: Any, address: str) -> None:
    page.goto("about:blank")  # another address after the # alone would not load the page
    page.goto(f"{address}&compareRunsMode=CHART")
    charts = "experiment-view-compare-runs"
    page.get_by_test_id(f"{charts}-section-header").first.wait_for()
    sections = " ".join(page.get_by_test_id(f"{charts}-section-header").all_inner_texts())
    for group in ("accuracy", "loss", "operation loss", "operation size", "seconds", "size"):
        assert re.search(rf"\b{group}\s+\(\d+\)", sections)
    card = page.get_by_test_id(f"{charts}-card").filter(has=page.locator("h4[title='accuracy/validation']"))
    card.locator(".scatterlayer .trace").first.wait_for(state="attached")
    assert card.locator(".scatterlayer .trace").count() >= 3  # one for each training run


def test_a_figure(page: Any, address: str, study: Folder) -> None:
    page.goto("about:blank")
    page.goto(address.partition("/#")[0] + parent(study) + "/artifacts/figures/arms.png")
    image = page.locator("img[src^='blob:'], img[src*='arms.png']").first
    image.wait_for()
    page.wait_for_function("picture => picture.naturalWidth > 300", arg=image.element_handle())


def test_the_table_of_all_trainings(page: Any, address: str, study: Folder) -> None:
    page.goto("about:blank")
    page.goto(address.partition("/#")[0] + parent(study) + "/artifacts/training_runs.json")
    for heading in ("training", "validation accuracy"):
        page.get_by_role("columnheader", name=heading).first.wait_for()
    for record in study.records():
        page.get_by_role("cell", name=record.cell.name).first.wait_for()
