"""Distributions of a loss: what is asked of them agrees with the distribution that they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autolrs.curves import CURVE_MODELS, curve_model
from autolrs.forecasts import LEVELS, Forecasts
from autolrs.records import Forecast

LOCATION = st.floats(-8, 8)
SCALE = st.floats(1e-3, 2)
DF = st.sampled_from((3.0, 8.0, np.inf))


@st.composite
def student(draw):
    return Forecasts.student_t([7.0], draw(LOCATION), draw(SCALE), draw(DF), log=draw(st.booleans()))


def frozen(df, location, scale):
    return stats.t(df, location, scale) if np.isfinite(df) else stats.norm(location, scale)


@given(student(), st.floats(1e-6, 1 - 1e-6))
def test_cdf_undoes_quantiles(forecast, level):
    assert forecast.cdf(forecast.quantiles([level])[:, 0])[0] == pytest.approx(level, rel=1e-6)


@given(LOCATION, SCALE, DF, st.booleans(), st.floats(0.002, 0.998))
def test_a_student_t_is_one(location, scale, df, log, level):
    forecast, true = Forecasts.student_t([1.0], location, scale, df, log=log), frozen(df, location, scale)
    x = true.ppf(level)
    y = np.exp(x) if log else x
    found = forecast.quantiles([level])[0, 0]
    assert (np.log(found) if log else found) == pytest.approx(x, abs=0.02 * scale)
    assert forecast.cdf(y)[0] == pytest.approx(level, abs=2e-3)
    assert forecast.log_prob(y)[0] == pytest.approx(true.logpdf(x) - (x if log else 0), abs=0.15)


@given(LOCATION, SCALE, DF)
def test_mean_and_deviation_are_those_of_the_coordinate(location, scale, df):
    plain = Forecasts.student_t([1.0], location, scale, df)
    assert plain.mean[0] == pytest.approx(location, abs=1e-9)
    assert plain.median[0] == pytest.approx(location, abs=1e-9)
    assert plain.std[0] == pytest.approx(frozen(df, 0, scale).ppf(stats.norm.cdf(1)), rel=2e-3)
    logarithmic = Forecasts.student_t([1.0], location, scale, df, log=True)
    assert logarithmic.mean[0] == pytest.approx(np.exp(location))


@given(st.floats(-700, 700), st.booleans())
def test_a_certain_forecast_has_no_deviation_and_never_less(location, log):
    forecast = Forecasts.student_t([1.0], location, 0.0, np.inf, log=log)
    assert 0 <= forecast.std[0] <= 1e-12 * abs(forecast.mean[0])


def test_mean_and_std_alone_are_a_normal():
    forecast = Forecasts(np.array([3.0]), np.array([2.0]), np.array([0.5]))
    assert forecast[0] == Forecast(3.0, 2.0, 0.5)
    assert forecast.quantiles([0.025, 0.975])[0] == pytest.approx([1.02, 2.98], abs=0.002)
    assert forecast.log_prob([2.5])[0] == pytest.approx(stats.norm(2, 0.5).logpdf(2.5), abs=0.02)


@settings(deadline=None)
@given(student(), student(), st.floats(0.05, 0.95))
def test_a_mixture_has_the_mixed_cdf_and_density(first, second, weight):
    mixed = Forecasts.mixture([first, second], [weight, 1 - weight])

    def expected(loss):
        return weight * first.cdf([loss])[0] + (1 - weight) * second.cdf([loss])[0]

    # Where it is tabulated it is exact but for the far tails, and for parts whose bars are cut in another coordinate.
    error = 2e-4 if first.log[0] == second.log[0] else 5e-3
    for level, loss in zip(LEVELS, mixed.quantiles(LEVELS)[0], strict=True):
        assert expected(loss) == pytest.approx(level, abs=error)
    for loss in mixed.quantiles([0.03, 0.4, 0.9])[0]:  # else in the same bar, which a gap between modes may fill
        assert mixed.cdf([loss])[0] == pytest.approx(expected(loss), abs=np.diff(LEVELS).max())


def test_a_mixture_of_one_is_that_one():
    first, second = (Forecasts.student_t([1.0, 1.0], [0.0, 1.0], 0.1, 3, log=True) for _ in range(2))
    assert Forecasts.mixture([first, second], [1.0, 0.0]) is first


def test_a_mixture_is_in_log_loss_only_where_all_its_parts_are():
    logs, plain = (Forecasts.student_t([1.0, 1.0], [0.0, 1.0], 0.1, 3, log=[True, log]) for log in (True, False))
    assert Forecasts.mixture([logs, plain], [1, 1]).log.tolist() == [True, False]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=30), st.booleans(), st.floats(-3, 3))
def test_bars_give_their_density_back(heights, log, start):
    edges = start + 0.1 * np.arange(len(heights) + 1.0)[None]
    probabilities = np.array([heights]) / sum(heights)
    forecast = Forecasts.bars([1.0], edges, probabilities, log=log)
    levels = np.cumsum(probabilities[0])[:-1]
    x = edges[0, 1:-1]
    inner = (levels > LEVELS[0]) & (levels < LEVELS[-1])
    for level, edge in zip(levels[inner], x[inner], strict=True):
        assert forecast.cdf(np.exp(edge) if log else edge)[0] == pytest.approx(level, abs=0.03)


@given(student(), st.floats(0.2, 5))
def test_widening_moves_quantiles_away_from_the_median(forecast, factor):
    wide = forecast.widened(factor)
    coordinate = np.log if forecast.log[0] else np.asarray
    before, after = (coordinate(f.quantiles([0.1, 0.5, 0.9])[0]) for f in (forecast, wide))
    assert after[1] == pytest.approx(before[1])
    assert after - after[1] == pytest.approx(factor * (before - before[1]), abs=1e-9)


def test_draws_follow_the_distribution():
    forecast = Forecasts.student_t([1.0, 1.0], [0.0, -2.0], [0.1, 0.5], 3, log=[True, False])
    draws = forecast.sample(4000, np.random.default_rng(0))
    assert draws.shape == (4000, 2)
    for i in range(2):
        levels = [forecast.cdf([draw, draw])[i] for draw in draws[:, i]]
        assert stats.kstest(levels, "uniform").pvalue > 1e-3
    assert (forecast.sample(5, np.random.default_rng(1)) == forecast.sample(5, np.random.default_rng(1))).all()


@pytest.mark.parametrize("name", CURVE_MODELS)
def test_of_no_curves_there_are_no_draws(name):
    nothing = curve_model(name).extrapolate([], [])
    assert nothing.sample(3, np.random.default_rng(0)).shape == (3, 0)
    assert nothing.widened(2.0).sample(0, np.random.default_rng(0)).shape == (0, 0)
    assert nothing.quantiles([0.1, 0.9]).shape == (0, 2)
    assert nothing.median.shape == nothing.cdf([]).shape == nothing.log_prob([]).shape == (0,)


def test_what_is_impossible_has_no_density():
    forecast = Forecasts.student_t([1.0], 0.0, 0.1, 3, log=True)
    assert forecast.log_prob([-1.0])[0] == forecast.log_prob([np.nan])[0] == forecast.log_prob([np.inf])[0] == -np.inf


def test_nothing_known_is_said_without_a_warning():
    forecast = Forecasts(np.array([1.0]), np.array([np.nan]), np.array([np.inf]))
    assert np.isnan(forecast.quantiles([0.1, 0.5])).all()
    assert forecast.log_prob([1.0])[0] == -np.inf


def test_a_certain_forecast_has_a_density_all_the_same():
    forecast = Forecasts.student_t([1.0], 0.5, 0.0, 3)
    assert np.isfinite(forecast.log_prob([0.5])[0])
    assert forecast.log_prob([0.5])[0] > 15 > 0 > forecast.log_prob([0.6])[0]


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, np.nan])
def test_levels_are_probabilities(level):
    with pytest.raises(ValueError, match="0 < level < 1"):
        Forecasts.student_t([1.0], 0.5, 0.1, 3).quantiles([0.5, level])
