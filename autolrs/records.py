"""The values that everything else passes around: curves, forecasts, trials, stages, the record,
what the engine says (instructions) and what it is told (events).

All are frozen and hold plain Python values only, so that they survive JSON exactly: a float written by
`json.dumps` reads back as the same float. No module here does I/O or imports torch.

Notation
    step      optimizer update of the kept run, from 0                    [step]
    offset    updates since a probe's checkpoint                          [step]
    rate      reference learning rate
    loss      training or validation loss; lower is better, any sign      [loss]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, cast

from autolrs.schedules import Piece, Schedule, cut
from autolrs.space import SearchSpace

POINTS: Final = 50
"""A curve is reduced to at most this many points before it becomes part of an event."""


READ: Final = 16
"""Losses are read at every multiple of this many steps; an objective is the mean of the last max(READ, 10 %)."""

UNVALIDATED: Final = "validation loss"
"""How the reason of a probe begins that has diverged by its validation loss alone."""


class TrialState(StrEnum):
    """What became of a probe."""

    RUNNING = "running"  # issued; a crash leaves it so, and it is issued again under its own number
    COMPLETE = "complete"  # ran to its planned length
    PRUNED = "pruned"  # stopped early: it could not win
    DIVERGED = "diverged"  # its loss was not finite


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses of a probe or of a stretch of kept training, as bin means.

    Attributes:
        offsets: mean number of updates done before the losses of each bin, from the curve's start.   (n,)
        losses: mean loss of each bin.                                                                (n,)
        rates: mean reference rate of each bin.                                                       (n,)
        noise: standard deviation of a bin mean about the curve's trend, at the curve's end.
        stage: the stage whose checkpoint the curve starts from.
        start: kept step at which the curve starts.
    """

    offsets: tuple[float, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    noise: float = 0.0
    stage: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        for name in ("offsets", "losses", "rates"):
            if not isinstance(values := getattr(self, name), tuple):  # others cannot be looked up in a cache
                object.__setattr__(self, name, tuple(values))
        if not len(self.offsets) == len(self.losses) == len(self.rates):
            raise ValueError(f"{len(self.offsets)=}, {len(self.losses)=} and {len(self.rates)=} must be equal.")

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.losses))

    @classmethod
    def reduce(
        cls, losses: Sequence[float], rates: Sequence[float], *, stage: int = 0, start: int = 0, points: int = POINTS
    ) -> Curve:
        """Means over at most `points` nearly equal bins; noise from differences of the last third's neighbours.

        The fall from initialisation is no noise, and what follows is judged by how noisy a curve is at its end. A bin
        that holds a loss that is not finite is itself NaN.
        """
        n = len(losses)
        bins = min(points, n)
        edges = [round(i * n / bins) for i in range(bins + 1)] if bins else [0]
        spans = list(pairwise(edges))
        finite = [loss for loss in losses[-max(16, n // 3) :] if math.isfinite(loss)]
        # Half the mean squared first difference is the noise variance of a slowly varying curve (von Neumann 1941).
        differences = [(b - a) * (b - a) for a, b in pairwise(finite)]
        variance = 0.5 * mean_of(differences) if differences else 0.0
        return cls(
            offsets=tuple((a + b - 1) / 2 for a, b in spans),
            losses=tuple(mean_of(losses[a:b]) if _all_finite(losses[a:b]) else math.nan for a, b in spans),
            rates=tuple(mean_of(rates[a:b]) for a, b in spans),
            noise=math.sqrt(variance * bins / n) if n else 0.0,
            stage=stage,
            start=start,
        )


def _all_finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def mean_of(values: Sequence[float]) -> float:
    """Their mean; of huge ones, too."""
    try:
        return math.fsum(values) / len(values)
    except OverflowError:  # a diverging loss in double precision, just before it is inf
        return math.fsum(value / len(values) for value in values)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a curve is expected to be at `at` updates after its start: mean and standard deviation [loss]."""

    at: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One probe: a candidate rate tried from a stage's checkpoint.

    Attributes:
        number: position among the stage's probes, from 0.
        length: planned updates; `steps` were really issued.
        momentum: tried instead of the optimizer's own; None: its own.
        objective: measured loss at its end (validation if there is one, else mean of the last training losses).
        forecast: the loss that the strategy expects of this rate at its horizon; None if the probe diverged.
        whole: it is a complete run in small, whose end may become the final state.
    """

    stage: int
    number: int
    rate: float
    length: int
    state: TrialState = TrialState.RUNNING
    steps: int = 0
    curve: Curve | None = None
    validation: Curve | None = None
    first_loss: float | None = None
    objective: float | None = None
    forecast: Forecast | None = None
    reason: str = ""
    momentum: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of kept training with one decision.

    Attributes:
        start: kept step at which the stage starts.
        start_loss: objective at the start; None until known (no validation, no kept loss yet).
        room: updates that a probe may take at most (the user's own epoch ends there); None if unlimited.
        rate: the chosen rate, lowered by roll-backs; None while undecided.
        stop: kept step at which the stage ends; None while undecided.
        winner: number of the trial whose rate was chosen; None if it was nobody's.
        adopt: updates of the winner's probe that become kept training (0: restart from the checkpoint).
        reason: why, in one line for people.
        momentum: the chosen one; None: the optimizer's own.
    """

    index: int
    start: int
    start_loss: float | None = None
    room: int | None = None
    trials: tuple[Trial, ...] = ()
    rate: float | None = None
    stop: int | None = None
    winner: int | None = None
    adopt: int = 0
    reason: str = ""
    momentum: float | None = None

    @property
    def decided(self) -> bool:
        return self.stop is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for; together with the events it determines every decision.

    Attributes:
        steps: kept updates of the whole run.
        budget: probe updates at most.
        strategy: its name, and its parameters as plain values in `options`.
        curve_model: name of the curve model.
        average: whether an average of the kept weights may become the final ones.
        restore_best: whether the end of a probe may, if the whole run ends higher.
        rescue: whether a kept run that breaks with a finite loss is rolled back.
        lookahead: whether slow weights follow the optimizer's (`lookahead`), in probes and kept steps alike.
    """

    steps: int
    budget: int
    seed: int
    space: SearchSpace
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    curve_model: str = "auto"
    checkpoint_every: int = 0
    average: bool = False
    restore_best: bool = True
    rescue: bool = True
    lookahead: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished stretch [start, stop) of kept training."""

    start: int
    stop: int
    curve: Curve
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The state of a tuning run: `apply(record, event)` makes the next one, `decide(record)` reads it."""

    settings: Settings
    own_rate: float | None = None  # reference group's rate in the user's optimizer
    own_momentum: float | None = None  # None: it has none that could be changed
    sums_gradients: bool = False  # and its updates grow with the momentum
    ratios: tuple[float, ...] = ()
    validates: bool = False
    stages: tuple[Stage, ...] = ()
    pieces: tuple[Piece, ...] = ()
    kept: tuple[Kept, ...] = ()
    kept_steps: int = 0
    discarded_steps: int = 0
    lost_steps: int = 0
    validation_calls: int = 0
    roll_backs: tuple[str, ...] = ()
    breaks: int = 0  # roll-backs whose loss was finite
    back_to: int | None = None  # kept step that the last roll-back went to
    moved: tuple[str, ...] = ()  # other conditions that the run was resumed under
    wall_seconds: float = 0.0
    finished: bool = False
    final_loss: float | None = None
    average: float | None = None  # the final weights are the average with this power
    plain_loss: float | None = None  # validation loss of the last step's weights, if there was a choice
    early: Probe | None = None  # the final weights are those at this probe's end

    @property
    def probe_steps(self) -> int:
        """Probe updates issued so far, adopted ones included."""
        return sum(trial.steps for stage in self.stages for trial in stage.trials)

    @property
    def adopted_steps(self) -> int:
        """Probe updates that became kept ones."""
        return sum(part.stop - part.start for part in self.kept if part.adopted)

    @property
    def started(self) -> Started | None:
        """What the loop began with; None: it has not begun."""
        if self.own_rate is None:
            return None
        return Started(self.own_rate, self.ratios, self.validates, self.own_momentum, self.sums_gradients)

    @property
    def stage(self) -> Stage | None:
        return self.stages[-1] if self.stages else None

    @property
    def schedule(self) -> Schedule | None:
        """Rates of the kept run, used and planned so far; None until the first decision."""
        return self._schedule(self.pieces, self.momentum) if self.pieces else None

    @property
    def final_schedule(self) -> Schedule | None:
        """Rates that lead to the final weights: the kept run's, unless those are a probe's."""
        early = self.early
        if early is None:
            return self.schedule
        start = self.stages[early.stage].start
        pieces = (*cut(self.pieces, 0, start), *(piece.shifted(start) for piece in early.pieces))
        return self._schedule(pieces, early.momentum)

    def _schedule(self, pieces: tuple[Piece, ...], momentum: float | None) -> Schedule:
        return Schedule(pieces, self.ratios or (1.0,), momentum, self.settings.lookahead)

    @property
    def momentum(self) -> float | None:
        """The momentum decided on; None: the optimizer's own."""
        return next((stage.momentum for stage in reversed(self.stages) if stage.decided), None)


# Instructions: what the engine wants done next. A session obeys, and reports back with an event.


@dataclass(frozen=True, slots=True)
class Open:
    """Snapshot the kept state here: a stage begins. `evaluate`: measure its start loss."""

    stage: int
    start: int
    evaluate: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """From the stage's checkpoint train `length` updates on `pieces` (offsets), then report and rewind.

    Attributes:
        keep: keep the state after this many updates, so that it may be adopted; 0: never.
        validations: validation points spread over the probe, the last one at its end.
        incumbent: trial whose kept state must stay in memory; others may go.
        momentum: instead of the optimizer's own; None: its own.
        whole: it is a complete run in small, whose end may become the final state.
    """

    stage: int
    number: int
    rate: float
    length: int
    pieces: tuple[Piece, ...]
    keep: int = 0
    validations: int = 1
    incumbent: int | None = None
    momentum: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Decide:
    """Close the search of a stage: train with `rate` on `pieces` (kept steps, from the stage's start) to `stop`."""

    stage: int
    rate: float
    stop: int
    pieces: tuple[Piece, ...]
    winner: int | None = None
    adopt: int = 0
    reason: str = ""
    momentum: float | None = None


@dataclass(frozen=True, slots=True)
class Train:
    """Train the kept run from `start` to `stop`. `adopt`: that trial's kept state, if in memory, is the result."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]
    stage: int = 0
    adopt: int | None = None
    momentum: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """All planned steps are done."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a probe that is in flight has ended."""


Instruction = Open | Probe | Decide | Train | Finish | Wait


# Events: what happened, in order. The list of events is the study.


@dataclass(frozen=True, slots=True)
class Started:
    """The loop reached its first batch: what the session found in the user's optimizer."""

    own_rate: float
    ratios: tuple[float, ...]
    validates: bool
    momentum: float | None = None
    sums_gradients: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    stage: int
    start: int
    start_loss: float | None = None
    room: int | None = None
    validations: int = 0


@dataclass(frozen=True, slots=True)
class Issued:
    """A probe is about to run: a crash from here on leaves it RUNNING."""

    stage: int
    number: int
    rate: float
    length: int
    momentum: float | None = None
    whole: bool = False

    @classmethod
    def of(cls, probe: Probe) -> Issued:
        return cls(probe.stage, probe.number, probe.rate, probe.length, probe.momentum, probe.whole)


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe ended. `forecast` is filled in by the strategy before the event is stored."""

    stage: int
    number: int
    state: TrialState
    steps: int
    curve: Curve
    validation: Curve | None = None
    first_loss: float | None = None
    objective: float | None = None
    reason: str = ""
    validations: int = 0
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    decision: Decide


@dataclass(frozen=True, slots=True)
class Trained:
    """Kept steps [start, stop) are done and their checkpoint is on disk."""

    start: int
    stop: int
    curve: Curve
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The kept run diverged at step `at` and went back to step `to`; its rate was multiplied by `factor`.

    Attributes:
        finite: its loss was; it broke.
    """

    at: int
    to: int
    factor: float
    reason: str
    finite: bool = False


@dataclass(frozen=True, slots=True)
class Reverted:
    """The checkpoint of the last kept step is damaged: kept training goes on from step `to`, to the same end."""

    to: int
    reason: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The run goes on under other conditions (thread count, versions, device): no longer bit for bit the same."""

    changes: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Updates that a crash threw away."""

    steps: int


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Wall time of a session that has ended or stopped."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """All kept steps are done.

    Attributes:
        average: power of the average (`averages`) that the final weights are; None: they are the last step's.
        plain_loss: validation loss of the last step's weights, if the final ones were chosen among several.
        early: the probe at whose end the final weights were; None: at the run's.
    """

    final_loss: float | None
    validations: int = 0
    average: float | None = None
    plain_loss: float | None = None
    early: Probe | None = None


Event = (
    Started | Opened | Issued | Probed | Decided | Trained | RolledBack | Reverted | Moved | Lost | Elapsed | Finished
)

_TYPES: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (
        *(Piece, Curve, Forecast, Trial, Stage, SearchSpace, Settings, Decide, Probe),
        *(Started, Opened, Issued, Probed, Decided, Trained, RolledBack, Reverted, Moved, Lost, Elapsed, Finished),
    )
}


def to_json(value: Any) -> Any:
    """A record, event or part of one as JSON values; `from_json` gives back an equal one.

    Floats that are not finite become strings, so that the JSON is standard.
    """
    if type(value) is (cls := _TYPES.get(type(value).__name__)):
        return {"type": cls.__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(cast(Any, cls))}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        items = {str(key): to_json(item) for key, item in value.items()}
        return {"type": "map", "items": items} if "type" in items else items
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return {"type": "float", "value": str(value)}
    return value


def from_json(data: Any) -> Any:
    """Inverse of `to_json`. Unknown keys raise `TypeError`: a newer format is not guessed at."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if data.get("type") == "float":
        return float(data["value"])
    if data.get("type") == "map":
        return {key: from_json(item) for key, item in data["items"].items()}
    values = {key: from_json(item) for key, item in data.items() if key != "type"}
    if "type" not in data:
        return values
    if "state" in values:
        values["state"] = TrialState(values["state"])
    return _TYPES[data["type"]](**values)
