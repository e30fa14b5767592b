"""Pooled forecasts of siblings: the maths against a slow twin, and the laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autolrs.curves.pooled import REACHES, SCALES, SHARED, contenders, last, pooled, smoothed, unstable
from autolrs.forecasts import Forecasts
from autolrs.records import Curve


def curve(losses, noise=0.0):
    n = len(losses)
    return Curve(tuple(map(float, range(n))), tuple(map(float, losses)), (0.1,) * n, noise=noise)


def levels(values):
    """Flat curves that end at `values`."""
    return [curve([value] * 20) for value in values]


def certain(values, scale=0.05, log=True):
    if log:
        return Forecasts.student_t([100.0] * len(values), np.log(values), scale, np.inf, log=True)
    return Forecasts(np.full(len(values), 100.0), np.array(values, float), np.full(len(values), scale))


# Maths


def kernel(a, b, reach, scale):
    r = math.sqrt(5) * abs(a - b) / reach
    return scale**2 * (1 + r + r * r / 3) * math.exp(-r) + SHARED**2


@pytest.mark.parametrize("seed", range(5))
def test_smoothing_is_the_average_of_gaussian_conditionals(seed):
    rng = np.random.default_rng(seed)
    x, at = rng.uniform(-4, 0, 6), rng.uniform(-4, 0, 4)
    g, v = rng.normal(-0.3, 0.4, 6), rng.uniform(0.01, 0.3, 6)
    centre = np.eye(4) - 0.25
    means, variances, weights = [], [], []
    for reach in REACHES:
        for scale in SCALES:
            K = np.array([[kernel(a, b, reach, scale) for b in x] for a in x]) + np.diag(v)
            across = np.array([[kernel(a, b, reach, scale) for b in x] for a in at])
            among = np.array([[kernel(a, b, reach, scale) for b in at] for a in at])
            inverse = np.linalg.inv(K)
            means.append(across @ inverse @ g)
            variances.append(np.diag(centre @ (among - across @ inverse @ across.T) @ centre))
            weights.append(math.exp(-0.5 * g @ inverse @ g) / math.sqrt(np.linalg.det(K)))
    weights = np.array(weights) / sum(weights)
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    spread = sum(w * (centre @ (m - mean)) ** 2 for w, m in zip(weights, means, strict=True))
    variance = sum(w * s for w, s in zip(weights, variances, strict=True)) + spread
    found = smoothed(x, g, v, at)
    np.testing.assert_allclose(found[0], mean, rtol=1e-8)
    np.testing.assert_allclose(found[1], variance, rtol=1e-6, atol=1e-12)


def test_the_last_value_is_the_mean_of_the_last_tenth():
    assert last(curve(range(30), noise=0.6)) == (28.0, pytest.approx(0.6 / math.sqrt(3)))
    assert last(curve([1.0, math.nan])) == (1.0, 0.0)
    assert math.isnan(last(curve([math.nan]))[0])


# What pooling is for


def test_an_error_that_all_share_does_not_change_the_order():
    ends, rates = [1.0, 0.8, 0.7, 0.9], [1e-4, 1e-3, 1e-2, 1e-1]
    for gain in (0.5, 1.0, 1.7):
        found = pooled(levels(ends), rates, certain([gain * end for end in ends]))
        np.testing.assert_allclose(found.median / found.median[0], ends, rtol=1e-3)


def test_one_odd_forecast_of_an_unsure_model_is_overruled_by_its_siblings():
    ends, rates = [1.0, 0.9, 0.8, 0.85, 0.95], np.geomspace(1e-3, 1e-1, 5)
    alone = np.array([0.5, 0.5, 0.5, 0.1, 0.5]) * ends
    sure = np.array([0.05, 0.05, 0.05, 1.0, 0.05])
    found = pooled(levels(ends), rates, Forecasts.student_t([100.0] * 5, np.log(alone), sure, np.inf, log=True))
    assert alone.argmin() == 3
    assert found.median.argmin() == 2


def test_gains_that_grow_with_the_rate_undo_the_bias_of_the_last_losses():
    rates = np.geomspace(1e-4, 1e-1, 7)
    ends = np.exp(0.1 * np.arange(7.0))  # the smallest rate has fallen most
    truth = np.exp(-0.1 * np.arange(7.0))
    found = pooled(levels(ends), rates, certain(truth))
    assert ends.argmin() == 0
    assert found.median.argmin() == 6
    np.testing.assert_allclose(found.median, truth, rtol=0.1)


def test_what_cannot_win_keeps_its_forecast_and_teaches_nothing():
    ends, rates = np.array([1.0, 1.1, 1.2]), np.array([1e-3, 2e-3, 4e-3])
    ahead, sure = ends * [0.3, 0.35, 0.4], np.array([0.4, 0.4, 0.4])
    alone = pooled(levels(ends), rates, Forecasts.student_t([100.0] * 3, np.log(ahead), sure, np.inf, log=True))
    # Many rates that are stuck far above and known to stay there.
    stuck = np.full(9, 50.0)
    forecasts = Forecasts.student_t(
        [100.0] * 12, np.log(np.append(ahead, stuck)), np.append(sure, np.full(9, 0.02)), np.inf, log=True
    )
    found = pooled(levels(np.append(ends, stuck)), np.append(rates, np.geomspace(1e-2, 1e2, 9)), forecasts)
    np.testing.assert_allclose(found.median[:3], alone.median, rtol=1e-9)
    np.testing.assert_allclose(found.median[3:], stuck, rtol=1e-9)


def test_two_that_may_both_win_are_contenders_and_a_sure_loser_is_not():
    level = np.log([1.0, 0.9, 3.0])
    assert contenders(level, np.zeros(3), np.full(3, 0.05)).tolist() == [True, True, False]
    assert contenders(level, np.zeros(3), np.full(3, 0.5)).tolist() == [True, True, True]
    assert contenders(level, np.array([0.0, 0.0, -2.0]), np.full(3, 0.05)).tolist() == [False, False, True]


def test_what_broke_out_once_is_not_expected_to_fall_and_teaches_nothing():
    """Adam at rates of 40 on a quadratic: up to 1e6, back to the others' level, believed to go on falling."""
    calm = [curve(np.linspace(1.0, end, 20)) for end in (0.5, 0.4, 0.45)]
    burst = curve(np.r_[1.0, np.geomspace(1e4, 0.4, 19)])
    rates, ahead = [1e-3, 2e-3, 4e-3, 8e-3], [0.4, 0.32, 0.36, 1e-3]
    alone = pooled(calm, rates[:3], certain(ahead[:3]))
    found = pooled([*calm, burst], rates, certain(ahead))
    np.testing.assert_allclose(found.median[:3], alone.median, rtol=1e-9)
    assert found.median[3] == pytest.approx(last(burst)[0])
    assert found.median.argmin() == 1
    worse = pooled([*calm, burst], rates, certain([*ahead[:3], 100.0]))
    assert worse.median[3] == pytest.approx(100.0)  # that it breaks out again may be foreseen


@pytest.mark.parametrize("k", [1e-3, 1.0, 1e3])
def test_only_a_rise_far_above_where_probes_begin_is_unstable(k):
    curves = [[1.0, 0.5], [1.0, 2.9, 0.5], [1.0, math.inf, 3.1, 0.5], [1.0, 0.2], [math.nan]]
    assert unstable([curve(k * np.array(losses)) for losses in curves]).tolist() == [False, False, True, False, False]
    assert unstable([]).tolist() == []


def test_a_probe_without_a_forecast_takes_its_siblings_gain():
    forecasts = Forecasts.student_t([100.0] * 3, np.log([0.5, np.nan, 0.5]), [0.05, np.nan, 0.05], np.inf, log=True)
    found = pooled(levels([1.0, 0.9, 1.0]), [1e-3, 2e-3, 4e-3], forecasts)
    assert found.median[1] == pytest.approx(0.45, rel=0.02)
    assert found.std[1] > found.std[0]


def test_a_probe_without_a_point_stays_unknown():
    found = pooled([curve([math.nan]), *levels([1.0, 2.0])], [1, 2, 3], certain([1.0, 0.5, 1.0]))
    assert math.isnan(found.mean[0])
    assert found.std[0] == math.inf
    assert np.isfinite(found.mean[1:]).all()


def test_what_all_share_is_not_in_the_deviations():
    one = pooled(levels([1.0, 1.1]), [1e-3, 1.1e-3], certain([0.5, 0.55], scale=1.0))
    assert (one.std < 0.1).all()  # the gain itself is known to about .7
    noisy = [curve([1.0] * 20, noise=0.3), curve([1.1] * 20, noise=0.3)]
    assert (pooled(noisy, [1e-3, 1.1e-3], certain([0.5, 0.55])).std > one.std).all()


# Laws

finite = st.floats(-1e3, 1e3)
positive = st.floats(1e-3, 1e3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=8), st.floats(-3, 3), st.randoms())
def test_the_loss_scale_and_the_order_of_the_probes_do_not_matter(pairs, exponent, random):
    ends, ahead = (np.array([pair[i] for pair in pairs]) for i in range(2))
    rates, k = np.geomspace(1e-4, 1e-1, len(pairs)), 10.0**exponent
    found = pooled(levels(ends), rates, certain(ahead, 0.3))
    scaled = pooled(levels(k * ends), rates, certain(k * ahead, 0.3))
    np.testing.assert_allclose(scaled.median, k * found.median, rtol=1e-6)
    order = np.array(random.sample(range(len(pairs)), len(pairs)))
    moved = pooled(levels(ends[order]), rates[order], certain(ahead[order], 0.3))
    np.testing.assert_allclose(moved.median, found.median[order], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8), st.floats(-50, 50), st.floats(0.1, 10))
@example([(0.0, 0.0), (-1000.0, 0.0)], 0.0, 0.5)
@example([(0.0, 0.0), (-999.9999999999999, 0.0)], 0.0, 1.1)
def test_losses_of_any_sign_move_with_their_unit_and_zero(pairs, shift, k):
    ends, ahead = (np.array([pair[i] for pair in pairs]) for i in range(2))
    ends[0] = -1e3 - abs(ends[0])  # so that none of the two has a logarithm
    rates = np.geomspace(1e-4, 1e-1, len(pairs))
    found = pooled(levels(ends), rates, certain(ahead, 0.3, log=False))
    moved = pooled(levels(k * (ends - shift)), rates, certain(k * (ahead - shift), 0.3 * k, log=False))
    if k * (ends[0] - shift) < 0:
        np.testing.assert_allclose(moved.mean, k * (found.mean - shift), rtol=1e-5, atol=1e-4 * k)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(), st.floats(1e-300, 1e300), st.floats(), st.floats(0, 1e300) | st.just(math.inf)),
        max_size=6,
    )
)
def test_any_input_gives_an_answer_without_a_warning(rows):
    ends, rates, mean, std = (np.array([row[i] for row in rows]) for i in range(4))
    found = pooled(levels(ends), rates, Forecasts(np.full(len(rows), 9.0), mean, std))
    assert len(found) == len(rows)


def test_lengths_and_rates_are_checked():
    with pytest.raises(ValueError, match="must be equal"):
        pooled(levels([1.0]), [0.1, 0.2], certain([1.0]))
    with pytest.raises(ValueError, match="positive"):
        pooled(levels([1.0]), [0.0], certain([1.0]))


@given(st.randoms(use_true_random=False))
def test_the_order_of_points_says_nothing(random):
    t = np.arange(30.0)
    curves = [Curve(tuple(t), tuple(1 + np.exp(-rate * t)), (rate,) * 30) for rate in (0.01, 0.03, 0.1, 0.3)]
    rows = list(range(30))
    random.shuffle(rows)
    mixed = [replace(c, offsets=tuple(t[rows]), losses=tuple(np.array(c.losses)[rows])) for c in curves]
    rates, forecasts = [0.01, 0.03, 0.1, 0.3], certain([1.2, 1.1, 1.05, 1.0])
    assert np.array_equal(pooled(mixed, rates, forecasts).median, pooled(curves, rates, forecasts).median)
