"""Which of a search's parameters mattered (see ``study.evidence.importance``), a bar a parameter."""

from __future__ import annotations

import numpy as np

from network_surgery.study.evidence.drawing import (
    BLACK,
    BLUE,
    VERMILLION,
    Drawing,
    Look,
    add_title,
    as_percent,
    new_axes,
)
from network_surgery.study.evidence.figures.reading import Results, describe_unfinished, find_finished, metric_of

#: Look of each target: dark and light, and hatched, for print in grey.
LOOKS: dict[str, Look] = {
    "metric": {"color": BLUE},
    "spike": {"color": VERMILLION, "hatch": "///", "edgecolor": "white"},
}


def importance(results: Results) -> Drawing | None:
    """A bar a parameter, for each target; none where nothing can be said."""
    found = (results.get("importance") or {}).get("shares")
    if not found:
        return None
    ranges = results["importance"].get("intervals") or {}
    most = {name: max(shares.get(name, 0.0) for shares in found.values()) for each in found.values() for name in each}
    name_of_metric = metric_of(results).name
    targets = {"metric": f"validation {name_of_metric}", "spike": "largest loss spike (logarithm)"}
    names = sorted(most, key=lambda name: most[name])
    figure, axes = new_axes(height=1.9 + 0.45 * len(names))
    at = np.arange(len(names))
    for offset, (target, shares) in zip((0.2, -0.2), found.items(), strict=False):
        values = np.array([shares.get(name, 0.0) for name in names])
        axes.barh(at + offset, values, 0.38, label=targets[target], **LOOKS[target])
        low, high = np.array([ranges.get(target, {}).get(n, [v, v]) for n, v in zip(names, values, strict=True)]).T
        axes.errorbar(values, at + offset, xerr=[values - low, high - values], fmt="none", ecolor=BLACK, capsize=3)
        for place, (share, end) in enumerate(zip(values, high, strict=True)):
            look: Look = {"va": "center", "fontsize": 8.5}
            axes.annotate(f"{share:.0%}", (end, place + offset), (5, 0), textcoords="offset points", **look)
    axes.set_yticks(at, names)
    ends = [most.values(), *([high for _, high in each.values()] for each in ranges.values())]
    axes.set_xlim(0, 1.1 * max(max(each) for each in ends))
    axes.xaxis.set_major_formatter(as_percent)
    axes.set_xlabel("share of the variance over the search space")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    leaders = {target: max(shares, key=lambda name: shares[name]) for target, shares in found.items()}
    title = ", ".join(f"{targets[target].split(' (')[0]}: {name}" for target, name in leaders.items())
    words = "; ".join(
        f"{name_of_metric if target == 'metric' else target}: "
        + ", ".join(f"{name} {share:.0%}{_range(ranges.get(target, {}).get(name))}" for name, share in shares.items())
        for target, shares in found.items()
    )
    return add_title(
        figure, f"What mattered most: {title}",
        f"fANOVA over the {len(find_finished(results['trials']))} finished trials of the search "
        f"({describe_unfinished(results['trials'])}), one seed each. "
        "Parameters that only some trials have are left out. "
        "Lines: where 90 % of a share lie if the trials are drawn again from themselves.",
        f"Bar chart of the shares of the variance. {words}.",
    )  # fmt: skip


def _range(interval: list[float] | None) -> str:
    """An interval after a share; older studies have none."""
    return "" if interval is None else f" [{interval[0]:.0%}, {interval[1]:.0%}]"
