"""A training run without a network: losses in closed form, and the engine driven as the runner drives it.

The loss falls with the sum of the rates (progress) and rises with the present rate (heat), so that a decay to zero
pays; above a cliff the heat grows without bound and the loss ends as inf. Noise belongs to the batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from autolrs import engine
from autolrs.protocols import Forecasts, Observation, Strategy
from autolrs.records import (
    Curve,
    Decide,
    Decided,
    Event,
    Finish,
    Finished,
    Issued,
    Open,
    Opened,
    Probe,
    Probed,
    Record,
    Reverted,
    Settings,
    Started,
    Train,
    Trained,
    TrialState,
)
from autolrs.schedules import Schedule
from autolrs.space import SearchSpace

READ = 16
SPACE = SearchSpace("synthetic", (1e-4, 1e1), schedule="wsd")


def settings_of(steps: int, budget: float, *, space: SearchSpace = SPACE, seed: int = 0, every: int = 100) -> Settings:
    """Settings with `budget` as a share of the steps."""
    return Settings(steps, math.floor(budget * steps + 1e-9), seed, space, "any", checkpoint_every=every)


class State(NamedTuple):
    """What training changes; `batch` counts all batches of the kept run, whatever happens to the weights."""

    progress: float = 0.0
    heat: float = 0.0
    batch: int = 0


@dataclass(frozen=True)
class Problem:
    """Closed-form losses.

    Attributes:
        rate_unit: rates are measured in this.
        size, offset: loss = offset + size * (what it would be).
        cliff: rates above it diverge.   [rate_unit]
        noise: standard deviation of a batch's loss.   [size]
        spikes: batches whose loss is not finite.
    """

    rate_unit: float = 1.0
    size: float = 1.0
    offset: float = 0.0
    cliff: float = 1.0
    noise: float = 0.02
    spikes: frozenset[int] = frozenset()

    def loss(self, state: State) -> float:
        """Training loss of the next batch."""
        if state.batch in self.spikes:
            return math.nan
        return self.validation(state) + self.size * self.noise * _normal()[state.batch % len(_normal())]

    def validation(self, state: State) -> float:
        if state.heat > 1e3:
            return math.inf
        return self.offset + self.size * (0.5 + 2 / math.sqrt(1 + state.progress) + 0.5 * state.heat)

    def update(self, state: State, rate: float) -> State:
        r = rate / self.rate_unit
        heat = 10 * state.heat + r if r > self.cliff else state.heat + 0.2 * (r - state.heat)
        return State(state.progress + r, heat, state.batch + 1)


@lru_cache
def _normal() -> list[float]:
    return np.random.default_rng(7).standard_normal(4096).tolist()


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Disk:
    """What survives a kill: the events, and the checkpoints (state, last losses) by kept step."""

    events: list[Event] = field(default_factory=list)
    checkpoints: dict[int, tuple[State, tuple[float, ...]]] = field(default_factory=dict)


@dataclass
class _Segment:
    instruction: Probe | Train
    schedule: Schedule
    start: int
    stop: int
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)

    @property
    def now(self) -> int:
        return self.start + len(self.losses)


class SyntheticTrainer:
    """Executes the engine's instructions on a `Problem`, as `runner.Runner` does on a loop.

    Args:
        epoch: steps of an epoch, where the loop has one pass an epoch; probes end there.
        known: whether the loader can say how much of the epoch is left.
        disk: what an earlier trainer left; the run goes on from there.
        kill_after: die once so many events are stored.
    """

    def __init__(
        self,
        settings: Settings,
        strategy: Strategy,
        problem: Problem | None = None,
        *,
        own_rate: float = 0.1,
        validates: bool = False,
        epoch: int | None = None,
        known: bool = True,
        disk: Disk | None = None,
        kill_after: int | None = None,
    ) -> None:
        self.strategy = strategy
        self.problem = problem or Problem()
        self.own_rate = own_rate
        self.validates = validates
        self.epoch, self.known = epoch, known
        self.disk = disk or Disk()
        self.kill_after = kill_after
        self.record = engine.replay(settings, self.disk.events)
        self.state = State()
        self._mark: State | None = None
        self._candidates: dict[int, tuple[State, list[float], list[float]]] = {}
        self._tail: deque[float] = deque(maxlen=max(READ, settings.steps // 10))

    @property
    def events(self) -> list[Event]:
        return self.disk.events

    def run(self) -> Record:
        """Train to the end.

        Raises:
            Killed: at `kill_after`.
        """
        if self.record.own_rate is None:
            self._tell(Started(self.own_rate, (1.0,), self.validates))
        elif self.record.kept_steps or self.record.stages:
            step = max(step for step in self.disk.checkpoints if step <= self.record.kept_steps)
            if step < self.record.kept_steps:
                self._tell(Reverted(step, "damaged"))
            self.state = self._load(step)
        while True:
            match instruction := engine.decide(self.record, self.strategy):
                case Open():
                    self._open(instruction)
                case Probe():
                    self._probe(instruction)
                case Decide():
                    self._tell(Decided(instruction))
                case Train():
                    self._train(instruction)
                case Finish():
                    self._finish()
                    return self.record

    def _tell(self, event: Event) -> None:
        if isinstance(event, Probed) and event.state is not TrialState.DIVERGED:
            event = replace(event, forecast=self.strategy.judge(self.record, event))
        self.record = engine.apply(self.record, event)
        self.disk.events.append(event)
        if len(self.disk.events) == self.kill_after:
            raise Killed

    def _open(self, instruction: Open) -> None:
        loss, calls = None, 0
        if self.validates and instruction.evaluate:
            loss, calls = self.problem.validation(self.state), 1
        elif self._tail:
            loss = math.fsum(self._tail) / len(self._tail)
        self._mark, self._candidates = self.state, {}
        if self.record.kept_steps == 0:
            self._save(0)
        room = None
        if self.epoch and self.known:
            room = self.epoch - self.state.batch % self.epoch
        self._tell(Opened(instruction.stage, instruction.start, loss, room, calls))

    def _probe(self, probe: Probe) -> None:
        if self._mark is None:  # resumed, or back from a damaged checkpoint
            self._mark = self.state
        self.state = self._mark
        self._candidates = {n: kept for n, kept in self._candidates.items() if n == probe.incumbent}
        self._tell(Issued.of(probe))
        segment = _Segment(probe, Schedule(probe.pieces), 0, probe.length)
        points = _validation_points(probe) if self.validates else []
        while True:
            cut = self._window(segment, [probe.keep, *points])
            state, reason = None, ""
            offset = segment.now
            if not all(map(math.isfinite, segment.losses)):
                state, reason = TrialState.DIVERGED, "loss"
            elif cut:
                state, reason = TrialState.PRUNED, "the epoch ended"
            else:
                if offset == probe.keep:
                    self._candidates[probe.number] = (self.state, list(segment.losses), list(segment.rates))
                if offset in points:
                    segment.validation.append((offset, self.problem.validation(self.state)))
                if offset == segment.stop:
                    state = TrialState.COMPLETE
                elif offset % READ == 0 and (reason := self.strategy.prune(self.record, probe, self._curve(segment))):
                    state = TrialState.PRUNED
            if state is not None:
                self._end_probe(segment, probe, state, reason)
                self.state = self._mark
                return

    def _end_probe(self, segment: _Segment, probe: Probe, state: TrialState, reason: str) -> None:
        steps, objective, validation = len(segment.losses), None, None
        if state is TrialState.PRUNED and self.validates and steps and steps not in dict(segment.validation):
            segment.validation.append((steps, self.problem.validation(self.state)))
        if state is not TrialState.DIVERGED and steps:
            last = segment.losses[-max(READ, probe.length // 10) :]
            objective = segment.validation[-1][1] if segment.validation else math.fsum(last) / len(last)
        if segment.validation:
            offsets, losses = zip(*segment.validation, strict=True)
            rates = tuple(segment.rates[offset - 1] for offset in offsets)
            start = self.record.kept_steps
            validation = Curve(tuple(map(float, offsets)), losses, rates, stage=probe.stage, start=start)
        self._tell(
            Probed(
                stage=probe.stage,
                number=probe.number,
                state=state,
                steps=steps,
                curve=self._curve(segment),
                validation=validation,
                first_loss=segment.losses[0] if steps else None,
                objective=objective,
                reason=reason,
                validations=len(segment.validation),
            )
        )

    def _train(self, train: Train) -> None:
        segment = _Segment(train, Schedule(train.pieces), train.start, train.stop)
        adopted = self._candidates.get(train.adopt) if train.adopt is not None else None
        self._mark, self._candidates = None, {}
        if adopted is not None:
            self.state, segment.losses, segment.rates = adopted
        while segment.now < segment.stop:
            self._window(segment, [])
            bad = next((loss for loss in segment.losses if not math.isfinite(loss)), None)
            if bad is not None:
                event = engine.roll_back(self.record, segment.now, f"loss {bad} at step {segment.now}")
                self._tail.clear()
                self.state = self._load(event.to)._replace(batch=self.state.batch)
                self._save(event.to)
                self._tell(event)
                return
        self._tail.extend(segment.losses)
        self._save(segment.now)
        self._tell(Trained(segment.start, segment.now, self._curve(segment), adopted is not None))

    def _finish(self) -> None:
        if self.record.finished:
            return
        if self.validates:
            loss: float | None = self.problem.validation(self.state)
        else:
            loss = math.fsum(self._tail) / len(self._tail) if self._tail else None
        self._save(self.record.kept_steps)
        self._tell(Finished(loss, int(self.validates)))

    def _window(self, segment: _Segment, stops: Iterable[int]) -> bool:
        """Train to the next read; True: a probe was cut by the end of the epoch."""
        now = segment.now
        until = min(segment.stop, (now // READ + 1) * READ, *(stop for stop in stops if stop > now))
        for rate in segment.schedule.over(now, until):
            probe = isinstance(segment.instruction, Probe)
            if probe and self.epoch and segment.losses and self.state.batch % self.epoch == 0:
                return True
            segment.losses.append(self.problem.loss(self.state))
            segment.rates.append(rate)
            self.state = self.problem.update(self.state, rate)
        return False

    def _curve(self, segment: _Segment) -> Curve:
        stage = self.record.stage
        assert stage is not None
        start = segment.start if isinstance(segment.instruction, Train) else stage.start
        return Curve.reduce(segment.losses, segment.rates, stage=segment.instruction.stage, start=start)

    def _save(self, step: int) -> None:
        self.disk.checkpoints[step] = (self.state, tuple(self._tail))

    def _load(self, step: int) -> State:
        state, tail = self.disk.checkpoints[step]
        self._tail.extend(tail)
        return state


def replayed(schedule: Schedule, problem: Problem) -> State:
    """The state after plain training on `schedule`."""
    state = State()
    for step in range(schedule.steps):
        state = problem.update(state, schedule(step))
    return state


def _validation_points(probe: Probe) -> list[int]:
    return sorted({max(1, round(probe.length * j / probe.validations)) for j in range(1, probe.validations + 1)})


@dataclass(frozen=True)
class GridSampler:
    """A quick sampler without a model: rates spread over the bounds; the lowest value wins."""

    def propose(
        self,
        observations: Sequence[Observation],
        *,
        bounds: tuple[float, float],
        stage: int,
        number: int,
        seed: int,
        first: float | None = None,
    ) -> float:
        if first is not None and number == 0:
            return min(max(first, bounds[0]), bounds[1])
        x = (0.5 + 0.6180339887498949 * number) % 1.0
        return math.exp((1 - x) * math.log(bounds[0]) + x * math.log(bounds[1]))

    def best(self, observations: Sequence[Observation], *, bounds: tuple[float, float], stage: int) -> int:
        tried = [i for i, o in enumerate(observations) if o.stage == stage and not o.pending and math.isfinite(o.value)]
        return min(tried, key=lambda i: (observations[i].value, observations[i].rate))

    def optimum(self, observations: Sequence[Observation], *, bounds: tuple[float, float], stage: int) -> float:
        return observations[self.best(observations, bounds=bounds, stage=stage)].rate


@dataclass(frozen=True)
class LastLoss:
    """A curve model that expects no change; equivariant to any a * loss + b."""

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        return Forecasts(
            np.array(at, dtype=np.float64),
            np.array([curve.losses[-1] for curve in curves]),
            np.array([curve.noise for curve in curves]),
        )
