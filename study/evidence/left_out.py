"""The arms that were asked for and cannot be had, with the reason."""

from __future__ import annotations

from typing import Any

from network_surgery.study import arms
from network_surgery.study.store.folder import Folder


def left_out(folder: Folder) -> list[dict[str, Any]]:
    """An entry for each schedule, arm and reason: ``trial``, ``arm``, ``reason`` (one sentence) and its ``seeds``."""
    ended = [record for record in folder.records("original", "surgery") if not record.failed]
    originals = {record.cell.seed: record.result for record in ended if record.cell.arm == "original"}
    found: dict[tuple[int | None, str, str], list[int]] = {}
    for record in ended:
        if record.cell.arm == "surgery":
            cell, original = record.cell, originals.get(record.cell.seed)
            for arm, reason in arms.left_out(cell, record.result, folder.settings, original).items():
                found.setdefault((cell.trial, arm, reason), []).append(cell.seed)
    return [
        {"trial": trial, "arm": arm, "reason": reason, "seeds": seeds} for (trial, arm, reason), seeds in found.items()
    ]
