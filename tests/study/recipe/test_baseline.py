"""The preset ``cifar`` and its program for a card, which needs neither Ray nor MLflow nor Optuna."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from network_surgery.study.compose import compose

ROOT = Path(__file__).parents[3]
PROGRAM = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "optuna"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
runpy.run_module("tests.gpu", run_name="__main__", alter_sys=True)
"""


def test_the_preset_is_a_modern_recipe() -> None:
    settings = compose("cifar", None, {})
    assert (settings.model, settings.epochs, settings.lr_schedule) == ("resnet18", 30, "one_cycle")
    assert (settings.augment, settings.precision, settings.channels_last) == ("crop_flip", "bf16", True)


def test_the_program_for_a_card_runs_without_ray_mlflow_and_optuna(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for part, count in (("train", 18), ("test", 3)):  # two whole batches: BatchNorm over two images explodes
        for name in ("light", "dark"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 128, (8, 8, 3), dtype=np.uint8) + (100 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    options = ["--device", "cpu", "--small", "--steps", "baseline", "--minutes", "5", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", PROGRAM, *options, "--data", f"folder:{tmp_path / 'images'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step = json.loads((tmp_path / "out" / "gpu.json").read_text())["baseline"]
    assert "problem" not in step, step
    rows = {row["run"]: row for row in step["rows"]}
    original, restart, surgery = (rows[name] for name in ("original", "restart", "surgery"))
    assert original["seconds / original"] == 1 and restart["parameters"] == surgery["parameters"]
    assert restart["parameters"] < original["parameters"] / 3 and surgery["operating"] > 0
