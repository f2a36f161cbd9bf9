"""Outputs condensed to a triangle: joined batches are one sample, and least squares are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from network_surgery.ops.maths.condensed import Condensed, components_needed


def rows(samples: int, units: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(samples, 4, generator=generator) @ torch.randn(4, units, generator=generator)
    return (mixed + 0.1 * torch.randn(samples, units, generator=generator) + 3).double()


@pytest.mark.parametrize("sizes", [(50, 50), (3, 40), (40, 3), (2, 2), (90,)])
def test_joined_batches_are_one_sample(sizes: tuple[int, ...]) -> None:
    values = rows(sum(sizes))
    first, *others = [Condensed.of(part) for part in values.split(list(sizes))]
    for other in others:
        first = first.joined(other)
    whole = Condensed.of(values)
    assert first.samples == whole.samples == len(values) and len(first.deviations) <= 8
    torch.testing.assert_close(first.origin, values.mean(0))
    covariance = (values - values.mean(0)).T @ (values - values.mean(0))
    torch.testing.assert_close(first.deviations.T @ first.deviations, covariance)
    about_zero = first.about_zero()
    torch.testing.assert_close(about_zero.deviations.T @ about_zero.deviations, values.T @ values)
    shared = min(len(first.spectrum()), len(whole.spectrum()))
    torch.testing.assert_close(first.spectrum()[:shared], whole.spectrum()[:shared])


@pytest.mark.parametrize("intercept", [True, False])
def test_least_squares_are_numpys(intercept: bool) -> None:
    values, sources = rows(60), (1, 4, 5)
    condensed = Condensed.of(values) if intercept else Condensed.of(values).about_zero()
    found = condensed.combination(sources)
    design = values.numpy()[:, sources]
    if intercept:
        design = np.column_stack([design, np.ones(60)])
    wanted, *_ = np.linalg.lstsq(design, values.numpy(), rcond=None)
    np.testing.assert_allclose(found.mixing.numpy().T, wanted[:3], atol=1e-10)
    if intercept:
        np.testing.assert_allclose(found.constant.numpy(), wanted[3], atol=1e-10)
    unseen = rows(40, seed=1)
    missed = unseen - unseen[:, list(sources)] @ found.mixing.T - found.constant
    assert found.missed(Condensed.of(unseen)) == pytest.approx(float(missed.square().sum()))
    assert found.condition >= np.linalg.cond((design - design.mean(0))[:, :3] if intercept else design)


def test_a_ridge_bounds_coefficients_of_collinear_units() -> None:
    values = rows(60)
    values[:, 1] = values[:, 0] + 1e-7 * rows(60, seed=2)[:, 1]
    values[:, 2] = 1e5 * (values[:, 1] - values[:, 0])
    condensed = Condensed.of(values)
    plain, ridged = (condensed.combination((0, 1), ridge) for ridge in (0.0, 1e-6))
    assert plain.mixing.abs().max() > 1e4 > 10 > ridged.mixing.abs().max()
    assert plain.condition > 1e4 * ridged.condition
    assert plain.missed(condensed) <= ridged.missed(condensed)


@pytest.mark.parametrize("dropped", [1e-6, 0.01, 0.3, 1.0])
def test_components_needed_leave_no_more(dropped: float) -> None:
    spectrum = Condensed.of(rows(60)).spectrum()
    count = components_needed(spectrum, dropped)
    assert spectrum[count:].sum() <= dropped + 1e-12
    assert count == 1 or spectrum[count - 1 :].sum() > dropped
    assert components_needed(Condensed.of(torch.ones(5, 3)).spectrum(), dropped) == 0
