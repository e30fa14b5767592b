"""The chance of beating the best sibling: against a slow twin, and the laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from autolrs.curves.stopping import DF, PRIOR, SPREAD, chance
from autolrs.forecasts import Forecasts
from autolrs.records import Curve


def curve(losses):
    n = len(losses)
    return Curve(tuple(map(float, range(1, n + 1))), tuple(map(float, losses)), (0.1,) * n)


def normal(median, scale, at=100.0):
    """A forecast in log loss."""
    return Forecasts.student_t([at], [math.log(median)], [scale], np.inf, log=True)


UNKNOWN = Forecasts(np.array([100.0]), np.array([np.nan]), np.array([np.inf]))


def test_is_the_product_of_two_normals_with_a_student_tail():
    seen = curve([2.0] * 20)
    rivals = [curve([2.0] * 50 + [1.0] * 50), curve([2.0] * 50 + [1.5] * 50)]
    found = chance(seen, normal(1.6, 0.2), 1.0, rivals)
    gains = [math.log(0.5), math.log(0.75)]
    w = (PRIOR * (SPREAD * 0.5 * 0.8) ** 2 + (gains[1] - gains[0]) ** 2) / (PRIOR + 2)
    v = (0.2 * 0.9945) ** 2  # half the width from 16 % to 84 % of a normal
    mean = (math.log(0.8) / v + gains[0] / w) / (1 / v + 1 / w)
    expected = student.cdf((math.log(1.0) - math.log(2.0) - mean) * math.sqrt(1 / v + 1 / w), DF)
    assert found == pytest.approx(expected, rel=5e-3)


def test_of_a_few_points_only_the_siblings_speak():
    few, rivals = curve([2.0] * 7), [curve([2.0] * 50 + [1.0] * 50)]
    assert chance(few, normal(1e-3, 0.01), 1.0, rivals) == pytest.approx(0.5, abs=0.01)
    assert chance(few, normal(1e-3, 0.01), 1.0) == 0.5
    assert chance(curve([2.0] * 8), normal(1e-3, 0.01), 1.0) > 0.99


@pytest.mark.parametrize("rivals", [[], [curve([3.0] * 50 + [1.0] * 50)]])
def test_a_hopeless_curve_has_no_chance_and_a_better_one_has(rivals):
    assert chance(curve([3.0] * 60), normal(2.9, 0.05), 1.0, rivals) < 0.02
    assert chance(curve([0.5] * 60), normal(0.4, 0.05), 1.0, rivals) > 0.98


def test_siblings_that_fell_late_speak_for_a_curve():
    seen, forecast = curve([3.0] * 30), normal(2.9, 0.5)
    flat, late = curve([1.0] * 100), curve([3.0] * 90 + [0.5] * 10)
    assert chance(seen, forecast, 0.8, [late]) > 1.5 * chance(seen, forecast, 0.8, [flat])


def test_near_the_end_less_can_happen():
    rivals, forecast = [curve(np.linspace(2.0, 1.0, 100))], normal(1.5, 1.0)
    early, late = (chance(curve(np.linspace(3.0, 2.5, n)), forecast, 1.0, rivals) for n in (20, 90))
    assert late < early


def test_nothing_known_is_even():
    assert chance(curve([math.nan] * 9), UNKNOWN, 1.0) == 0.5
    assert chance(curve([1.0] * 9), UNKNOWN, 1.0) == 0.5
    assert chance(Curve((), (), ()), UNKNOWN, 1.0, [curve([1.0] * 9)]) == 0.5


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=20), st.floats(0.1, 10), st.floats(-4, 4))
def test_the_scale_of_positive_losses_does_not_matter(losses, best, exponent):
    k = 10.0**exponent
    rivals = [curve([2.0] * 50 + [best] * 50), curve([3.0] * 100)]
    scaled = [curve([k * loss for loss in rival.losses]) for rival in rivals]
    one = chance(curve(losses), normal(losses[-1], 0.3), best, rivals)
    other = chance(curve([k * loss for loss in losses]), normal(k * losses[-1], 0.3), k * best, scaled)
    assert other == pytest.approx(one, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(-9, -1), min_size=8, max_size=20), st.floats(-9, -1), st.floats(0.1, 10), st.floats(-9, 0))
def test_of_other_losses_neither_scale_nor_zero_matter(losses, best, k, shift):
    def asked(k, shift):
        move = [k * loss + shift for loss in losses]
        forecast = Forecasts(np.array([100.0]), np.array([move[-1]]), np.array([0.3 * k]))
        rivals = [curve([k * -2.0 + shift] * 50 + [k * best + shift] * 50)]
        return chance(curve(move), forecast, k * best + shift, rivals)

    assert asked(k, shift) == pytest.approx(asked(1.0, 0.0), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=8, max_size=20), st.floats(-9, 9), st.floats(0, 5))
def test_the_better_the_best_the_smaller_the_chance(losses, best, less):
    forecast = Forecasts(np.array([100.0]), np.array([losses[-1]]), np.array([0.5]))
    rivals = [curve([-10.0, *[1.0] * 99])]  # always in loss, not in log loss
    assert chance(curve(losses), forecast, best - less, rivals) <= chance(curve(losses), forecast, best, rivals) + 1e-12


@settings(deadline=None)
@given(
    st.lists(st.floats(), max_size=12),
    st.lists(st.lists(st.floats(), max_size=12), max_size=3),
    st.floats(allow_nan=False),
    st.floats(),
    st.floats(0, allow_nan=False),
)
def test_any_input_gives_a_probability_without_a_warning(losses, rivals, best, mean, std):
    forecast = Forecasts(np.array([10.0]), np.array([mean]), np.array([std]))
    assert 0 <= chance(curve(losses), forecast, best, [curve(rival) for rival in rivals]) <= 1


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="one forecast"):
        chance(curve([1.0]), UNKNOWN, math.nan)
