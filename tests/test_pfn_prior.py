"""The prior of the fitted network: laws of its draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.curves.pfn import prior
from autolrs.curves.pfn.prior import sample, trend


def generator(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(8, 64), st.integers(1, 6))
def test_draws_are_finite_ordered_and_ahead(seed, n, bins, queries):
    drawn = sample(generator(seed), n, bins, queries)
    assert drawn.times.shape == drawn.losses.shape == (n, bins)
    assert drawn.at.shape == drawn.truths.shape == (n, queries)
    for values in (drawn.times, drawn.losses, drawn.noise, drawn.at, drawn.truths):
        assert np.isfinite(values).all()
    assert (np.diff(drawn.times, axis=1) > 0).all()
    assert (drawn.times[:, 0] > 0).all()
    assert (drawn.at > drawn.times[:, -1:]).all()
    assert (drawn.at <= 1).all()
    assert (drawn.noise >= 0).all()


def test_a_seed_gives_the_same_draws_and_another_gives_others():
    one, same, other = (sample(generator(seed), 8, 20, 3) for seed in (1, 1, 2))
    assert np.array_equal(one.losses, same.losses)
    assert np.array_equal(one.truths, same.truths)
    assert not np.array_equal(one.losses, other.losses)


def test_every_shape_goes_from_0_to_1_and_does_not_fall():
    t = np.broadcast_to(np.linspace(0, 1, 50), (400, 50))
    g = prior._shape(generator(), t, 10.0 ** generator(1).uniform(-5, 1, 400))
    assert g[:, 0] == pytest.approx(0, abs=1e-12)
    assert g[:, -1] == pytest.approx(1)
    assert (np.diff(g, axis=1) >= -1e-12).all()


def test_the_trend_of_a_time_does_not_depend_on_which_others_are_asked_in_what_order():
    """Random sizes are drawn for each curve, wandering apart; so equal times have equal levels."""
    t = np.tile([0.2, 0.7, 0.2, 0.7], (300, 1))
    y = trend(generator(3), t)
    assert np.array_equal(y[:, 0], y[:, 2])
    assert np.array_equal(y[:, 1], y[:, 3])
    assert (y[:, 0] != y[:, 1]).mean() > 0.95


def test_brownian_paths_have_the_variance_of_their_time():
    t = np.tile([0.9, 0.1, 0.4], (20_000, 1))
    path = prior._brownian(generator(), t)
    assert path.var(axis=0) == pytest.approx([0.9, 0.1, 0.4], rel=0.05)
    steps = path[:, 0] - path[:, 2], path[:, 2] - path[:, 1]
    assert abs(np.corrcoef(*steps)[0, 1]) < 0.03


def test_autocorrelated_noise_has_unit_variance_and_the_correlation_asked_for():
    rho = np.full((4000, 1), 0.6)
    z = prior._autocorrelated(generator().standard_normal((4000, 30)), rho)
    assert z.var() == pytest.approx(1, rel=0.03)
    assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(0.6, abs=0.03)


def test_noise_is_that_of_the_last_bins():
    """Scatter of late first differences against what the batch says of it, in the median over many curves."""
    drawn = sample(generator(), 4000, 50, 1)
    late = np.diff(drawn.losses[:, -16:], axis=1)
    scatter = np.sqrt(0.5 * (late**2).mean(axis=1))
    assert np.median(np.log(scatter / drawn.noise)) == pytest.approx(0, abs=0.15)


def test_quantiles_are_those_of_real_curves():
    """The data card's comparison in two numbers: drops to come and noise of the order that real windows show."""
    drawn = sample(generator(), 20_000, 50, 2)
    end = drawn.times[:, -1]
    tenth = (end > 0.08) & (end < 0.125)
    last = drawn.losses[:, -5:].mean(axis=1)
    low, middle, high = np.quantile((drawn.truths[:, 0] - last)[tenth], [0.1, 0.5, 0.9])
    assert -1.6 < low < -0.7
    assert -0.2 < middle < -0.05
    assert -0.01 < high < 0.05
    assert np.median(np.log(drawn.noise)) == pytest.approx(-4.4, abs=0.3)
    assert (drawn.truths[:, 0] > last).mean() > 0.08, "some rise"
