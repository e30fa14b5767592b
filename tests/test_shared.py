"""The law that siblings share: curves made by such a law, what it may not say, and the laws it obeys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.curves.shared import FEWEST, gains
from autolrs.records import Curve

RATES = np.geomspace(1e-3, 1.0, 8)
STEPS = np.arange(10.0, 1001.0, 20.0)


def curve(losses, offsets=STEPS):
    losses = np.asarray(losses, float)
    return Curve(tuple(map(float, offsets[: len(losses)])), tuple(map(float, losses)), (0.1,) * len(losses))


def law(rate, t, excess=0.5):
    """Falls as a power of the distance; higher rates are held higher."""
    return 0.3 + 2.0 * (1.0 + rate * t) ** -0.5 + excess * math.sqrt(rate)


def made(law, rates=RATES):
    return [curve(law(rate, STEPS)) for rate in rates]


def truths(law, at, rates=RATES):
    return np.log([law(rate, at) / law(rate, STEPS[-1]) for rate in rates])


def horizon(at, n=8):
    return np.full(n, float(at))


def test_gains_of_a_shared_law_are_read_from_the_siblings():
    found, truth = gains(made(law), RATES, horizon(5000)), truths(law, 5000)
    # A slow rate has ahead what a fast one has behind; only the fastest goes where nobody has been.
    np.testing.assert_allclose(found[:-1], truth[:-1], atol=0.05)
    assert np.abs(truth).max() > 0.4


def test_slow_rates_have_most_to_gain_and_fast_ones_are_held_by_their_noise():
    def noisy(rate, t):
        return 2.0 * np.exp(-5.0 * rate * t / STEPS[-1]) + rate

    rates = np.geomspace(0.1, 10.0, 6)
    found = gains(made(noisy, rates), rates, horizon(3000, 6))
    assert found[0] < -0.3
    assert found[-1] == pytest.approx(0.0, abs=0.02)
    ends = np.array([noisy(rate, STEPS[-1]) for rate in rates])
    assert ends.argmin() != np.argmin([noisy(rate, 3000.0) for rate in rates])
    assert (ends * np.exp(found)).argmin() == np.argmin([noisy(rate, 3000.0) for rate in rates])


def test_it_is_not_believed_where_the_probes_do_not_do_what_it_says():
    # Levels fall with the rate as if on one way, but no probe moves along it.
    flat = [curve(np.full(50, level)) for level in np.linspace(2.0, 1.0, 8)]
    np.testing.assert_allclose(gains(flat, RATES, horizon(5000)), 0.0, atol=1e-12)


def test_probes_that_blow_up_neither_teach_nor_are_taught():
    well, bad = made(law), curve(np.geomspace(2.0, 50.0, 50))
    found = gains([*well, bad], np.append(RATES, 5.0), horizon(5000, 9))
    np.testing.assert_array_equal(found[:-1], gains(well, RATES, horizon(5000)))
    assert found[-1] == 0.0


def test_few_probes_have_no_law():
    assert FEWEST == 3
    assert not gains(made(law)[:2], RATES[:2], horizon(5000, 2)).any()
    assert gains(made(law)[:3], RATES[:3], horizon(5000, 3)).any()
    assert gains([], np.empty(0), np.empty(0)).shape == (0,)


def test_where_the_horizon_is_seen_nothing_is_left_to_gain():
    np.testing.assert_array_equal(gains(made(law), RATES, horizon(STEPS[-1])), 0.0)
    np.testing.assert_array_equal(gains(made(law), RATES, horizon(5)), 0.0)


# Laws


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.randoms())
def test_units_and_the_order_of_the_probes_do_not_matter(loss, rate, time, random):
    loss, rate, time = (10.0**x for x in (loss, rate, time))
    curves, found = made(law), gains(made(law), RATES, horizon(4000))
    scaled = [curve(loss * np.array(c.losses), time * STEPS) for c in curves]
    np.testing.assert_allclose(gains(scaled, rate * RATES, horizon(4000 * time)), found, atol=1e-6)
    order = random.sample(range(len(curves)), len(curves))
    moved = gains([curves[i] for i in order], RATES[order], horizon(4000))
    np.testing.assert_allclose(moved, found[order], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(), max_size=30), st.floats(1e-300, 1e300), st.floats(0, 1e300)),
        max_size=6,
    )
)
def test_any_input_gives_finite_gains_without_a_warning(rows):
    curves = [curve(losses) for losses, _, _ in rows]
    rates, at = (np.array([row[i] for row in rows], dtype=float) for i in (1, 2))
    assert np.isfinite(gains(curves, rates, at)).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0.5, 2), min_size=8, max_size=50), min_size=3, max_size=8))
def test_nothing_rises_by_the_law(losses):
    rates = np.geomspace(1e-3, 1.0, len(losses))
    assert (gains([curve(x) for x in losses], rates, horizon(3000, len(losses))) <= 1e-9).all()
