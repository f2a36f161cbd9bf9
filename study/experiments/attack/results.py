"""What all trainings gave, and an attacked unit beside the same unit of the network that was left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.experiments.attack.arms import NONE, Found, Network, Record, Setting
from network_surgery.study.experiments.attack.attacker import Attack

#: A penalty (mean change of the loss), or a gradient, below this counts as this much: a dead unit has a logarithm.
FLOOR = 1e-5


@dataclass(frozen=True)
class Pair:
    """An attacked unit, and the same unit without attack, at the same moments; ``end``: the row right after."""

    seed: int
    layer: str
    attacked: Record
    alone: Record
    end: int

    @property
    def unit(self) -> int:
        return int(self.attacked["unit"])

    def values(self, measure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Attacked and alone, ``[moments]`` each; of the unit, or of the network (``loss``, ``accuracy``)."""
        one, other = self.attacked[measure], self.alone[measure]
        return (one, other) if one.ndim == 1 else (one[:, self.unit], other[:, self.unit])

    def change(self, measure: str) -> NDArray[np.float64]:
        """Logarithm of attacked / alone, ``[moments]``; differences for the loss, accuracy and shares."""
        one, other = self.values(measure)
        if measure in ("loss", "accuracy", "flat"):
            return one - other
        least = FLOOR if measure.startswith("mr") or measure == "gradient" else 0
        return np.log(np.maximum(one, least) / np.maximum(other, least))

    def change_of_others(self) -> float:
        """The mean logarithm of attacked / alone over the other units of the layer: their penalty at the end."""
        one, other = (np.delete(record["mrp"][-1], self.unit) for record in (self.attacked, self.alone))
        return float(np.log(np.maximum(one, FLOOR) / np.maximum(other, FLOOR)).mean())


@dataclass(frozen=True)
class Results:
    """``name``: what the images are called, ``source``: how they were given; ``train``, ``validation``: how many."""

    found: Found
    setting: Setting
    name: str
    source: str
    train: int
    validation: int
    per_epoch: int

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(key[1] for key in self.found))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key[2] for key in self.found))

    def alone(self, network: Network, seed: int, layer: str) -> Record:
        """A layer of the network without attack."""
        return self.found[network.activation, seed, layer, NONE]

    def pairs(self, network: Network, attack: Attack) -> Iterator[Pair]:
        """Every attacked unit, seed by seed, layer by layer."""
        end = self.setting.scaled(attack, self.per_epoch).end
        for seed in self.seeds:
            for layer in self.layers:
                attacked, alone = (
                    self.found[network.activation, seed, layer, attack.name],
                    self.alone(network, seed, layer),
                )
                rows = np.searchsorted(alone["iteration"], attacked["iteration"])
                same = {name: values[rows] for name, values in alone.items()}
                after = min(int(np.searchsorted(attacked["iteration"], end)), len(rows) - 1)
                yield Pair(seed, layer, attacked, same, after)

    def by_seed(self, network: Network, attack: Attack, measure: str, at_end: bool = True) -> NDArray[np.float64]:
        """``[seeds]``: the mean change over the layers' attacked units, at the end of training or right after.

        A unit whose training diverged is left out.
        """
        changes: dict[int, list[float]] = {seed: [] for seed in self.seeds}
        for pair in self.pairs(network, attack):
            changes[pair.seed].append(float(pair.change(measure)[-1 if at_end else pair.end]))
        return np.array([np.nanmean(each) for each in changes.values()])
