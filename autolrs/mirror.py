"""Each probe as an Optuna trial, for people and their tools.

The events are the truth and the trials follow from them: what a kill left out is made good from the events.
A trial belongs to the `Issued` event whose position it carries; a probe issued twice has two trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from autolrs.records import Decide, Decided, Event, Issued, Probed, TrialState

CRASHED: Final = {"reason": "crashed"}


class Mirror:
    """Writes the trials of one study.

    Args:
        bounds: lowest and highest rate of the search space.
        points: intermediate values a trial gets at most.
    """

    def __init__(self, storage: BaseStorage, study_id: int, bounds: tuple[float, float], points: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._bounds = bounds
        self._points = points
        self._running: dict[int, int] = {}  # position of the Issued event: trial
        self._issued: dict[tuple[int, int], tuple[int, Issued]] = {}  # not ended, by (stage, number)

    def apply(self, position: int, event: Event) -> None:
        """Show the event at `position` of the study's events."""
        if isinstance(event, Issued):
            self._fail((event.stage, event.number))
            self._issued[event.stage, event.number] = position, event
            self._running[position] = self._create(position, event, OptunaState.RUNNING)
        elif isinstance(event, Probed) and (event.stage, event.number) in self._issued:
            self._finish(*self._issued.pop((event.stage, event.number)), event)
        elif isinstance(event, Decided):
            self._storage.set_study_user_attr(self._study_id, *_sentence(event.decision))

    def creates(self, event: Event) -> bool:
        """Whether showing the event makes a trial."""
        if isinstance(event, Probed):
            position, _ = self._issued.get((event.stage, event.number), (None, None))
            return position is not None and position not in self._running
        return isinstance(event, Issued)

    def repair(self, events: Sequence[Event]) -> None:
        """Make the trials what the events say; those left running by a crash become FAIL. Changes nothing twice."""
        trials = {
            trial.user_attrs["event"]: trial
            for trial in self._storage.get_all_trials(self._study_id, deepcopy=False)
            if "event" in trial.user_attrs
        }
        self._running = {
            position: self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            for position, trial in trials.items()
            if trial.state == OptunaState.RUNNING
        }
        failed = {position for position, trial in trials.items() if trial.state == OptunaState.FAIL}
        for position, issued, probed in _probes(events):
            probe = issued.stage, issued.number
            if probed is None:
                self._issued[probe] = position, issued
                if position not in trials:
                    self._create(position, issued, OptunaState.FAIL, user_attrs=CRASHED)
                self._fail(probe)
                continue
            self._issued.pop(probe, None)
            if position not in trials or position in self._running or position in failed:
                self._finish(position, issued, probed)
        attrs = self._storage.get_study_user_attrs(self._study_id)
        sentences = dict(_sentence(event.decision) for event in events if isinstance(event, Decided))
        for key, sentence in sentences.items():
            if attrs.get(key) != sentence:
                self._storage.set_study_user_attr(self._study_id, key, sentence)

    def _fail(self, probe: tuple[int, int]) -> None:
        """A probe that was issued is not going to end: if its trial runs, it crashed."""
        if probe not in self._issued or (trial := self._running.pop(self._issued[probe][0], None)) is None:
            return
        for key, value in CRASHED.items():
            self._storage.set_trial_user_attr(trial, key, value)
        self._storage.set_trial_state_values(trial, OptunaState.FAIL)

    def _finish(self, position: int, issued: Issued, probed: Probed) -> None:
        state, value = _outcome(probed)
        attrs, values = _attributes(probed), intermediate_values(probed, self._points)
        trial = self._running.pop(position, None)
        if trial is None:  # a FAIL that ended after all, or a kill before the trial was made
            self._create(position, issued, state, value=value, user_attrs=attrs, intermediate_values=values)
            return
        for key, attr in attrs.items():
            self._storage.set_trial_user_attr(trial, key, attr)
        for step, loss in values.items():
            self._storage.set_trial_intermediate_value(trial, step, loss)
        self._storage.set_trial_state_values(trial, state, None if value is None else [value])

    def _create(
        self,
        position: int,
        issued: Issued,
        state: OptunaState,
        *,
        user_attrs: dict[str, Any] | None = None,
        **more: Any,
    ) -> int:
        low, high = min(self._bounds[0], issued.rate), max(self._bounds[1], issued.rate)
        tried: dict[str, tuple[float, BaseDistribution]] = {
            "rate": (issued.rate, FloatDistribution(low, high, log=True))
        }
        if issued.momentum is not None:
            tried["momentum"] = (issued.momentum, FloatDistribution(0.0, 1.0))
        about = {"event": position, "stage": issued.stage, "number": issued.number, "length": issued.length}
        trial = create_trial(
            state=state,
            params={name: value for name, (value, _) in tried.items()},
            distributions={name: distribution for name, (_, distribution) in tried.items()},
            user_attrs=about | (user_attrs or {}),
            **more,
        )
        return self._storage.create_new_trial(self._study_id, template_trial=trial)


def intermediate_values(probed: Probed, points: int) -> dict[int, float]:
    """At most `points` finite losses of a probe, the last one among them, by whole number of updates done."""
    curve = probed.curve
    values = {
        math.floor(offset): loss
        for offset, loss in zip(curve.offsets, curve.losses, strict=True)
        if math.isfinite(loss)
    }
    stride = max(1, math.ceil(len(values) / points))
    last = len(values) - 1
    return {step: loss for i, (step, loss) in enumerate(values.items()) if (last - i) % stride == 0}


def _outcome(probed: Probed) -> tuple[OptunaState, float | None]:
    """Optuna state and value. The value of a trial that did not complete is its last finite loss, if any."""
    forecast = probed.forecast.mean if probed.forecast else None
    for value in (forecast, probed.objective) if probed.state == TrialState.COMPLETE else ():
        if value is not None and math.isfinite(value):
            return OptunaState.COMPLETE, value
    return OptunaState.PRUNED, next(reversed(intermediate_values(probed, 1).values()), None)


def _attributes(probed: Probed) -> dict[str, Any]:
    forecast = probed.forecast
    numbers = {"steps": probed.steps, "objective": probed.objective}
    if forecast:
        numbers |= {"forecast": forecast.mean, "forecast_std": forecast.std, "forecast_at": forecast.at}
    attrs: dict[str, Any] = {key: v for key, v in numbers.items() if v is not None and math.isfinite(v)}
    reason = probed.reason or ("" if probed.state == TrialState.COMPLETE else probed.state.value)
    return attrs | ({"reason": reason} if reason else {})


def _sentence(decision: Decide) -> tuple[str, str]:
    """Name and value of the study attribute that tells a decision."""
    reason = f" ({decision.reason})" if decision.reason else ""
    return f"stage {decision.stage}", f"rate {decision.rate:.6g} until step {decision.stop}{reason}"


def _probes(events: Sequence[Event]) -> Iterator[tuple[int, Issued, Probed | None]]:
    """Every `Issued` event with its position, and the `Probed` event that ended it; None if a crash did."""
    issued: dict[tuple[int, int], tuple[int, Issued]] = {}
    for position, event in enumerate(events):
        if isinstance(event, Issued):
            if (event.stage, event.number) in issued:
                yield *issued[event.stage, event.number], None
            issued[event.stage, event.number] = position, event
        elif isinstance(event, Probed) and (event.stage, event.number) in issued:
            yield *issued.pop((event.stage, event.number)), event
    for pair in issued.values():
        yield *pair, None
