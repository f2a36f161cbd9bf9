"""The results of a sweep as a page of markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.zoo.sweep import PROMISES

HEAD = """# Every layer of every model

Each layer that an anatomy offers is edited alone, in double precision, with random weights by which every part shows
in the output; then all layers at once. The promises of an edit:

- *duplicate*: a random subset of the units is doubled, at uneven shares.
- *permute*: the units are put in another order.
- *remove*: a random subset goes; compared with the network in which nobody reads it.
- *regrow*: the layer is grown and shrunk back.
- *meet*: the layer becomes as large as something else in the network is, once smaller and once larger.
- *double*, of layers that a norm over their units makes inexact: all units are doubled, which such a norm does not see.
- *run*, of the same layers: the network runs without some of the units.
- *train*: with every layer smaller at once, the network runs in training mode, too.
- *in training*: with every exact layer grown and every other one in another order at once, the network answers in
  training mode what it did.

*Kept* means a relative error below 1e-9, or below 1e-5 for transformers, which compute in single precision. Where
removal leaves a network that amplifies rounding, it means an error below ten times what the last digit of every weight
changes, and below 1e-4; where it amplifies rounding beyond that, the modules up to there are compared. *Faint* layers
change the output by less than one in a million even when all of their units are silenced: on them a check shows
nothing. Forward and discovery are medians, taken in turns with one thread, in single precision, on two samples at the
published image size: CPU seconds in rows from 2026-11-28 on, before that seconds of a clock.

Discovery is as quick as on 2026-11-21, though it does more where that is needed to be right: what cuts units into
pieces (`chunk`, heads, windows) is tried at half the size, too, since a number in the code may say how large a piece
is; and where code reads the mode, the network is followed in training mode, too. What evaluation mode has computed is
not computed again there. If training runs other operators (auxiliary classifiers, dropout by a function), edits are
tried in that mode as well. CPU seconds of one thread on two images of 224² (299² for Inception), least of five, in
turns with the discovery of 2026-11-21 in one process (2026-11-29, torch 2.14, Intel Xeon at 2.5 GHz, shared): vgg16_bn
0.91, vit_b_16 and shufflenet_v2_x1_0 0.94, alexnet and convnext_tiny 0.97, resnet50 1.00, resnet18 and regnet_y_400mf
1.01, efficientnet_b0 1.03, densenet121 1.07, mobilenet_v2 and inception_v3 1.08, googlenet 1.09; median 1.01. Only
swin_t takes longer, 1.24 to 1.31 in four runs: its blocks read the mode, so it is followed in both.
That is 0.3 to 2.3 s for a network. A ratio moved by up to 0.1 between runs. Of these, googlenet, inception_v3 and
swin_t were measured after one more change.

Written by `python -m tests.zoo`. {machines}

## All models
"""


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page: totals, a table for each family, failures, reasons."""
    swept = {name: r["sweep"] for name, r in results.items() if "problem" not in r.get("sweep", {"problem": ""})}
    total = Counter[str]()
    promises: Counter[str] = Counter()
    for found in swept.values():
        total.update({key: found[key] for key in ("exact", "inexact", "pinned")})
        total["faint"] += len(found["faint"])
        for promise, (kept, tried) in found["promises"].items():
            promises[f"{promise} kept"] += kept
            promises[f"{promise} tried"] += tried
    lines = [HEAD.format(machines=_machines(results))]
    lines += ["| models | exact layers | inexact | pinned | faint |", "|" + "---:|" * 5]
    lines.append(
        f"| {len(swept)} | " + " | ".join(f"{total[key]:,}" for key in ("exact", "inexact", "pinned", "faint")) + " |\n"
    )
    lines += ["| promise | kept | tried |", "|---|---:|---:|"]
    lines.extend(f"| {p} | {promises[f'{p} kept']:,} | {promises[f'{p} tried']:,} |" for p in PROMISES)
    lines.append("")
    for family in dict.fromkeys(result["family"] for result in results.values()):
        lines.append(f"## {family[0].upper() + family[1:]}\n")
        columns = ("model", "input", "parameters", "exact", "inexact", "pinned", *PROMISES, "worst kept error", "faint")
        lines.append(f"| {' | '.join(columns)} | sweep, s | forward, s | discovery, s | discovery / forward |")
        lines.append("|---|---|" + "---:|" * (10 + len(PROMISES)))
        lines.extend(_row(name, result) for name, result in results.items() if result["family"] == family)
        lines.append("")
    lines.append("## Failures\n")
    for name, found in swept.items():
        if found["failures"]:
            lines.append(f"- **{name}**: {len(found['failures'])}")
            lines.extend(f"  - {failure}" for failure in found["failures"])
    if lines[-1] == "## Failures\n":
        lines.append("None.")
    lines.append("\n## Why layers are pinned\n")
    reasons, models = Counter[str](), Counter[str]()
    for found in swept.values():
        mine = Counter[str]()
        for reason, number in found["reasons"].items():
            mine[_alike(reason)] += number
        reasons.update(mine)
        models.update(list(mine))
    lines += ["| reason | layers | models |", "|---|---:|---:|"]
    lines.extend(f"| {reason} | {number} | {models[reason]} |" for reason, number in reasons.most_common())
    return "\n".join(lines) + "\n"


def _machines(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the sweeps and the clock ran, and of how many models."""
    ran = Counter((part, where) for result in results.values() for part, where in result.get("machines", {}).items())
    return " ".join(f"{part.capitalize()} of {models} models: {where}." for (part, where), models in ran.items())


def _alike(reason: str) -> str:
    """A reason without its numbers, so that those which differ by a size are one."""
    return re.sub(r"\[[^]]*\]|\d+", "…", reason)


def _row(name: str, result: Mapping[str, Any]) -> str:
    found, clock = result.get("sweep", {}), result.get("clock", {})
    if "problem" in found or not found:
        cells = [name, result["size"], found.get("problem", "not yet"), *[""] * (9 + len(PROMISES))]
        return "| " + " | ".join(cells) + " |"
    cells = [name, result["size"], f"{found['parameters'] / 1e6:.1f} M"]
    cells += [str(found[key]) for key in ("exact", "inexact", "pinned")]
    for promise in PROMISES:
        kept, tried = found["promises"].get(promise, (0, 0))
        cells.append("" if not tried else f"{kept}" if kept == tried else f"**{kept} of {tried}**")
    cells += [f"{found['worst']:.0e}", str(len(found["faint"]) or ""), f"{found['seconds']['sweep']:.0f}"]
    if "forward" in clock:
        ratio = clock["discovery"] / clock["forward"]
        cells += [f"{clock['forward']:.2f}", f"{clock['discovery']:.2f}", f"{ratio:.1f}"]
    else:
        cells += [clock.get("problem", ""), "", ""]
    return "| " + " | ".join(cells) + " |"
