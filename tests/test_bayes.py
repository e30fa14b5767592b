"""The grid-Bayes curve model: against a slow twin, its laws, and what it is good at."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.curves import bayes, curve_model
from autolrs.curves.bayes import Bayes
from autolrs.errors import SettingError
from autolrs.forecasts import LEVELS
from autolrs.protocols import CurveModel
from autolrs.records import Curve

MODEL = Bayes()


def curve(losses, noise=0.0, offsets=None):
    n = len(losses)
    offsets = range(n) if offsets is None else offsets
    return Curve(tuple(map(float, offsets)), tuple(map(float, losses)), (0.1,) * n, noise)


def forecast(losses, at, model=MODEL, **kwargs):
    return model.extrapolate([curve(losses, **kwargs)], [at])


def noisy(n, seed, noise=0.02):
    """A random curve: a power law, an exponential, a rise or a plateau."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / n
    shape = [(1 + 9 * t) ** -rng.uniform(0.2, 2), np.exp(-rng.uniform(0.1, 20) * t), t, np.ones(n)][seed % 4]
    return rng.uniform(0.1, 3) * shape + rng.uniform(0.1, 2) + noise * rng.standard_normal(n)


# Lookup and settings


def test_it_is_found_by_name():
    assert curve_model("bayes") == MODEL
    assert isinstance(MODEL, CurveModel)


@pytest.mark.parametrize("bad", [{"misfit": -1}, {"reach": 0}, {"fall": 0}, {"reach": math.nan}])
def test_bad_settings_name_the_rule(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        Bayes(**bad)


# Against a slow twin


def twin(losses, noise, at, model=MODEL):
    """Quantiles of the loss at `LEVELS`: one shape, one scale and one point at a time."""
    n = len(losses)
    log = min(losses) > 0
    scale = max(abs(y) for y in losses)
    y = [math.log(loss / scale) if log else loss / scale for loss in losses]
    unit = 1.0 if log else max(y) - min(y)
    tenth = max(1, n // 10)
    last = sum(y[-tenth:]) / tenth
    z = [(value - last) / unit for value in y]
    u = [i / (n - 1) for i in range(n)]
    h = at / (n - 1)
    loss_there = sum(losses[-tenth:]) / tenth
    noise = noise / loss_there if log else noise / scale / unit
    late = z[-max(8, n // 3) :]
    differences = sorted(abs(b - a) for a, b in pairwise(late))
    noise = max(noise, float(np.median(differences)) / 0.6745 / math.sqrt(2))
    size = max(z) - min(z)
    v = [
        noise**2 + (model.misfit * max(abs(value) for value in z[i:])) ** 2 + (0.005 * size) ** 2 + 1e-8
        for i in range(n)
    ]

    shapes = [lambda x, b=b: 1 - math.exp(-b * x) for b in np.geomspace(0.05, 60, 16)]
    for s in np.geomspace(0.003, 10, 6):
        shapes += [lambda x, s=s: math.log(1 + x / s)]
        shapes += [lambda x, p=p, s=s: 1 - (1 + x / s) ** -p for p in (0.25, 0.5, 1, 2)]
    means, variances, logits = [], [], []
    for q in shapes:
        ahead = 1 - q(h) / q(1)
        for drop_scale in np.geomspace(0.01, 3, 6):
            design = np.array([[1, 1 - q(x) / q(1)] for x in u])
            precision = np.diag([1 / (size + 0.1) ** 2, 1 / drop_scale**2])
            target = np.zeros(2)
            for row, value, variance in zip(design, z, v, strict=True):
                precision += np.outer(row, row) / variance
                target += row * value / variance
            beta, covariance = np.linalg.solve(precision, target), np.linalg.inv(precision)
            point = np.array([1, ahead])
            means.append(point @ beta)
            variances.append(point @ covariance @ point)
            evidence = 0.5 * target @ beta - 0.5 * math.log(np.linalg.det(precision)) - math.log(drop_scale)
            logits.append(evidence - 0.5 * (ahead / model.reach) ** 2 - abs(beta[1] * ahead) / model.fall)
    weights = np.exp(np.array(logits) - max(logits))
    weights /= weights.sum()
    mode = min(sum(w * m for w, m in zip(weights, means, strict=True)), max(z))
    doublings = math.log2(max(h, 1))
    paces = []
    for v in (0.5, 0.75):
        near = [value for x, value in zip(u, z, strict=True) if abs(x - v) <= 0.1]
        paces.append(abs(sum(near) / len(near)) / -math.log2(v))
    drift = sum(paces) / 2

    def width(inside, side):
        spread = sum(w * inside(m - mode) ** 2 for w, m in zip(weights, means, strict=True))
        unforeseen = (side.gain * mode) ** 2 + (side.drift * drift * doublings) ** 2 + (side.doubling * doublings) ** 2
        return math.sqrt(0.5 * (sum(weights * variances) + 2 * spread) + 0.002**2 + unforeseen)

    below, above = width(lambda off: min(off, 0), bayes._BELOW), width(lambda off: max(off, 0), bayes._ABOVE)
    quantiles = []
    for level in LEVELS:
        share = below / (below + above)
        side, part = (below, level / share / 2) if level < share else (above, 0.5 + (level - share) / (1 - share) / 2)
        x = mode + side * (2 * part - 1) / math.sqrt(2 * part * (1 - part)) + last / unit
        quantiles.append(scale * math.exp(x) if log else scale * unit * x)
    return quantiles


@pytest.mark.parametrize("shift", [0.0, -2.0])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_its_slow_twin_computes(seed, shift):
    n = (8, 13, 30, 50)[seed // 2]
    losses = noisy(n, seed) + shift
    at = n * (1.3, 10.0)[seed % 2]
    found = forecast(losses, at, noise=0.02)
    np.testing.assert_allclose(found.quantiles(LEVELS)[0], twin(losses, 0.02, at), rtol=1e-9, atol=1e-9)
    assert found.log.all() == (losses.min() > 0)
    assert found.mean[0] == found.median[0]


def test_the_halves_join_without_a_jump_of_the_density():
    x = bayes._skewed(np.array([1.0, 3.0]), np.array([1.0, 0.5]))
    from scipy.stats import t

    np.testing.assert_allclose(x[0], t.ppf(LEVELS, 2), rtol=1e-9, atol=1e-12)
    share = 3 / 3.5  # below 0, twice the density of a half is 2 / (below + above) times the standard one
    below = x[1] < 0
    np.testing.assert_allclose(LEVELS[below], 2 * share * t.cdf(x[1][below] / 3, 2), rtol=1e-9)
    np.testing.assert_allclose(1 - LEVELS[~below], 2 * (1 - share) * t.sf(x[1][~below] / 0.5, 2), rtol=1e-9)


# What it is good at


@pytest.mark.parametrize(
    "f",
    [
        lambda t: 0.5 + 2 * np.exp(-t / 12),
        lambda t: 3 * (1 + t / 2) ** -0.5,
        lambda t: 2 * (1 + t) ** -0.1,
        lambda t: 4 - 0.3 * np.log1p(t),
    ],
)
@pytest.mark.parametrize(("ahead", "off"), [(2.5, 0.25), (5, 0.35), (10, 0.4)])
def test_clean_shapes_of_many_kinds_are_continued(f, ahead, off):
    found, truth = forecast(f(np.arange(50.0)), 49 * ahead), f(49.0 * ahead)
    assert found.mean[0] == pytest.approx(truth, rel=off)
    assert 0.05 < found.cdf([truth])[0] < 0.95


def test_intervals_cover_what_they_claim_on_its_own_kind_of_curves():
    levels = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        b, c, a = 10 ** rng.uniform(-1.5, 0.8), rng.uniform(0.2, 2), rng.uniform(0.2, 2)
        t = np.append(np.arange(50.0), 200)
        y = c + a * np.exp(-b * t / 50) + 0.02 * c * rng.standard_normal(51)
        levels.append(forecast(y[:50], 200.0, noise=0.02 * c).cdf([y[50]])[0])
    assert np.mean(np.abs(np.array(levels) - 0.5) < 0.45) >= 0.86


def test_a_spike_hardly_moves_the_forecast():
    losses = 1 + np.exp(-np.arange(50) / 12)
    spiked = losses.copy()
    spiked[5] *= 8
    assert forecast(spiked, 200).mean[0] == pytest.approx(forecast(losses, 200).mean[0], rel=0.03)


def test_deviation_grows_with_noise_and_distance():
    quiet, loud = noisy(50, 1, 0.005), noisy(50, 1, 0.1)
    assert forecast(quiet, 100, noise=0.005).std[0] < forecast(loud, 100, noise=0.1).std[0]
    assert forecast(quiet, 60).std[0] < forecast(quiet, 500).std[0] < forecast(quiet, 1e6).std[0]


def test_curves_may_fall_unforeseen_more_than_they_rise():
    low, middle, high = np.log(forecast(noisy(50, 0), 500).quantiles([0.05, 0.5, 0.95])[0])
    assert middle - low > high - middle


# Laws

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100)
@given(st.lists(st.tuples(finite, finite), max_size=80), finite, st.floats(0, allow_nan=False, allow_infinity=False))
def test_finite_input_never_raises_or_warns(points, at, noise):
    found = forecast([y for _, y in points], at, offsets=[t for t, _ in points], noise=noise)
    if points:
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.std).all()
        assert (np.diff(found.quantiles([0.01, 0.3, 0.5, 0.9])[0]) >= 0).all()


@pytest.mark.parametrize("losses", [[1e308, -1e308] * 10, [-1e-300, -1e308, 1e308], [1e308], [5e-324, 1.0] * 10, [0.0]])
def test_extreme_losses_are_survived(losses):
    found = forecast(losses, 1e308, noise=1e300)
    assert np.isfinite([found.mean[0], found.std[0]]).all()
    assert (np.diff(found.quantiles([0.01, 0.5, 0.99])[0]) >= 0).all()


@settings(max_examples=100)
@given(st.lists(finite, min_size=8, max_size=80), st.floats(0, 1e9), st.floats(0, 10))
def test_finite_losses_on_a_common_grid_never_raise_or_warn(losses, at, noise):
    found = forecast(losses, at, noise=noise)
    assert np.isfinite([found.mean[0], found.std[0]]).all()


@settings(max_examples=100)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=80), st.floats(0, 1e6))
def test_positive_losses_stay_positive_and_below_their_maximum_unless_they_rise(losses, at):
    found = forecast(losses, at)
    assert found.mean[0] > 0
    assert (found.quantiles([0.001, 0.999]) > 0).all()
    falling = forecast(sorted(losses, reverse=True), max(at, len(losses)))
    assert 0 < falling.mean[0] <= max(losses) * (1 + 1e-9)


@pytest.mark.parametrize("k", [1e-3, 20.0, 1e3])
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, -1.5]), st.integers(1, 200), st.sampled_from([0.0, 0.05]))
def test_forecasts_scale_with_the_loss(k, seed, shift, n, noise):
    losses, at = noisy(n, seed) + shift, 3.0 * n
    levels = [0.01, 0.1, 0.5, 0.9, 0.99]
    one, other = forecast(losses, at, noise=noise), forecast(k * losses, at, noise=k * noise)
    np.testing.assert_allclose(other.quantiles(levels) / k, one.quantiles(levels), rtol=1e-7, atol=1e-9)
    truth = losses[-1:]
    np.testing.assert_allclose(other.log_prob(k * truth) + math.log(k), one.log_prob(truth), atol=1e-6)


@given(st.floats(0.01, 100), st.floats(-1e3, 1e3), st.integers(0, 50))
def test_forecasts_do_not_depend_on_the_unit_or_the_origin_of_time(step, start, seed):
    losses = noisy(30, seed)
    one, other = forecast(losses, 90.0), forecast(losses, start + 90.0 * step, offsets=start + step * np.arange(30))
    np.testing.assert_allclose([other.mean[0], other.std[0]], [one.mean[0], one.std[0]], rtol=1e-6)


@given(st.integers(0, 100), st.floats(-100, 100))
def test_losses_that_are_not_positive_may_be_shifted(seed, shift):
    losses = noisy(40, seed)
    losses -= losses.max() + 1
    if shift + losses.max() > 0:
        return
    one, other = forecast(losses, 200.0), forecast(losses + shift, 200.0)
    assert other.mean[0] - shift == pytest.approx(one.mean[0], abs=1e-6)


@pytest.mark.parametrize("level", [-3.0, 1e-8, 5.0])
def test_a_constant_curve_stays(level):
    found = forecast([level] * 20, 500)
    assert found.mean[0] == pytest.approx(level, rel=0.02)
    assert found.std[0] <= 0.05 * abs(level)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_few_points_give_the_last_value_and_a_wide_deviation(n):
    losses = np.linspace(3, 2, n)
    found = forecast(losses, 100)
    assert found.mean[0] == pytest.approx(losses[-1])
    assert found.std[0] >= 0.25 * losses[-1]


def test_many_points_are_read_as_bin_means():
    rng = np.random.default_rng(0)
    raw = 1 + (1 + np.arange(6400) / 500) ** -0.8 + 0.2 * rng.standard_normal(6400)
    means = raw.reshape(64, 100).mean(axis=1)
    one = forecast(raw, 30_000)
    other = forecast(means, 30_000, offsets=np.arange(64) * 100 + 49.5, noise=0.02)
    assert one.mean[0] == pytest.approx(other.mean[0], rel=0.01)
    assert one.std[0] == pytest.approx(other.std[0], rel=0.1)


def test_points_that_are_not_finite_are_ignored():
    losses = noisy(30, 1)
    holes = losses.copy()
    holes[[3, 17]] = math.nan, math.inf
    keep = np.isfinite(holes)
    one, other = forecast(holes, 100), forecast(losses[keep], 100, offsets=np.arange(30)[keep])
    np.testing.assert_array_equal(one.table, other.table)


def test_nothing_finite_says_so():
    found = forecast([math.nan] * 9, 100)
    assert math.isnan(found.mean[0])
    assert found.std[0] == math.inf
    assert found.log_prob([1.0])[0] == -math.inf


def test_batches_are_the_single_forecasts():
    curves = [curve(noisy(n, n)) for n in (5, 20, 50)] + [curve([math.nan]), curve(noisy(20, 3) - 5)]
    together = MODEL.extrapolate(curves, [60, 70, 80, 90, 100])
    for i, (one, at) in enumerate(zip(curves, [60, 70, 80, 90, 100], strict=True)):
        np.testing.assert_array_equal(together.table[i], MODEL.extrapolate([one], [at]).table[0])
    assert len(MODEL.extrapolate([], [])) == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="argument"):
        MODEL.extrapolate([curve([1.0])], [])
