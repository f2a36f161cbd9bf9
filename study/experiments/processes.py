"""Processes for trainings that run at once: one thread each, for more threads cost more than they save."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch


def processes(count: int) -> ProcessPoolExecutor:
    """A pool of so many, each started anew (a fork would inherit torch's threads)."""
    return ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,))
