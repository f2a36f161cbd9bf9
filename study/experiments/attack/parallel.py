"""The trainings of several seeds at once, in processes of one thread each; what is found is kept as it comes."""

from __future__ import annotations

import json
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np

from network_surgery.study.data import Dataset
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.attack.arms import Found, Network, Runs, Setting
from network_surgery.study.experiments.processes import processes


def measure(data: Dataset, seeds: int, workers: int, kept: Path | None = None, setting: Setting | None = None) -> Found:
    """Every network with every seed, by so many processes; the numbers do not depend on how many.

    ``kept``: a folder where each part is written as it is found, and from which it is read if it is there. Raises
    StudyError for a folder that holds parts of other data or another setting.
    """
    setting = setting or Setting()
    about = repr([setting, data.shape, len(data.train), len(data.validation)])
    parts: dict[tuple[str, int], Found] = {}
    with processes(workers) as pool:
        waiting = {}
        for seed in range(seeds):
            for network in setting.networks:
                where = (network.activation, seed)
                if kept is not None and path(kept, *where).exists():
                    parts[where] = read(path(kept, *where), about)
                else:
                    waiting[pool.submit(of_seed, data, network, seed, setting)] = where
        for done in as_completed(waiting):
            where = waiting[done]
            parts[where] = done.result()
            if kept is not None:
                write(path(kept, *where), about, parts[where])
    order = [(network.activation, seed) for network in setting.networks for seed in range(seeds)]
    return {key: record for where in order for key, record in parts[where].items()}


def of_seed(data: Dataset, network: Network, seed: int, setting: Setting) -> Found:
    return Runs(data, network, seed, setting).measure()


def path(kept: Path, activation: str, seed: int) -> Path:
    """The file of one network and seed."""
    return kept / f"{''.join(letter if letter.isalnum() else '_' for letter in activation)}-{seed}.npz"


def write(file: Path, about: str, found: Found) -> None:
    """A record's arrays under their key and name."""
    arrays = {json.dumps([*key, name]): array for key, record in found.items() for name, array in record.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, about=np.array(about), **arrays)  # type: ignore[arg-type]


def read(file: Path, about: str) -> Found:
    """The inverse of ``write``. Raises StudyError if the file is about something else."""
    found: Found = {}
    with np.load(file) as arrays:
        if str(arrays["about"]) != about:
            raise StudyError(f"{file} holds what other data or another setting gave; give another folder")
        for text in arrays.files:
            if text != "about":
                activation, seed, layer, attack, name = json.loads(text)
                found.setdefault((activation, seed, layer, attack), {})[name] = arrays[text]
    return found
