"""The exponential curve model: against a slow twin, its laws, and real curves if there are any."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.stats import t

from autolrs.curves import CURVE_MODELS, curve_model
from autolrs.curves.exponential import Exponential, PublishedExponential, _solve, clean
from autolrs.errors import SettingError, UnknownNameError
from autolrs.protocols import CurveModel
from autolrs.records import Curve

MODEL = Exponential()
U = np.linspace(0, 1, 40)


def curve(losses, noise=0.0, step=1.0):
    n = len(losses)
    return Curve(tuple(step * i for i in range(n)), tuple(map(float, losses)), (0.1,) * n, noise=noise)


def forecast(losses, at, model=MODEL, **kwargs):
    return model.extrapolate([curve(losses, **kwargs)], [at])[0]


def exponential(n, a, b, c, noise=0.0, seed=0):
    return a * np.exp(-b * np.arange(n)) + c + noise * np.random.default_rng(seed).standard_normal(n)


# Lookup


def test_it_is_found_by_name():
    model = curve_model("exponential")
    assert isinstance(model, CurveModel)
    assert model == MODEL


def test_an_unknown_name_lists_those_that_exist():
    with pytest.raises(UnknownNameError, match=", ".join(sorted(CURVE_MODELS))):
        curve_model("spline")


@pytest.mark.parametrize("bad", [{"outliers": 0.5}, {"rounds": -1}, {"region": 2}, {"reach": 0}, {"doubt": -1}])
def test_bad_settings_name_the_rule(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        Exponential(**bad)


# Against slow twins


@given(st.integers(0, 2**32 - 1))
def test_closed_form_is_nonnegative_least_squares(seed):
    rng = np.random.default_rng(seed)
    phi = np.exp(-np.outer(np.geomspace(0.1, 20, 3), U))
    z, v = rng.normal(rng.normal(), 1, len(U)).clip(0), rng.uniform(0.1, 10, len(U))
    z = z + rng.normal() * U  # rising and falling alike
    z -= min(z.min(), 0)
    fit = _solve(phi, z, v)
    for i, row in enumerate(phi):
        root = np.sqrt(1 / v)
        (a, c), norm = nnls(np.stack([row, np.ones_like(row)], axis=1) * root[:, None], z * root)
        assert (fit.a[i], fit.c[i]) == pytest.approx((a, c), rel=1e-6, abs=1e-9)
        assert fit.rss[i] == pytest.approx(norm**2, rel=1e-6, abs=1e-12)


def test_leverage_is_the_linear_model_formula():
    phi, v = np.exp(-np.outer([0.5, 3.0], U)), 1 + U
    fit = _solve(phi, 2 * phi[0] + 1, v)
    for i, b in enumerate((0.5, 3.0)):
        basis = np.stack([phi[i], np.ones_like(U)], axis=1)
        point = np.array([math.exp(-2 * b), 1.0])
        covariance = np.linalg.inv(basis.T @ (basis / v[:, None]))
        assert fit.leverage(np.exp([-1.0, -6.0]))[i] == pytest.approx(point @ covariance @ point, rel=1e-9)


@pytest.mark.parametrize("b", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("at", [60, 100, 400])
def test_a_clean_exponential_is_continued(b, at):
    losses = exponential(50, 2.0, b, 1.0)
    truth = 2 * math.exp(-b * at) + 1
    found = forecast(losses, at)
    assert found.mean == pytest.approx(truth, rel=0.03)
    assert abs(found.mean - truth) <= 2 * found.std


def test_agrees_with_a_dense_grid_search():
    # The twin tries every (b, a, c) of a fine grid; late noise-free data leave no room for the weights to matter.
    losses = exponential(50, 1.5, 0.06, 0.7, noise=0.002, seed=3)
    t = np.arange(50.0)
    best = min(
        (float(((a * np.exp(-b * t) + c - losses) ** 2).sum()), a * math.exp(-b * 100) + c)
        for b in np.linspace(0.04, 0.08, 21)
        for a in np.linspace(1.4, 1.6, 21)
        for c in np.linspace(0.6, 0.8, 21)
    )[1]
    assert forecast(losses, 100, noise=0.002).mean == pytest.approx(best, abs=0.015)


def test_the_deviation_covers_the_truth_of_noisy_exponentials():
    inside, count = 0, 300
    for seed in range(count):
        rng = np.random.default_rng(seed)
        a, b, c, noise = rng.uniform(0.2, 3), 10 ** rng.uniform(-2, -0.5), rng.uniform(0.1, 2), rng.uniform(0.01, 0.2)
        found = forecast(exponential(50, a, b, c, noise, seed), 300, noise=noise)
        inside += abs(found.mean - (a * math.exp(-b * 300) + c)) <= 1.645 * found.std
    assert inside / count >= 0.85


def test_deviation_grows_with_noise_and_distance():
    quiet, loud = (exponential(50, 1, 0.05, 1, noise, seed=1) for noise in (0.01, 0.2))
    assert forecast(quiet, 100, noise=0.01).std < forecast(loud, 100, noise=0.2).std
    assert forecast(quiet, 60, noise=0.01).std < forecast(quiet, 2000, noise=0.01).std


# The distribution


@given(st.integers(0, 100))
def test_positive_losses_have_a_positive_student_t_of_the_log_loss(seed):
    found = MODEL.extrapolate([curve(exponential(30, 1, 0.1, 0.5, 0.05, seed), 0.05)], [100.0])
    assert found.log is not None
    assert found.log.all()
    location, scale = math.log(found.mean[0]), 0.8 * min(found.std[0] / found.mean[0], 3.0)
    quantiles = found.quantiles([0.001, 0.05, 0.5, 0.9])[0]
    np.testing.assert_allclose(np.log(quantiles), location + scale * t.ppf([0.001, 0.05, 0.5, 0.9], 3), atol=0.02)
    assert found.log_prob([found.mean[0]])[0] == pytest.approx(t.logpdf(0, 3) - math.log(scale) - location, abs=0.01)


def test_other_losses_have_one_of_the_loss():
    found = MODEL.extrapolate([curve(exponential(30, 1, 0.1, -0.5, 0.05), 0.05)], [100.0])
    assert found.log is not None
    assert not found.log.any()
    np.testing.assert_allclose(found.quantiles([0.1])[0], found.mean + 0.8 * found.std * t.ppf(0.1, 3), rtol=1e-3)


def test_thousands_of_points_are_read_as_bin_means():
    losses = exponential(6400, 1, 0.0005, 1, noise=0.2, seed=3)
    means = losses.reshape(64, 100).mean(axis=1)
    binned = Curve(tuple(49.5 + 100.0 * np.arange(64)), tuple(means), (0.1,) * 64, noise=0.02)
    assert forecast(losses, 20_000).mean == pytest.approx(MODEL.extrapolate([binned], [20_000])[0].mean, rel=0.02)


# Cleaning


def test_early_spikes_are_dropped_and_late_ones_kept():
    y = np.exp(-U)
    y[[5, 30]] += 5
    kept = clean(U, y, lambda u, y: np.exp(-u))
    assert not kept[5]
    assert kept[U >= 0.5].all()


@given(st.integers(0, 2**32 - 1), st.integers(8, 60))
def test_cleaning_leaves_half_and_the_second_half(seed, n):
    u, y = np.linspace(0, 1, n), np.random.default_rng(seed).normal(size=n)
    kept = clean(u, y, lambda u, y: np.zeros_like(y), outliers=0.2, rounds=50)
    assert kept.sum() >= max(8, n / 2)
    assert kept[u >= 0.5].all()


def test_a_spike_hardly_moves_the_forecast():
    losses = exponential(50, 1, 0.05, 1, 0.01)
    spiked = losses.copy()
    spiked[10] += 5
    assert forecast(spiked, 200).mean == pytest.approx(forecast(losses, 200).mean, abs=0.02)


# Laws

finite = st.floats(allow_nan=False, allow_infinity=False)
modest = st.floats(-100, 100)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(finite, finite), max_size=30),
    finite,
    st.floats(0, allow_nan=False, allow_infinity=False),
)
def test_finite_input_never_raises_or_warns(points, at, noise):
    t, y = ([p[i] for p in points] for i in range(2))
    found = MODEL.extrapolate([Curve(tuple(t), tuple(y), (0.1,) * len(t), noise=noise)], [at])[0]
    if points:
        assert math.isfinite(found.mean)
        assert 0 <= found.std < math.inf


@settings(max_examples=300)
@given(st.lists(finite, min_size=8, max_size=60), st.floats(0, 1e9), st.floats(0, 10))
def test_finite_losses_on_a_common_grid_never_raise_or_warn(losses, at, noise):
    found = forecast(losses, at, noise=noise)
    assert math.isfinite(found.mean)
    assert 0 <= found.std < math.inf


def test_points_that_are_all_but_at_one_offset_are_survived():
    offsets, losses = (-1.0, *[0.0] * 9), (1e15, *[0.0] * 8, 1.0)
    found = MODEL.extrapolate([Curve(offsets, losses, (0.1,) * 10)], [0.0])[0]
    assert math.isfinite(found.mean)
    assert math.isfinite(found.std)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60), st.floats(0, 1e6))
def test_positive_losses_are_forecast_between_zero_and_their_maximum(losses, at):
    assert 0 <= forecast(losses, at).mean <= max(losses) * (1 + 1e-9)


@given(st.lists(modest, min_size=8, max_size=60), st.floats(0, 1e6))
def test_other_losses_fall_at_most_by_their_range(losses, at):
    low, high = min(losses), max(losses)
    slack = 1e-9 * max(abs(low), abs(high)) + 1e-12
    assert low - (high - low) - slack <= forecast(losses, at).mean <= high + slack


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=50),
    st.floats(0, 1000),
    st.floats(-6, 6).map(lambda x: 10**x),
    st.integers(0, 100),
)
def test_forecasts_scale_with_the_loss(losses, at, k, seed):
    noisy = np.array(losses) + 0.1 * np.random.default_rng(seed).standard_normal(len(losses))
    one, other = forecast(noisy, at, noise=0.1), forecast(k * noisy, at, noise=0.1 * k)
    size = float(np.abs(noisy).max())
    assert other.mean / k == pytest.approx(one.mean, rel=1e-9, abs=1e-9 * size)
    assert other.std / k == pytest.approx(one.std, rel=1e-7, abs=1e-9 * size)


def digits():
    """Losses that fall, as a log rounds them: to one or two digits after the point."""
    falls = st.tuples(st.floats(0.3, 2), st.floats(0.02, 1), st.floats(0.2, 2), st.floats(0, 0.1), st.integers(0, 999))
    made = st.tuples(falls, st.integers(8, 80), st.sampled_from((1, 2)))
    return made.map(lambda x: np.round(exponential(x[1], *x[0]), x[2]).clip(0.1).tolist())


@pytest.mark.parametrize("name", ["auto", "bayes", "exponential", "pfn"])
@settings(max_examples=60, deadline=None)
@given(digits(), st.sampled_from((1e-3, 20.0, 1e3)), st.sampled_from((1.1, 2.0, 5.0)))
@example([1.3, 1.1, 0.8, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4, 0.4] + 11 * [0.3], 20.0, 5.0)
def test_losses_of_a_few_digits_keep_their_log_forecast_to_a_millionth(name, losses, k, ahead):
    one, other = (forecast([c * loss for loss in losses], ahead * len(losses), curve_model(name)) for c in (1.0, k))
    assert math.log(other.mean / k) == pytest.approx(math.log(one.mean), abs=1e-6)
    assert other.std / k == pytest.approx(one.std, rel=1e-5, abs=1e-6 * one.mean)


def test_of_points_that_are_equally_far_off_the_later_ones_are_dropped():
    u, y = np.linspace(0, 1, 21), np.zeros(21)
    y[[2, 4, 6]] = 1.0, 1.0 - 1e-15, -1.0 + 1e-15  # the same, but for rounding
    kept = clean(u, y, lambda u, y: np.zeros_like(y), outliers=0.05, rounds=1)
    assert np.flatnonzero(~kept).tolist() == [4, 6]


@pytest.mark.parametrize("rounding", [-1e-15, 0.0, 1e-15])
def test_a_point_at_the_end_of_the_cleaned_region_stays_whatever_its_rounding(rounding):
    u, y = np.linspace(0, 1, 21), np.zeros(21)
    u[10] += rounding
    y[10] = 5.0
    assert clean(u, y, lambda u, y: np.zeros_like(y), outliers=0.05, rounds=1, region=0.5).all()


@given(st.floats(0.01, 100), st.integers(0, 50))
def test_forecasts_do_not_depend_on_the_unit_of_time(step, seed):
    losses = exponential(30, 1, 0.1, 0.5, 0.05, seed)
    one, other = forecast(losses, 90.0, noise=0.05), forecast(losses, 90.0 * step, noise=0.05, step=step)
    assert (other.mean, other.std) == pytest.approx((one.mean, one.std), rel=1e-6)


@pytest.mark.parametrize("level", [-3.0, 1e-8, 5.0])
def test_a_constant_curve_stays(level):
    found = forecast([level] * 20, 500)
    assert found.mean == pytest.approx(level, rel=1e-6)
    assert found.std <= 1e-3 * abs(level)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_few_points_give_the_last_value_and_a_wide_deviation(n):
    losses = np.linspace(3, 2, n)
    found = forecast(losses, 100)
    assert found.mean == losses[-1]
    assert found.std >= max(np.ptp(losses), 0.5 * losses[-1])


def test_a_rising_curve_is_not_forecast_to_fall():
    losses = np.linspace(1, 2, 30)
    assert forecast(losses, 300).mean >= 1.8


def test_points_that_are_not_finite_are_ignored():
    losses = exponential(30, 1, 0.1, 0.5)
    holes = losses.copy()
    holes[[3, 17]] = math.nan, math.inf
    keep = np.isfinite(holes)
    bare = Curve(tuple(np.arange(30.0)[keep]), tuple(losses[keep]), (0.1,) * 28)
    assert forecast(holes, 100) == MODEL.extrapolate([bare], [100])[0]


def test_nothing_finite_says_so():
    found = forecast([math.nan] * 9, 100)
    assert math.isnan(found.mean)
    assert found.std == math.inf


def test_batches_are_the_single_forecasts():
    curves = [curve(exponential(n, 1, 0.1, 0.5, 0.05, n), 0.05) for n in (5, 20, 50)]
    together = MODEL.extrapolate(curves, [60, 70, 80])
    for i, (one, at) in enumerate(zip(curves, [60, 70, 80], strict=True)):
        assert together[i] == MODEL.extrapolate([one], [at])[0]
    assert len(MODEL.extrapolate([], [])) == 0


# As published


def test_the_released_fit_goes_below_zero_where_ours_does_not():
    losses = np.linspace(3, 1, 40) - 0.2 * U**2
    assert forecast(losses, 400, PublishedExponential()).mean < 0 <= forecast(losses, 400).mean


def test_the_released_fit_depends_on_the_unit_of_the_loss():
    losses = exponential(50, 1, 0.3, 0.5, 0.02)
    one = forecast(losses, 100, PublishedExponential()).mean
    assert forecast(100 * losses, 100, PublishedExponential()).mean / 100 != pytest.approx(one, rel=1e-3)


@settings(max_examples=50)
@given(st.lists(modest, max_size=60), st.floats(0, 1e4))
def test_the_released_fit_survives_what_the_released_code_does_not(losses, at):
    found = PublishedExponential().extrapolate([curve(losses)], [at])[0]
    assert math.isfinite(found.mean) or not losses


# Real curves: a folder with `*.parquet` of columns curve_id, step, train_loss

CURVES = os.environ.get("AUTOLRS_CURVES")


@pytest.mark.slow
@pytest.mark.skipif(not CURVES, reason="AUTOLRS_CURVES names no folder of real curves")
@pytest.mark.parametrize(("seen", "least"), [(0.1, 0.6), (0.4, 0.8)])  # plateaus that fall late are not foreseen
def test_real_curves_are_forecast_better_than_by_their_last_value(seen, least):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.read_parquet(Path(CURVES) / "deepobs.parquet", columns=["curve_id", "train_loss"])
    rng = np.random.default_rng(0)
    curves, truth, last = [], [], []
    for _, group in table.groupby("curve_id"):
        window = group.train_loss.to_numpy(float)[:1000]
        if rng.random() > 0.35 or not np.isfinite(window).all() or window.max() > 5 * window[:10].mean():
            continue
        n = int(seen * len(window))
        curves.append(Curve.reduce(list(window[:n]), [0.1] * n))
        truth.append(window[-50:].mean())
        last.append(window[n - n // 10 : n].mean())
    found = MODEL.extrapolate(curves, [975.0] * len(curves))
    errors, baseline = (np.abs(np.array(x) - truth) / np.abs(truth) for x in (found.mean, last))
    covered = float((np.abs(found.mean - truth) <= 1.645 * found.std).mean())
    print(f"{seen=} windows={len(curves)} median={np.median(errors):.3f} last={np.median(baseline):.3f} {covered=:.2f}")
    assert len(curves) >= 200
    assert np.median(errors) < np.median(baseline)
    assert covered >= least
