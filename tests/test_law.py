"""`law` as a curve model: when it acts, what it refuses, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.curves import curve_model
from autolrs.curves.law.law import FEWEST, Law
from autolrs.errors import UnknownNameError
from autolrs.protocols import CurveModel
from autolrs.records import Curve
from autolrs.schedules import Piece, Schedule
from tests.law_runs import curve_of, history_of, losses_of

LAW, PEAK, STEPS = Law(), 0.01, 1000
WSD = Schedule.build("wsd", rate=PEAK, steps=STEPS, warmup=20)
LOSSES = losses_of(WSD)
HISTORY = history_of(WSD, LOSSES, 800, noise=0.01)
REST = Schedule((Piece(0, 200, "linear", PEAK, 0.0),))


def constant(losses, start=0, rate=PEAK):
    n = len(losses)
    return Curve(tuple(map(float, range(n))), tuple(map(float, losses)), (rate,) * n, start=start)


def test_the_model_is_found_by_name():
    model = curve_model("law")
    assert isinstance(model, CurveModel)
    assert model == LAW
    with pytest.raises(UnknownNameError, match=r"unknown loss law 'chinchilla'; known: annealing, multipower"):
        Law(("chinchilla",))


# What it forecasts


@pytest.mark.parametrize("law", [Law(("annealing",)), Law(("multipower",)), LAW])
def test_the_end_of_a_decay_is_foretold_from_its_first_tenth(law):
    probe = curve_of(WSD, LOSSES, 800, 820, noise=0.01)
    found = law.extrapolate([probe], [195], schedule=REST, history=HISTORY)
    truth, last = LOSSES[995], np.mean(probe.losses[-2:])
    assert abs(found[0].mean - truth) < 0.4 * abs(last - truth)
    low, high = found.quantiles([0.05, 0.95])[0]
    assert low < truth < high


def test_the_schedule_decides():
    probe = curve_of(WSD, LOSSES, 800, 820, noise=0.01)
    stay = Schedule((Piece(0, 200, "constant", PEAK, PEAK),))
    decayed, stayed = (LAW.extrapolate([probe], [195], schedule=s, history=HISTORY)[0].mean for s in (REST, stay))
    assert decayed < stayed - 0.05


def test_without_a_schedule_the_last_rate_goes_on():
    stay = Schedule((Piece(0, 200, "constant", PEAK, PEAK),))
    probe = constant(LOSSES[800:820], start=800)
    found = LAW.extrapolate([probe], [150], history=HISTORY)[0]
    assert found.mean == pytest.approx(LAW.extrapolate([probe], [150], schedule=stay, history=HISTORY)[0].mean)


def test_a_probe_that_lies_elsewhere_moves_the_forecast_with_it():
    probe, moved = (curve_of(WSD, LOSSES + shift, 800, 820, noise=0.01) for shift in (0.0, 0.02))
    one, other = (LAW.extrapolate([p], [195], schedule=REST, history=HISTORY)[0] for p in (probe, moved))
    assert 0.005 < other.mean - one.mean < 0.05


# When it refuses


def test_rates_far_above_the_kept_runs_are_not_for_the_laws():
    known, unknown = (constant(LOSSES[800:820], start=800, rate=factor * PEAK) for factor in (2, 4))
    found = LAW.extrapolate([known, unknown], [150, 150], history=HISTORY)
    assert found[0].std < 0.2
    assert found[1].std > 1
    assert found.median[1] == pytest.approx(np.mean(unknown.losses[-2:]))


def rough(losses, noise=0.01):
    return [constant(losses + noise * np.random.default_rng(0).standard_normal(len(losses)))]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "there is no kept run yet"),
        ([constant(LOSSES[:200], rate=math.nan)], "rates of the kept run are not known"),
        ([constant(LOSSES[:200], rate=0.0)], "rates of the kept run are not known"),
        ([constant(LOSSES[100:110])], f"9 points of its loss after its first 5%, {FEWEST} are needed"),
        ([constant(LOSSES[200:400], start=200)], "not known before step 200"),
        (rough(np.linspace(2, 3, 200)), "from the first 50% of the kept run"),
        (rough(2 + np.exp(-np.arange(200) / 20), 0.001), "if the loss is taken to stay"),
        (rough(np.full(200, 2.0)), ""),
    ],
)
def test_reasons(history, reason):
    found = LAW.ready(history)
    assert reason in found
    if reason:
        assert found
        forecast = LAW.extrapolate([constant([3.0, 2.0, 2.0], start=400)], [500], history=history)
        assert forecast.median[0] == pytest.approx(2.0)
        assert forecast[0].std > 1.0


def test_a_step_in_the_loss_is_nothing_that_the_laws_know():
    """Losses of several epochs over few data fall where an epoch begins (fine-tuning)."""
    steps = np.arange(900)
    losses = 1.0 - 0.4 * (steps >= 300) - 0.4 * (steps >= 600) - 0.05 * (steps % 300) / 300
    assert LAW.ready(rough(losses)) != ""


def test_a_run_that_follows_the_law_is_accepted():
    assert LAW.ready(HISTORY) == ""
    tests = LAW.back_tests(HISTORY)
    assert [test.cut for test in tests] == [0.5, 0.75]
    for test in tests:
        assert abs(test.forecast - test.truth) < abs(test.last - test.truth)


# Laws of curve models

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(finite, finite, finite), max_size=40), finite, st.integers(0, 10**6))
def test_finite_input_never_raises_or_warns(points, at, start):
    t, y, rates = (tuple(p[i] for p in points) for i in range(3))
    found = LAW.extrapolate([Curve(t, y, rates, start=start)], [at], history=[Curve(t, y, rates)])[0]
    if points:
        assert math.isfinite(found.mean)
        assert found.std >= 0
    else:
        assert math.isnan(found.mean)
        assert found.std == math.inf


@settings(max_examples=10, deadline=None)
@given(st.floats(-5, 5), st.integers(0, 200), st.floats(0, 0.1))
def test_losses_of_any_sign_are_forecast(shift, at, noise):
    history = history_of(WSD, LOSSES + shift, 800, noise=noise)
    found = LAW.extrapolate([curve_of(WSD, LOSSES + shift, 800, 820)], [at], schedule=REST, history=history)[0]
    assert abs(found.mean - shift - 2.7) < 0.7 + 3 * noise
    assert 0 < found.std < 10


def test_losses_below_zero_are_forecast_as_those_above():
    def end(shift):
        history = history_of(WSD, LOSSES + shift, 800, noise=0.01)
        probe = curve_of(WSD, LOSSES + shift, 800, 820, noise=0.01)
        return LAW.extrapolate([probe], [195], schedule=REST, history=history)[0].mean - shift

    assert end(-4.0) == pytest.approx(end(0.0), abs=0.06)


@pytest.mark.parametrize("k", [1e-3, 20, 1e3])
@pytest.mark.parametrize("ready", [True, False])
def test_forecasts_scale_with_the_loss(k, ready):
    def scaled(curve, k):
        return Curve(curve.offsets, tuple(k * y for y in curve.losses), curve.rates, k * curve.noise, 0, curve.start)

    history = HISTORY if ready else HISTORY[:0]
    probe = curve_of(WSD, LOSSES, 800, 820, noise=0.01)
    one, other = (
        LAW.extrapolate([scaled(probe, k)], [195], schedule=REST, history=[scaled(h, k) for h in history])
        for k in (1.0, k)
    )
    levels = [0.05, 0.5, 0.95]
    assert np.log(other.quantiles(levels)) - math.log(k) == pytest.approx(np.log(one.quantiles(levels)), abs=1e-6)


@pytest.mark.parametrize("k", [1e-6, 1e4])
def test_the_unit_of_the_rate_does_not_matter(k):
    def scaled(curve):
        return Curve(
            curve.offsets, curve.losses, tuple(k * r for r in curve.rates), curve.noise, curve.stage, curve.start
        )

    probe = curve_of(WSD, LOSSES, 800, 820, noise=0.01)
    one = LAW.extrapolate([probe], [195], history=HISTORY)[0]
    other = LAW.extrapolate([scaled(probe)], [195], history=[scaled(h) for h in HISTORY])[0]
    assert (other.mean, other.std) == pytest.approx((one.mean, one.std), rel=1e-6)


def test_points_that_are_not_finite_are_ignored():
    holes = list(LOSSES[:400])
    holes[3] = holes[170] = math.nan
    kept = [i for i in range(400) if math.isfinite(holes[i])]
    bare = Curve(tuple(map(float, kept)), tuple(holes[i] for i in kept), (PEAK,) * len(kept))
    probe = curve_of(WSD, LOSSES, 800, 820, noise=0.01)
    one, other = (LAW.extrapolate([probe], [195], history=[history])[0] for history in (constant(holes), bare))
    assert one == other


def test_batches_are_the_single_forecasts():
    probes = [curve_of(WSD, LOSSES, 800, stop, noise=0.01) for stop in (803, 820, 870)]
    together = LAW.extrapolate(probes, [100, 150, 195], schedule=REST, history=HISTORY)
    for i, at in enumerate((100, 150, 195)):
        alone = LAW.extrapolate(probes[i : i + 1], [at], schedule=REST, history=HISTORY)[0]
        assert (together[i].mean, together[i].std) == pytest.approx((alone.mean, alone.std), rel=1e-12)
    assert len(LAW.extrapolate([], [])) == 0


@pytest.mark.parametrize("factor", [30.0, 1e3, 1e6])
def test_a_spike_in_a_probe_makes_a_forecast_wide_and_no_more(factor):
    """Its residual counts by its square as the law's error."""
    losses = LOSSES[800:820].copy()
    losses[-1] *= factor
    found = LAW.extrapolate([constant(losses, start=800)], [195], schedule=REST, history=HISTORY)
    low, high = found.quantiles([0.05, 0.95])[0]
    assert 0 < low < LOSSES[995] < high < 1e4 * LOSSES[995]
    assert math.isfinite(found.std[0])


def test_losses_that_are_all_zero_leave_the_forecast_uncertain():
    found = LAW.extrapolate([constant((0.0,) * 20, start=800)], [195], schedule=REST, history=HISTORY)
    assert 0.01 * found.mean[0] < found.std[0] < math.inf
