"""The figures: what becomes of attacked units, where each of them ends, and what ranks units as MRP does."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    STYLE,
    Drawing,
    Look,
    log_scale,
    new_axes,
)
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments.attack.arms import HARD, Network
from network_surgery.study.experiments.attack.attacker import Attack
from network_surgery.study.experiments.attack.findings import KILLED, SCORES, over_layers, rank
from network_surgery.study.experiments.attack.results import FLOOR, Results
from network_surgery.study.experiments.attack.tables import SCORE_NAMES

LINES = (":", "--", "-")
#: Measure → what the panel is called, and whether it is a factor.
ROWS = {
    "mrp": ("MRP, factor", True),
    "in_l1": ("L1 norm of incoming\nweights, factor", True),
    "gradient": ("output gradient,\nfactor", True),
    "flat": ("flat outputs,\ndifference", False),
}


def draw(results: Results) -> dict[str, Drawing]:
    """The figures by their names."""
    with style.context(["default", STYLE]):
        return {"attack": _courses(results), "attack_units": _units(results), "attack_scores": _scores(results)}


def _columns(
    results: Results, rows: int, width: float, height: float, **shared: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A grid of axes with a column for each network."""
    figure, single = new_axes(width, height)
    single.remove()
    panels = figure.subplots(rows, len(results.setting.networks), squeeze=False, **shared)
    for axes, network in zip(panels[0], results.setting.networks, strict=True):
        axes.set_title(network.activation, fontsize=10)
    return figure, panels.tolist()


def _courses(results: Results) -> Drawing:
    networks = results.setting.networks
    figure, panels = _columns(results, len(ROWS), 2.7 * len(networks) + 0.6, 8.4, sharex="col")
    words = []
    for row, (measure, (label, factor)) in enumerate(ROWS.items()):
        for axes, network in zip(panels[row], networks, strict=True):
            shown: list[float] = [1.0]
            for at, attack in enumerate(HARD):
                if attack not in network.attacks:
                    continue
                iterations, changes = _course(results, network, attack, measure)
                middle, half = changes.mean(axis=0), half_interval(changes)
                low, high = middle - half, middle + half
                if factor:
                    middle, low, high = np.exp(middle), np.exp(low), np.exp(high)
                look: Look = {"color": COLOURS[at], "linestyle": LINES[at], "marker": MARKERS[at], "markersize": 3.5}
                axes.plot(iterations, middle, label=f"×{attack.multiplier:g}", linewidth=1.5, **look)
                axes.fill_between(iterations, low, high, color=COLOURS[at], alpha=0.13, linewidth=0)
                shown += [*low, *high] if at == 2 else [*middle]
                if measure == "mrp":
                    words.append(f"{network.activation}, ×{attack.multiplier:g}: MRP × {middle[-1]:.2f} at the end")
            axes.axhline(1 if factor else 0, color=BLACK, linewidth=0.8)
            if factor:
                log_scale(axes.yaxis, [min(max(value, 1e-3), 1e3) for value in shown], lambda value: f"{value:g}")
        panels[row][0].set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("iterations")
        axes.tick_params(axis="x", labelrotation=30)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"The attacked unit compared with the same unit of the network that is left alone: ten attacks, from iteration "
        f"{HARD[0].start:,} on, every {HARD[0].every}. Geometric means (for shares: means) over the attacked units of "
        f"{len(results.layers)} layers, and over {len(results.seeds)} seeds; bands are 95 % intervals. Scales differ."
    )
    return Drawing(figure, "What becomes of an attacked unit", caption, "; ".join(words) + ".")


def _course(results: Results, network: Network, attack: Attack, measure: str) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
    """Iterations ``[moments]`` and changes ``[seeds, moments]``, the mean over the layers."""
    pairs = list(results.pairs(network, attack))
    changes = np.array([pair.change(measure) for pair in pairs])
    by_seed = changes.reshape(len(results.seeds), len(results.layers), -1)
    return pairs[0].attacked["iteration"], np.nanmean(by_seed, axis=1)


def _units(results: Results) -> Drawing:
    networks = results.setting.networks
    figure, panels = _columns(results, 1, 2.7 * len(networks) + 0.6, 4.6, sharey="row")
    everything: list[float] = [1.0]
    words = []
    for axes, network in zip(panels[0], networks, strict=True):
        for at, attack in enumerate(network.attacks):
            pairs = list(results.pairs(network, attack))
            factors = np.exp([pair.change("mrp")[-1] for pair in pairs])
            factors = factors[np.isfinite(factors)]
            for number, layer in enumerate(results.layers):
                mine = [(pair.seed, np.exp(pair.change("mrp")[-1])) for pair in pairs if pair.layer == layer]
                x = [at + 0.22 * (number - 1) + 0.02 * (seed - 2) for seed, _ in mine]
                axes.plot(
                    x, [value for _, value in mine], linestyle="", marker=MARKERS[number], color=COLOURS[number],
                    markersize=4.5, alpha=0.75, label=layer if at == 0 else None,
                )  # fmt: skip
            everything += [*factors]
            words.append(f"{network.activation}, {attack.name}: median × {np.median(factors):.2f}")
        axes.axhline(1, color=BLACK, linewidth=0.8)
        axes.axhline(KILLED, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_xticks(
            range(len(network.attacks)), [attack.name for attack in network.attacks], rotation=55, ha="right"
        )
        axes.set_xlim(-0.6, len(network.attacks) - 0.4)
        axes.tick_params(axis="x", labelsize=8)
    log_scale(panels[0][0].yaxis, everything, lambda value: f"{value:g}")
    panels[0][0].set_ylabel("MRP at the end, attacked / left alone")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"Each point is one attacked unit of one network ({len(results.seeds)} seeds). Below the dashed line a unit is "
        f"called killed; a penalty below {FLOOR:g} counts as {FLOOR:g}."
    )
    return Drawing(figure, "Where every attacked unit ends", caption, "; ".join(words) + ".")


def _scores(results: Results) -> Drawing:
    networks = results.setting.networks
    figure, panels = _columns(results, 2, 2.7 * len(networks) + 0.6, 6.6, sharey="row")
    values: list[float] = []
    words = []
    for axes, network in zip(panels[0], networks, strict=True):
        for number, layer in enumerate(results.layers):
            records = [results.alone(network, seed, layer) for seed in results.seeds]
            mrs, mrp = (
                np.maximum(np.concatenate([record[name][-1] for record in records]), FLOOR) for name in ("mrs", "mrp")
            )
            axes.plot(
                mrs, mrp, linestyle="", marker=MARKERS[number], color=COLOURS[number], markersize=3, alpha=0.5,
                label=layer,
            )  # fmt: skip
            values += [*mrs, *mrp]
    for axes in panels[0]:
        log_scale(axes.xaxis, values, lambda value: f"{value:g}")
        log_scale(axes.yaxis, values, lambda value: f"{value:g}")
        axes.plot([min(values), max(values)], [min(values), max(values)], linestyle=":", color=BLACK, linewidth=1)
        axes.set_xlabel("MRS")
    for axes, network in zip(panels[1], networks, strict=True):
        for at, score in enumerate(SCORES):
            rho = over_layers(results, network, partial(rank, score=score))
            middle, half = rho.mean(axis=0), half_interval(rho)
            for number in range(len(results.layers)):
                axes.errorbar(
                    at + 0.22 * (number - 1), middle[number], half[number], marker=MARKERS[number],
                    color=COLOURS[number], markersize=4.5, linewidth=1.2,
                )  # fmt: skip
            words.append(f"{network.activation}, {SCORE_NAMES[score]}: {middle.mean():.2f}")
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xticks(range(len(SCORES)), SCORE_NAMES.values(), rotation=45, ha="right")
        axes.tick_params(axis="x", labelsize=8)
        axes.set_ylim(-1.02, 1.05)
    panels[0][0].set_ylabel("MRP")
    panels[1][0].set_ylabel("rank correlation with MRP")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"Networks without attack at the end of training, {len(results.seeds)} seeds. Above: every unit; dotted: MRS "
        "equal to MRP. Below: Spearman's correlation of each score with MRP over the units of a layer, means over "
        "seeds with 95 % intervals."
    )
    return Drawing(figure, "What ranks units as MRP does", caption, "; ".join(words) + ".")
