"""Functional analysis of variance: each parameter's share of the variance of what a forest has learnt.

Source: Hutter, Hoos and Leyton-Brown 2014, *An efficient approach for assessing hyperparameter importance*. The forest
is Optuna's and the shares are Optuna's to rounding. Optuna walks down every tree once for each cell of each parameter;
here the leaves of a tree are boxes in two arrays, and all cells are looked up at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

#: The parameters of a trial, and the distributions they were drawn from.
Point = tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]


def shares(points: Sequence[Point], values: Sequence[float], n_trees: int, max_depth: int) -> dict[str, float]:
    """Parameter → share (together 1), the largest first, of the parameters that all points have.

    Empty where no tree has learnt anything.
    """
    known = _shared([distributions for _, distributions in points])
    varied = [name for name, distribution in known.items() if not distribution.single()]
    found = dict.fromkeys((name for name in known if name not in varied), 0.0)
    if varied:
        learnt = _learnt({name: known[name] for name in varied}, points, np.asarray(values), n_trees, max_depth)
        if learnt is None:
            return {}
        found = dict(zip(varied, learnt, strict=True)) | found
    total = sum(found.values())
    ordered = reversed(sorted(found, key=found.__getitem__))
    return {name: found[name] / total if total else 1 / len(found) for name in ordered}


def _shared(each: Sequence[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """By name, what all have with one distribution."""
    names = sorted(set(each[0]).intersection(*each[1:]))
    return {name: each[0][name] for name in names if all(other[name] == each[0][name] for other in each)}


def _learnt(
    known: Mapping[str, BaseDistribution], points: Sequence[Point], values: np.ndarray, n_trees: int, max_depth: int
) -> list[float] | None:
    blocks = [_encoded(distribution, [params[name] for params, _ in points]) for name, distribution in known.items()]
    ends = np.cumsum([block.shape[1] for block in blocks])
    columns = np.split(np.arange(ends[-1]), ends[:-1])
    bounds = np.concatenate([_bounds(distribution) for distribution in known.values()])
    finite = np.isfinite(values)
    forest = _forest(np.concatenate(blocks, axis=1)[finite], values[finite], n_trees, max_depth)
    varying = [tree for tree in (_Leaves(each, bounds) for each in forest) if tree.variance > 0]
    if not varying:
        return None
    return [float(np.mean([tree.variance_of(each) / tree.variance for tree in varying])) for each in columns]


def _forest(inputs: np.ndarray, values: np.ndarray, n_trees: int, max_depth: int) -> list[Any]:
    """The trees of scikit-learn's ``RandomForestRegressor``, without what it does besides: most of its time."""
    import sklearn
    from sklearn.tree import DecisionTreeRegressor

    inputs, count, trees = inputs.astype(np.float32), len(values), []
    random = np.random.RandomState(0)
    with sklearn.config_context(skip_parameter_validation=True):
        for seed in [random.randint(np.iinfo(np.int32).max) for _ in range(n_trees)]:
            draw = np.random.RandomState(seed).randint(0, count, count, dtype=np.int32)
            weights = np.bincount(draw, minlength=count).astype(float)
            tree = DecisionTreeRegressor(max_depth=max_depth, random_state=seed)
            trees.append(tree.fit(inputs, values, sample_weight=weights, check_input=False).tree_)
    return trees


def _encoded(distribution: BaseDistribution, values: Sequence[Any]) -> np.ndarray:
    """A column of numbers, or of a choice one column for each of its options, which is 1 where it was chosen."""
    if not isinstance(distribution, CategoricalDistribution):
        return np.array(values, dtype=float)[:, None]
    chosen = [int(distribution.to_internal_repr(value)) for value in values]
    return np.eye(len(distribution.choices))[chosen]


def _bounds(distribution: Any) -> np.ndarray:
    if isinstance(distribution, CategoricalDistribution):
        return np.tile([0.0, 1.0], (len(distribution.choices), 1))
    return np.array([[distribution.low, distribution.high]], dtype=float)


class _Leaves:
    """The boxes into which a tree cuts the space, and its prediction in each of them."""

    def __init__(self, tree: Any, bounds: np.ndarray) -> None:
        low, high = (np.tile(each, (tree.node_count, 1)) for each in bounds.T)
        leaf = tree.children_left < 0
        for node in np.flatnonzero(~leaf):  # parents come before their children
            left, right, feature = tree.children_left[node], tree.children_right[node], tree.feature[node]
            low[[left, right]], high[[left, right]] = low[node], high[node]
            high[left, feature] = low[right, feature] = tree.threshold[node]
        self.bounds, self.low, self.high = bounds, low[leaf], high[leaf]
        self.sizes = self.high - self.low
        self.predicted = tree.value[leaf, 0, 0]
        self.cuts = {each: np.unique(tree.threshold[tree.feature == each]) for each in np.unique(tree.feature[~leaf])}
        self.variance = _variance(self.predicted, self.sizes.prod(axis=1))

    def variance_of(self, columns: np.ndarray) -> float:
        """The variance of what the tree predicts over these columns, the mean taken over all others."""
        cut = [column for column in columns if column in self.cuts]
        if not cut:
            return 0.0
        others = np.delete(self.sizes, columns, axis=1).prod(axis=1)
        inside, sizes = np.ones((len(others), 1)), np.ones(1)
        for column in cut:
            edges = np.concatenate([self.bounds[column, :1], self.cuts[column], self.bounds[column, 1:]])
            middle = (edges[1:] + edges[:-1]) / 2
            within = (self.low[:, column, None] < middle) & (middle <= self.high[:, column, None])
            inside = (inside[:, :, None] * within[:, None, :]).reshape(len(others), -1)
            sizes = np.outer(sizes, np.diff(edges)).ravel()
        weights = others @ inside
        return _variance((others * self.predicted) @ inside / weights, weights * sizes)


def _variance(values: np.ndarray, weights: np.ndarray) -> float:
    weights = weights / weights.sum()
    return float(weights @ (values - weights @ values) ** 2)
