"""The figure: accuracy compared with the unwidened network, and the effective rank of the widened layer."""

from __future__ import annotations

import numpy as np
from matplotlib import style

from network_surgery.study.evidence.drawing import BLACK, BLUE, GREY, STYLE, VERMILLION, Drawing, Look, new_axes
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments.widening.arms import CODE, Found

LOOKS: dict[str, Look] = {
    "unwidened": {"color": BLACK, "linestyle": ":"},
    "equal": {"color": BLUE, "linestyle": "-"},
    "uneven": {"color": VERMILLION, "linestyle": "-"},
    "signed": {"color": "#009E73", "linestyle": "-"},
    CODE: {"color": "#CC79A7", "linestyle": "-."},
    "zero": {"color": "#E69F00", "linestyle": (0, (1, 2)), "linewidth": 2.6},
    "restart": {"color": GREY, "linestyle": "--"},
}


def draw(found: Found) -> Drawing:
    """Accuracy compared with the unwidened network above, effective rank of the fan-in below; a column a setting."""
    names = list(dict.fromkeys(setting for setting, _ in found))
    n = len(found[names[0], "unwidened"]["accuracy"])
    words = []
    with style.context(["default", STYLE]):
        figure, single = new_axes(2.6 * len(names) + 0.6, 5.6)
        single.remove()
        panels = figure.subplots(2, len(names), sharex="col", squeeze=False)
        for column, setting in enumerate(names):
            base = found[setting, "unwidened"]["accuracy"]
            low, high = np.inf, -np.inf
            for arm, appearance in LOOKS.items():
                values = found[setting, arm]
                at = np.arange(values["rank"].shape[1])
                gains = 100 * (values["accuracy"] - base)
                for panel, lines in zip(panels[:, column], (gains, values["rank"]), strict=True):
                    half = half_interval(lines)
                    panel.plot(at, lines.mean(axis=0), label=arm, **appearance)
                    panel.fill_between(
                        at, lines.mean(axis=0) - half, lines.mean(axis=0) + half,
                        color=appearance["color"], alpha=0.15, linewidth=0,
                    )  # fmt: skip
                if arm != CODE:  # where its faults cost much, its first epochs are below the panel
                    half = half_interval(gains)
                    low = min(low, float((gains.mean(axis=0) - half).min()))
                    high = max(high, float((gains.mean(axis=0) + half).max()))
                words.append(
                    f"{setting}, {arm}: {gains.mean(axis=0)[-1]:+.2f} points, "
                    f"effective rank {values['rank'].mean(axis=0)[-1]:.2f}"
                )
            first, last = 100 * base.mean(axis=0)[[0, -1]]
            panels[0, column].set_title(f"{setting}\n")
            panels[0, column].set_title(
                f"unwidened: {first:.1f} → {last:.1f} %", fontsize=9, fontweight="normal", loc="right"
            )
            panels[0, column].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            panels[1, column].set(xlabel="epoch after widening", xlim=(0, at[-1]))
        panels[0, 0].set_ylabel("test accuracy − unwidened\n(points)")
        panels[1, 0].set_ylabel("effective rank\nof the widened layer's fan-in")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"Means over {n} seeds; bands are 95 % intervals (above: of the difference, paired by seed). Above, the test "
        "accuracy compared with the network that was not widened, from the same weights on the same batches; `restart` "
        "has had as many epochs in all. Below, the effective rank of the fan-in of the widened layer. `equal` and "
        f"`zero` stay where the unwidened network is. Cut off below: `{CODE}` where it begins far under the others."
    )
    return Drawing(figure, "What a widened layer learns", caption, "; ".join(words) + ".")
