"""Records: curves as bin means, and an exact way through JSON."""

from __future__ import annotations

import json
import math
import statistics
from typing import get_args

import numpy as np
import pytest
from example_record import SETTINGS, example_events, example_record
from hypothesis import given
from hypothesis import strategies as st

from autolrs.records import (
    POINTS,
    Curve,
    Decide,
    Decided,
    Elapsed,
    Event,
    Finished,
    Forecast,
    Issued,
    Kept,
    Lost,
    Moved,
    Opened,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Settings,
    Stage,
    Started,
    Trained,
    Trial,
    TrialState,
    from_json,
    to_json,
)
from autolrs.schedules import base_pieces
from autolrs.space import SearchSpace

FLOAT = st.floats()  # NaN and inf, too
LOSSES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)
COUNT = st.integers(0, 10**9)
TEXT = st.text(max_size=8)
OPTIONAL = FLOAT | st.none()
CURVE = st.lists(st.tuples(FLOAT, FLOAT, FLOAT), max_size=4).flatmap(
    lambda rows: st.builds(Curve, *(st.just(tuple(column)) for column in list(zip(*rows, strict=True)) or [(), (), ()]))
)
FORECAST = st.builds(Forecast, FLOAT, FLOAT, FLOAT)
STATE = st.sampled_from(TrialState)
PIECES = st.builds(
    lambda base, rate, start, length: base_pieces(base, rate=rate, start=start, stop=start + length, warmup=3),
    st.sampled_from(("wsd", "cosine")),
    st.floats(0, 1e3),
    st.integers(0, 1000),
    st.integers(1, 1000),
)
DECIDE = st.builds(Decide, COUNT, FLOAT, COUNT, PIECES, st.none() | COUNT, COUNT, TEXT)
PROBED = st.builds(
    Probed,
    stage=COUNT,
    number=COUNT,
    state=STATE,
    steps=COUNT,
    curve=CURVE,
    validation=CURVE | st.none(),
    first_loss=OPTIONAL,
    objective=OPTIONAL,
    reason=TEXT,
    validations=COUNT,
    forecast=FORECAST | st.none(),
)
EVENTS = {
    Started: st.builds(Started, FLOAT, st.lists(FLOAT).map(tuple), st.booleans()),
    Opened: st.builds(Opened, COUNT, COUNT, OPTIONAL, COUNT | st.none(), COUNT),
    Issued: st.builds(Issued, COUNT, COUNT, FLOAT, COUNT),
    Probed: PROBED,
    Decided: st.builds(Decided, DECIDE),
    Trained: st.builds(Trained, COUNT, COUNT, CURVE, st.booleans()),
    RolledBack: st.builds(RolledBack, COUNT, COUNT, FLOAT, TEXT),
    Reverted: st.builds(Reverted, COUNT, TEXT),
    Lost: st.builds(Lost, COUNT),
    Moved: st.builds(Moved, st.text()),
    Elapsed: st.builds(Elapsed, FLOAT),
    Finished: st.builds(Finished, OPTIONAL, COUNT, OPTIONAL, OPTIONAL),
}
PARAMS = st.dictionaries(
    st.sampled_from(("type", "state", "value", "items", "name")) | TEXT,
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    max_size=4,
)


def through_json(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


# Curves


@given(LOSSES, st.integers(1, 60))
def test_bins_are_nearly_equal_and_hold_every_step_once(losses, points):
    curve = Curve.reduce(losses, losses, points=points)
    n = len(losses)
    assert len(curve) == min(n, points)
    assert curve.rates == curve.losses
    # Each bin's mean offset gives back where it began and ended.
    begin = 0
    for offset, loss in zip(curve.offsets, curve.losses, strict=True):
        end = round(2 * offset) + 1 - begin
        assert n // len(curve) <= end - begin <= -(-n // len(curve))
        assert loss == pytest.approx(statistics.fmean(losses[begin:end]), rel=1e-12, abs=1e-9)
        begin = end
    assert begin == n


@given(LOSSES)
def test_a_short_curve_is_itself(losses):
    losses = losses[:POINTS]
    curve = Curve.reduce(losses, [0.1] * len(losses), stage=3, start=40)
    assert curve.losses == tuple(losses)
    assert curve.offsets == tuple(map(float, range(len(losses))))
    assert (curve.stage, curve.start) == (3, 40)
    assert curve.finite


def test_the_noise_is_that_of_a_bin_mean():
    rng = np.random.default_rng(0)
    trend = 5 * np.exp(-np.arange(5000) / 2000)
    curve = Curve.reduce((trend + rng.normal(0, 0.3, 5000)).tolist(), [1.0] * 5000)
    assert curve.noise == pytest.approx(0.3 / math.sqrt(5000 / POINTS), rel=0.05)
    means = np.array(curve.losses) - 5 * np.exp(-np.array(curve.offsets) / 2000)
    assert means.std() == pytest.approx(curve.noise, rel=0.3)
    assert Curve.reduce([2.0] * 500, [1.0] * 500).noise == 0.0
    assert Curve.reduce([2.0], [1.0]).noise == 0.0


def test_an_empty_curve():
    curve = Curve.reduce([], [])
    assert len(curve) == 0
    assert curve.losses == curve.offsets == curve.rates == ()
    assert curve.finite


@given(st.lists(st.floats(), min_size=1, max_size=120))
def test_any_losses_make_a_curve(losses):
    """A diverging loss in double precision comes near the largest float before it is inf."""
    curve = Curve.reduce(losses, [1.0] * len(losses), points=7)
    assert curve.finite == all(map(math.isfinite, losses))
    assert curve.noise >= 0


@given(LOSSES, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_a_curve_is_equivariant(losses, a, b):
    rates = [1.0] * len(losses)
    curve, moved = (Curve.reduce(values, rates, points=9) for values in (losses, [a * loss + b for loss in losses]))
    size = a * max(map(abs, losses)) + abs(b)
    assert moved.losses == pytest.approx([a * loss + b for loss in curve.losses], abs=1e-9 * size)
    assert moved.noise == pytest.approx(a * curve.noise, rel=1e-6, abs=1e-6 * size)


def test_a_bin_with_a_loss_that_is_not_finite_is_nan():
    losses = [1.0] * 100
    losses[55] = math.inf
    curve = Curve.reduce(losses, [0.1] * 100, points=10)
    assert [math.isnan(loss) for loss in curve.losses] == [False] * 5 + [True] + [False] * 4
    assert not curve.finite


def test_a_curve_has_as_many_of_everything():
    with pytest.raises(ValueError, match="must be equal"):
        Curve((0.0, 1.0), (1.0,), (0.1,))


# JSON


def test_every_event_is_generated_below():
    assert set(get_args(Event)) == set(EVENTS)


@given(st.one_of(*EVENTS.values()))
def test_an_event_survives_json(event):
    again = through_json(event)
    assert type(again) is type(event)
    assert repr(again) == repr(event)


@given(PARAMS, PARAMS)
def test_settings_survive_json_whatever_their_names_are(params, options):
    space = SearchSpace("a", (1e-4, 0.1), params=params)
    settings = Settings(100, 30, 0, space, "horizon", options | {"later": (0.3, 0.5), "sampler": options})
    assert through_json(settings) == settings


def test_a_whole_record_survives_json_in_parts():
    record = example_record()
    assert through_json(record.settings) == SETTINGS
    assert repr(through_json(record.stages)) == repr(record.stages)  # unlike ==, NaN is NaN
    assert isinstance(record.stages[0], Stage)
    assert isinstance(record.stages[0].trials[0], Trial)
    assert through_json(record.pieces) == record.pieces
    assert [repr(through_json(event)) for event in example_events()] == [repr(event) for event in example_events()]


def test_a_float_is_exact():
    for value in (0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, math.pi):
        assert repr(through_json(Elapsed(value)).seconds) == repr(value)


def test_a_newer_format_is_not_guessed_at():
    with pytest.raises(TypeError, match="colour"):
        from_json({"type": "Lost", "steps": 3, "colour": "red"})
    with pytest.raises(KeyError, match="Gained"):
        from_json({"type": "Gained", "steps": 3})


# Records


def test_counts_of_steps():
    record = Record(SETTINGS)
    assert (record.probe_steps, record.adopted_steps, record.stage, record.schedule) == (0, 0, None, None)
    trials = (Trial(0, 0, 0.1, 40, TrialState.COMPLETE, 40), Trial(0, 1, 0.2, 40, TrialState.DIVERGED, 7))
    kept = (Kept(0, 24, Curve.reduce([], []), True), Kept(24, 100, Curve.reduce([], [])))
    stages = (Stage(0, 0, trials=trials), Stage(1, 100, trials=(Trial(1, 0, 0.1, 40),)))
    record = Record(SETTINGS, stages=stages, kept=kept, kept_steps=100)
    assert record.probe_steps == 47
    assert record.adopted_steps == 24
    assert record.stage == stages[1]
    assert not stages[1].decided


def test_the_schedule_has_the_groups_ratios():
    record = example_record()
    assert record.schedule is not None
    assert record.schedule.steps == record.settings.steps
    assert record.schedule.rates(500) == (record.schedule(500), 0.1 * record.schedule(500))


def test_a_curve_of_lists_and_arrays_is_one_of_tuples():
    made = Curve([0.0, 1.0], np.array([2.0, 1.0]), [0.1, 0.1])  # type: ignore[arg-type]
    assert made == Curve((0.0, 1.0), (2.0, 1.0), (0.1, 0.1))
    assert hash(made) == hash(Curve((0.0, 1.0), (2.0, 1.0), (0.1, 0.1)))
