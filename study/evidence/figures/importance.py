"""Which of a search's parameters mattered (see ``study.evidence.importance``), a bar a parameter."""

from __future__ import annotations

import numpy as np

from network_surgery.study.evidence.drawing import BLUE, VERMILLION, Drawing, Look, as_percent, new_axes, titled
from network_surgery.study.evidence.figures.reading import Results, finished, metric_of, unfinished

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
    most = {name: max(shares.get(name, 0.0) for shares in found.values()) for each in found.values() for name in each}
    name_of_metric = metric_of(results).name
    targets = {"metric": f"validation {name_of_metric}", "spike": "largest loss spike (logarithm)"}
    names = sorted(most, key=lambda name: most[name])
    figure, axes = new_axes(height=1.9 + 0.45 * len(names))
    at = np.arange(len(names))
    for offset, (target, shares) in zip((0.2, -0.2), found.items(), strict=False):
        bars = axes.barh(at + offset, [shares.get(n, 0.0) for n in names], 0.38, label=targets[target], **LOOKS[target])
        axes.bar_label(bars, [f"{shares.get(name, 0.0):.0%}" for name in names], padding=3, fontsize=8.5)
    axes.set_yticks(at, names)
    axes.set_xlim(0, 1.08 * max(most.values()))
    axes.xaxis.set_major_formatter(as_percent)
    axes.set_xlabel("share of the variance over the search space")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    leaders = {target: max(shares, key=lambda name: shares[name]) for target, shares in found.items()}
    title = ", ".join(f"{targets[target].split(' (')[0]}: {name}" for target, name in leaders.items())
    words = "; ".join(
        f"{name_of_metric if target == 'metric' else target}: "
        + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for target, shares in found.items()
    )
    return titled(
        figure, f"What mattered most: {title}",
        f"fANOVA over the {len(finished(results['trials']))} finished trials of the search "
        f"({unfinished(results['trials'])}), one seed each. Parameters that only some trials have are left out. With "
        "few trials the shares are rough.",
        f"Bar chart of the shares of the variance. {words}.",
    )  # fmt: skip
