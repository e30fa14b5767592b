"""Curves as models see them: finite, in order, few, in units of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolrs.curves.points import MOST, bin_index, late_count, noise_of, ordered, points_of
from autolrs.records import Curve

finite = st.floats(allow_nan=False, allow_infinity=False)


def curve(losses, offsets=None, noise=0.0):
    n = len(losses)
    return Curve(
        tuple(map(float, range(n) if offsets is None else offsets)), tuple(map(float, losses)), (0.1,) * n, noise
    )


def test_what_is_not_finite_is_dropped_and_offsets_are_put_in_order():
    found = points_of(curve([3, math.nan, 1, 2, math.inf, 9], [4, 1, 8, 6, 2, math.nan]))
    assert found is not None
    assert (found.start, found.span, found.scale) == (4, 4, 3)
    np.testing.assert_allclose(found.u, [0, 0.5, 1])
    np.testing.assert_allclose(found.y * 3, [3, 2, 1])


def test_nothing_finite_is_nothing():
    assert points_of(curve([])) is None
    assert points_of(curve([math.nan, math.inf])) is None


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=100), finite)
def test_finite_input_never_raises_or_warns(points, at):
    found = points_of(curve([y for _, y in points], [t for t, _ in points]))
    assert found is not None
    assert 1 <= len(found) <= MOST
    assert np.abs(found.y).max() <= 1 + 1e-12
    assert found.u.min() >= 0
    assert found.u.max() <= 1
    assert 0 <= found.noise < math.inf
    if not found.few:
        assert 0 <= found.ahead(at) <= 1e9
    assert math.isfinite(found.last)


@given(st.integers(65, 400), st.integers(0, 2**32 - 1))
def test_many_points_become_means_of_bins_of_equal_width(n, seed):
    rng = np.random.default_rng(seed)
    offsets, losses = np.sort(rng.uniform(0, 100, n)), rng.uniform(1, 2, n)
    found = points_of(curve(losses, offsets))
    assert found is not None
    # The twin sorts every point into its bin.
    bins: dict[int, list[int]] = {}
    span = offsets[-1] - offsets[0]
    for i, offset in enumerate(offsets):
        bins.setdefault(min(int((offset - offsets[0]) / span / (1 / MOST)), MOST - 1), []).append(i)
    groups = [bins[key] for key in sorted(bins)]
    np.testing.assert_allclose(found.y * found.scale, [losses[group].mean() for group in groups])
    np.testing.assert_allclose(found.u * span + offsets[0], [offsets[group].mean() for group in groups])


def test_few_points_stay_as_they_are():
    losses = np.linspace(2, 1, MOST)
    found = points_of(curve(losses))
    assert found is not None
    np.testing.assert_array_equal(found.y * 2, losses)


def test_a_known_noise_is_kept_and_an_unknown_one_is_that_of_a_bin():
    losses = 2 + 0.1 * np.random.default_rng(0).standard_normal(6400)
    unknown, known = points_of(curve(losses)), points_of(curve(losses, noise=0.03))
    assert unknown is not None
    assert known is not None
    assert unknown.noise * unknown.scale == pytest.approx(0.1 / 10, rel=0.1)  # 100 points a bin
    assert known.noise * known.scale == pytest.approx(0.03)


def test_noise_is_that_of_the_end_and_leaves_out_the_trend():
    rng = np.random.default_rng(1)
    losses = 100 * np.exp(-np.arange(3000) / 100) + np.where(np.arange(3000) < 1500, 5.0, 0.2) * rng.standard_normal(
        3000
    )
    assert noise_of(losses) == pytest.approx(0.2, rel=0.1)
    assert noise_of(np.ones(1)) == 0


def test_late_bins_that_hold_few_points_are_noisier():
    # Dense, then every hundredth step, as logs often are.
    offsets = np.concatenate([np.arange(8000), np.arange(8000, 64000, 100)])
    losses = 1 + 0.1 * np.random.default_rng(2).standard_normal(len(offsets))
    found = points_of(curve(losses, offsets))
    assert found is not None
    assert found.noise * found.scale == pytest.approx(0.1 / math.sqrt(10), rel=0.2)


@given(st.lists(finite, min_size=2, max_size=200).map(sorted), st.integers(1, 70))
def test_bins_are_numbered_without_gaps(x, bins):
    with np.errstate(over="ignore"):
        if not math.isfinite(float(np.float64(x[-1]) - np.float64(x[0]))):
            return
    index = bin_index(np.array(x), bins)
    assert index[0] == 0
    assert set(index) == set(range(index[-1] + 1))
    assert index[-1] < bins
    assert (np.diff(index) >= 0).all()


def test_late_count_is_the_mean_of_the_last_third():
    assert late_count(np.array([9, 9, 9, 9, 2, 4])) == 3


@pytest.mark.parametrize(
    ("losses", "positive"), [([1, 2], True), ([0, 2], False), ([-1, 2], False), ([1e-320, 1], False)]
)
def test_logarithms_are_taken_of_positive_losses_only(losses, positive):
    found = points_of(curve(losses))
    assert found is not None
    assert found.positive is positive


def test_a_shape_needs_eight_points_and_a_span():
    assert points_of(curve(range(7))).few
    assert not points_of(curve(range(8))).few
    assert points_of(curve(range(8), [3] * 8)).few
    assert points_of(curve(range(8), [-1e308, *range(6), 1e308])).few


def test_ahead_is_the_offset_in_observed_spans():
    found = points_of(curve(range(9), np.arange(9) + 4))
    assert found is not None
    assert [found.ahead(at) for at in (-5, 4, 12, 20, 1e300)] == [0, 0, 1, 2, 1e9]


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(-9, 9)), max_size=20), st.randoms(use_true_random=False))
def test_ordered_curves_hold_the_same_points_in_order(points, random):
    points = sorted(dict(points).items())
    same = curve([y for _, y in points], [t for t, _ in points])
    assert ordered(same) is same
    shuffled = [*points, (1.0, math.nan), (math.inf, 1.0)]
    random.shuffle(shuffled)
    assert ordered(curve([y for _, y in shuffled], [t for t, _ in shuffled])) == same
