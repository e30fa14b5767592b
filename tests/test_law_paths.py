"""The rate along a run, and what the loss laws make of it: against step-by-step twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autolrs.curves.law.annealing import recent_rate
from autolrs.curves.law.multipower import felt_rate
from autolrs.curves.law.paths import RatePath
from autolrs.records import Curve
from autolrs.schedules import BASES, Schedule

SCHEDULES = [Schedule.build(base, rate=0.3, steps=2000, warmup=100) for base in BASES]


@st.composite
def paths(draw):
    """Paths of whole steps, jumps among them."""
    count = draw(st.integers(1, 8))
    steps = np.cumsum([0, *(draw(st.integers(0, 40)) for _ in range(count - 1))]).astype(float)
    rates = np.array([draw(st.floats(0, 1)) for _ in range(count)])
    return RatePath(steps, rates)


# Paths


@pytest.mark.parametrize("schedule", SCHEDULES, ids=BASES)
def test_the_path_of_a_schedule_has_its_rates_and_their_sums(schedule):
    path = RatePath.of_schedule(schedule)
    steps = np.arange(0, 2400.0)
    rates = np.array([schedule(int(step)) for step in steps])
    # A warm-up is climbed a step later than by the updates, which are constant within a step.
    assert path.at(steps) == pytest.approx(rates, abs=5e-3)
    assert path.progress(steps + 1) == pytest.approx(np.cumsum(rates), abs=0.25)


@settings(max_examples=40)
@given(paths(), st.lists(st.floats(0, 400), min_size=1, max_size=5))
def test_progress_is_the_integral_of_the_rate(path, steps):
    for step in steps:
        grid = np.linspace(0, step, 20001)
        middle = 0.5 * (grid[1:] + grid[:-1])
        assert path.progress(np.array([step]))[0] == pytest.approx(path.at(middle).mean() * step, abs=0.03)


@given(paths(), paths(), st.integers(0, 100))
@example(RatePath(np.array([0.0, 3.0, 3.0]), np.array([0.0, 0.0, 1.0])), RatePath(np.zeros(1), np.zeros(1)), 3)
def test_one_path_follows_another(first, second, start):
    later = RatePath(second.steps + start, second.rates)
    joined = first.then(later, start)
    before, after = np.arange(0, start), np.arange(start, start + 300)
    assert joined.at(before) == pytest.approx(first.at(before), abs=1e-9)
    assert joined.at(after) == pytest.approx(later.at(after), abs=1e-9)
    assert (np.diff(joined.steps) >= 0).all()


def test_curves_are_joined_at_their_starts_and_later_ones_replace_earlier_ones():
    one = Curve((4.5, 14.5, 24.5), (3.0, 2.0, 1.0), (0.1, 0.1, 0.1))
    other = Curve((4.5, 14.5), (2.0, 1.5), (0.3, math.nan), start=20)
    path = RatePath.of_curves([other, one])
    assert path.at(np.array([0.0, 10.0, 19.9, 20.0, 50.0])) == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.3])
    assert path.progress(np.array([30.0]))[0] == pytest.approx(20 * 0.1 + 10 * 0.3)


# The annealing law


@pytest.mark.parametrize("schedule", SCHEDULES, ids=BASES)
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_the_recent_rate_is_the_published_sum_over_drops(schedule, decay):
    """arXiv 2408.11029, eq. 1, summed step by step: (1 - lambda) * S2 is the first rate less the recent one."""
    rates = [schedule(step) for step in range(2000)]
    momentum, total, annealed = 0.0, 0.0, []
    for before, rate in zip([rates[0], *rates], rates, strict=False):
        momentum = decay * momentum + (before - rate)
        total += momentum
        annealed.append((1 - decay) * total)
    found = recent_rate(RatePath.of_schedule(schedule), np.arange(2000.0), np.array([-1 / math.log(decay)]))[0]
    assert rates[0] - found == pytest.approx(annealed, abs=2e-3)


@settings(max_examples=40)
@given(paths(), st.floats(0.5, 300), st.lists(st.floats(0, 400), min_size=1, max_size=5))
def test_the_recent_rate_solves_its_equation(path, timescale, steps):
    found = recent_rate(path, np.array(steps), np.array([timescale]))[0]
    for step, value in zip(steps, found, strict=True):
        grid = np.linspace(0, step, 40001)
        middle, width = 0.5 * (grid[1:] + grid[:-1]), step / 40000
        weights = np.exp((middle - step) / timescale) * width / timescale
        start = path.rates[np.searchsorted(path.steps, 0.0, side="right") - 1] * math.exp(-step / timescale)
        assert value == pytest.approx(float(weights @ path.at(middle)) + start, abs=0.01)


def test_many_timescales_are_each_one():
    path, steps = RatePath.of_schedule(SCHEDULES[3]), np.array([0.0, 500.0, 1999.0])
    timescales = np.array([3.0, 50.0, 1e4])
    together = recent_rate(path, steps, timescales)
    for i in range(3):
        assert together[i] == pytest.approx(recent_rate(path, steps, timescales[i : i + 1])[0], rel=1e-12)


# The multi-power law


@pytest.mark.parametrize("schedule", SCHEDULES, ids=BASES)
@pytest.mark.parametrize("shape", [(0.3, 0.3, 0.5), (0.6, 0.6, 5.0), (1.0, 1.0, 50.0)])
def test_the_felt_rate_is_the_published_sum_over_drops(schedule, shape):
    """arXiv 2503.12811, eq. 3-5, drop by drop."""
    beta, gamma, scale = shape
    rates = np.array([schedule(step) for step in range(2000)])
    progress = np.cumsum(rates)
    for step in (99, 700, 1700, 1999):
        total = 0.0
        for k in range(1, step + 1):
            since = progress[step] - progress[k - 1]
            x = since * max(rates[k], 1e-3 * rates.max()) ** -gamma / scale
            total += (rates[k - 1] - rates[k]) * (1 - (1 + x) ** -beta)
        found = felt_rate(RatePath.of_schedule(schedule), np.array([step + 1.0]), np.array([shape]))[0, 0]
        assert rates[0] - found == pytest.approx(total, abs=0.004)


@given(paths(), st.integers(0, 400))
def test_a_rate_that_never_changes_is_felt_as_it_is(path, step):
    constant = RatePath(path.steps, np.full_like(path.rates, 0.4))
    nodes = np.array([[0.5, 0.5, 1.0]])
    assert felt_rate(constant, np.array([float(step)]), nodes)[0, 0] == pytest.approx(0.4)
    assert recent_rate(constant, np.array([float(step)]), np.array([30.0]))[0, 0] == pytest.approx(0.4)
