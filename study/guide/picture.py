"""The README's picture: one schedule against its rivals, in studies that differ in the number of epochs.

Both have ``lr_schedule: one_cycle`` and ``arms: [default, restart_fair, prune_end_rewind_lr]``.

surgery study --config short.yaml --seeds 10 --out short     the first schedule of my.yaml (schedules.md), 12 epochs
surgery study --config long.yaml --seeds 10 --out long       the same in 36 epochs: at 12ep and 24ep
python -m network_surgery.study.guide.picture short long
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style

from network_surgery.study.evidence.drawing import COLOURS, GREY, MARKERS, STYLE, Drawing, Look, add_title, new_axes

#: Arm → what surgery is compared with, from top to bottom.
RIVALS = {
    "restart": "the same architecture,\nfrom scratch, same epochs",
    "restart_flops": "the same architecture,\nfrom scratch, same compute",
    "restart_fair": "the same architecture,\nfrom scratch, compute of the next",
    "prune_end_rewind_lr": "pruned at the end, trained on\nwith the rate rewound",
    "original": "no surgery,\nthe large network",
}


def draw(studies: Sequence[dict[str, Any]]) -> Drawing:
    """Surgery − rival in points of test accuracy with 95 % intervals, for each study (the content of results.json)."""
    figure, axes = new_axes(width=8.0, height=4.0)
    words = []
    for number, study in enumerate(studies):
        verdict = study["comparison"]["verdicts"][0]
        contrasts = {each["arm"]: each for each in (verdict, *verdict["others"])}
        epochs = study["settings"]["epochs"]
        look: Look = {"color": COLOURS[number], "marker": MARKERS[number]}
        for row, arm in enumerate(RIVALS):
            mean, interval = 100 * contrasts[arm]["difference"], [100 * end for end in contrasts[arm]["interval"]]
            at = row + 0.26 * (number - (len(studies) - 1) / 2)
            name = f"{epochs} epochs" if row == 0 else None
            axes.errorbar(mean, at, xerr=[[mean - interval[0]], [interval[1] - mean]], capsize=4, label=name, **look)
            words.append(f"{arm} at {epochs} epochs {mean:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]")
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(RIVALS)), list(RIVALS.values()))
    axes.invert_yaxis()
    axes.set_xlabel("surgery − rival, points of test accuracy")
    axes.grid(False, axis="y")
    axes.legend(title="surgery trained for", loc="lower right")
    against = ", ".join(word.removeprefix("restart_flops at ") for word in words if word.startswith("restart_flops"))
    return add_title(
        figure, f"Surgery − restart at equal FLOPs, in points: {against}",
        "Right of zero surgery is better. Points are means over seeds, paired; bars are 95 % intervals (Student's t).",
        f"Dot chart of surgery minus each rival: {'; '.join(words)}.",
    )  # fmt: skip


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    with style.context(["default", STYLE]):
        drawing = draw([json.loads((folder / "results.json").read_text()) for folder in folders])
    drawing.save_small(Path(__file__).with_name("restart.png"))
    print(drawing.alt)
