from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState as OptunaState

from autolrs.mirror import Mirror, intermediate_values
from autolrs.records import Curve, Decide, Decided, Event, Forecast, Issued, Probed, TrialState

BOUNDS = (1e-4, 1.0)


def new() -> tuple[optuna.Study, InMemoryStorage]:
    storage = InMemoryStorage()
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "x")
    return optuna.load_study(study_name="x", storage=storage), storage


def mirror_of(storage: InMemoryStorage, points: int = 50) -> Mirror:
    return Mirror(storage, 0, BOUNDS, points)


def probed(number: int, state: TrialState, losses: list[float], **more: object) -> Probed:
    curve = Curve(tuple(2 * i + 0.5 for i in range(len(losses))), tuple(losses), (0.1,) * len(losses))
    return Probed(0, number, state, 2 * len(losses), curve, **more)  # type: ignore[arg-type]


def show(storage: InMemoryStorage, *events: Event) -> None:
    mirror = mirror_of(storage)
    for position, event in enumerate(events):
        mirror.apply(position, event)


def test_a_finished_probe() -> None:
    study, storage = new()
    show(storage, Issued(0, 3, 0.1, 100))
    (trial,) = study.trials
    assert trial.state == OptunaState.RUNNING
    assert trial.params == {"rate": 0.1}
    assert trial.distributions == {"rate": optuna.distributions.FloatDistribution(*BOUNDS, log=True)}
    assert trial.user_attrs == {"event": 0, "stage": 0, "number": 3, "length": 100}
    study, storage = new()
    end = probed(3, TrialState.COMPLETE, [3.0, 2.0, 1.0], objective=1.1, forecast=Forecast(900, 0.7, 0.2))
    show(storage, Issued(0, 3, 0.1, 100), end)
    (trial,) = study.trials
    assert trial.state == OptunaState.COMPLETE
    assert trial.value == 0.7
    assert trial.intermediate_values == {0: 3.0, 2: 2.0, 4: 1.0}
    numbers = {"steps": 6, "objective": 1.1, "forecast": 0.7, "forecast_std": 0.2, "forecast_at": 900}
    assert trial.user_attrs == {"event": 0, "stage": 0, "number": 3, "length": 100} | numbers


@pytest.mark.parametrize(
    ("end", "value", "reason"),
    [
        (probed(0, TrialState.PRUNED, [3.0, 2.0], reason="cannot win", objective=2.0), 2.0, "cannot win"),
        (probed(0, TrialState.DIVERGED, [3.0, 4.0, math.inf, math.nan], objective=math.nan), 4.0, "diverged"),
        (probed(0, TrialState.DIVERGED, [math.nan]), None, "diverged"),
    ],
)
def test_a_probe_that_did_not_complete(end: Probed, value: float | None, reason: str) -> None:
    study, storage = new()
    show(storage, Issued(0, 0, 5.0, 100), end)  # outside the bounds, too
    (trial,) = study.trials
    assert trial.state == OptunaState.PRUNED
    assert trial.value == value
    assert trial.user_attrs["reason"] == reason
    assert all(map(math.isfinite, trial.intermediate_values.values()))
    assert trial.params == {"rate": 5.0}


def test_a_decision_is_told() -> None:
    study, storage = new()
    show(storage, Decided(Decide(1, 0.0123, 500, (), reason="the best of 4")))
    assert study.user_attrs == {"stage 1": "rate 0.0123 until step 500 (the best of 4)"}


@given(losses=st.lists(st.floats(width=32), max_size=60), points=st.integers(1, 50))
def test_intermediate_values_are_few_finite_and_end_with_the_last(losses: list[float], points: int) -> None:
    values = intermediate_values(probed(0, TrialState.COMPLETE, losses), points)
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert len(values) <= points
    assert list(values) == sorted(values)
    assert list(values.values())[-1:] == finite[-1:]
    assert set(values.values()) <= set(finite)
    assert len(values) == len(finite) or len(values) > points / 2 - 1


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events of a study that may have crashed at any time: probes in parallel, issued again, ended or not."""
    events: list[Event] = []
    issued: set[int] = set()
    for _ in range(draw(st.integers(0, 12))):
        number = draw(st.integers(0, 3))
        if number in issued and draw(st.booleans()):
            state = draw(st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.DIVERGED]))
            events.append(probed(number, state, [3.0, 2.0], objective=draw(st.sampled_from([None, 2.0, math.nan]))))
            issued.remove(number)
        else:
            events.append(Issued(0, number, 0.1 * (number + 1), 100))
            issued.add(number)
        if draw(st.booleans()):
            events.append(Decided(Decide(draw(st.integers(0, 1)), 0.1, draw(st.integers(1, 9)), ())))
    return events


def view(study: optuna.Study) -> dict[int, list[object]]:
    return {
        trial.user_attrs["event"]: [
            trial.state,
            trial.values,
            trial.params,
            trial.user_attrs,
            trial.intermediate_values,
        ]
        for trial in study.trials
    }


@settings(max_examples=100, deadline=None)
@given(events=histories(), data=st.data())
def test_repair_makes_of_any_torn_mirror_what_the_events_say(events: list[Event], data: st.DataObject) -> None:
    whole, storage = new()
    show(storage, *events)
    mirror_of(storage).repair(events)
    torn, storage = new()
    mirror = mirror_of(storage)
    for position, event in enumerate(events[: data.draw(st.integers(0, len(events)))]):
        if data.draw(st.integers(0, 4)):  # else killed before it could be shown, and opened again
            mirror.apply(position, event)
        else:
            mirror = mirror_of(storage)
            if data.draw(st.booleans()):
                mirror.repair(events[: position + 1])
    mirror_of(storage).repair(events)
    assert view(torn) == view(whole)
    assert torn.user_attrs == whole.user_attrs
    assert not [trial for trial in torn.trials if trial.state == OptunaState.RUNNING]
    before = torn.trials
    mirror_of(storage).repair(events)
    assert torn.trials == before


def test_a_probe_that_ends_after_all_gets_a_trial() -> None:
    study, storage = new()
    issued, end = Issued(0, 0, 0.1, 100), probed(0, TrialState.COMPLETE, [1.0], objective=1.0)
    show(storage, issued)
    mirror = mirror_of(storage)
    mirror.repair([issued])
    assert study.trials[0].state == OptunaState.FAIL
    assert study.trials[0].user_attrs["reason"] == "crashed"
    mirror.apply(1, end)
    assert [trial.state for trial in study.trials] == [OptunaState.FAIL, OptunaState.COMPLETE]
    mirror_of(storage).repair([issued, end])
    assert len(study.trials) == 2
