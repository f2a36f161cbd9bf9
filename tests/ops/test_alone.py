"""Surgery needs torch, NumPy, SciPy and, for EigenRemove alone, tensorly; nothing of what the study needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import builtins

usual = builtins.__import__

def without(name, *others):
    if name.partition(".")[0] in {others}:
        raise ModuleNotFoundError(name)
    return usual(name, *others)

builtins.__import__ = without
import tests, torch
from network_surgery.ops import Anatomy, PCNS, Signals, operate

net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(64, 4)
operate(Anatomy(net, x[:2])["0"], PCNS(0.1), torch.optim.Adam(net.parameters()), signals=Signals(net, x))
print(net[0].out_features < 8)
"""
OTHERS = (
    "filelock", "jinja2", "matplotlib", "mlflow", "moocore", "optuna", "psutil", "pydantic", "ray",
    "rich", "sklearn", "tensorly", "torchvision", "typer", "yaml",
)  # fmt: skip


def test_surgery_needs_nothing_of_the_study() -> None:
    code = CODE.replace("{others}", repr(set(OTHERS)))
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
