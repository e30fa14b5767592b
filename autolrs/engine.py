"""The engine: a pure state machine.

`apply(record, event)` says what the record is after an event, `decide(record, strategy)` what to do next.
Neither does I/O, keeps state or draws from a generator, so a study killed after any event goes on as if
nothing had happened: replay its events, ask `decide` again.

    nothing ──Open──> stage searched ──Probe*──> Decide ──Train*──> next stage, or Finish

A `Decide` is not work: whoever runs the engine turns it into a `Decided` event and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from autolrs.errors import DivergedError, SettingError
from autolrs.protocols import Strategy
from autolrs.records import (
    Decide,
    Decided,
    Elapsed,
    Event,
    Finish,
    Finished,
    Instruction,
    Issued,
    Kept,
    Lost,
    Moved,
    Open,
    Opened,
    Probe,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Settings,
    Stage,
    Started,
    Train,
    Trained,
    Trial,
    TrialState,
    Wait,
)
from autolrs.schedules import base_pieces, cut

ROLL_BACKS: Final = 3
"""The kept run may diverge this often; the next time is an error."""
BREAKS: Final = 2
"""It may break with a finite loss this often; after that it goes on as it is."""
ROLL_BACK_FACTOR: Final = 0.5
"""What a roll-back multiplies the rest of the schedule by."""


def replay(settings: Settings, events: Iterable[Event]) -> Record:
    """The record after all `events` of a study."""
    record = Record(settings)
    for event in events:
        record = apply(record, event)
    return record


def apply(record: Record, event: Event) -> Record:
    """The record after `event`.

    Raises:
        ValueError: the event cannot happen in this record: the study's events are out of order.
    """
    return _APPLY[type(event)](record, event)


def decide(
    record: Record, strategy: Strategy, *, in_flight: Collection[int] = frozenset(), batch: int = 0
) -> Instruction:
    """What to do next. The same arguments always give the same answer.

    Args:
        in_flight: probes of the open stage, by number, that somebody is at work on. Others that are RUNNING were lost
            in a crash, and are said again.
        batch: probes that are proposed without waiting for each other, in `deterministic` runs: a proposal then
            depends on the finished batches alone (see `before_batch`). 0: on all that has ended.

    Raises:
        DivergedError: the loss is not finite at any rate.
        SettingError: the strategy asks for more probe steps than the budget has left.
    """
    settings, stage = record.settings, record.stage
    if record.kept_steps >= settings.steps:
        return Finish()
    if stage is not None:
        if record.kept_steps < stage.start:  # a damaged checkpoint took us back before the open stage
            return _train(record, stage.start)
        if stage.stop is not None and record.kept_steps < stage.stop:
            return _train(record, stage.stop)
    if settings.budget == 0:
        return _plain(record)
    instruction = _ask(record, strategy, frozenset(in_flight), batch)
    new = isinstance(instruction, Probe) and stage is not None and instruction.number == len(stage.trials)
    if isinstance(instruction, Probe) and new and instruction.length > remaining(record):
        raise SettingError(
            f"strategy {strategy.name!r} asked for a probe of {instruction.length} steps in stage "
            f"{instruction.stage}, but {remaining(record)} of the budget of {settings.budget} are left."
        )
    return instruction


def _ask(record: Record, strategy: Strategy, in_flight: frozenset[int], batch: int) -> Instruction:
    """The strategy's answer, in the light of what is in flight."""
    stage = record.stage
    if stage is None or stage.decided:
        return strategy.decide(record)
    running = {trial.number for trial in stage.trials if trial.state is TrialState.RUNNING}
    if not running - in_flight:  # else one was lost, and comes first
        begun = len(stage.trials)
        unfinished = frozenset(range(first_of_batch(begun, batch), begun)) if batch > 1 else running
        if batch > 1 and running and not unfinished:
            return Wait()  # the batch is issued, and not all of it has ended
        if unfinished:
            instruction = strategy.decide(before_batch(record, begun, batch), unfinished)
            # That the batch is issued as far as the budget goes says nothing of what its probes, ended early, save.
            return instruction if isinstance(instruction, Probe) or running else strategy.decide(record)
    return strategy.decide(record, in_flight) if in_flight else strategy.decide(record)


def first_of_batch(number: int, batch: int) -> int:
    """Number of the first probe in the batch that probe `number` belongs to; itself without batches."""
    return number - number % batch if batch else number


def before_batch(record: Record, number: int, batch: int) -> Record:
    """The record as if probe `number`'s batch had not ended yet: what its rate, and its pruning, may depend on.

    Which probes of a batch end first is chance, and which are run again after a fault, too. Without batches it is the
    record itself.
    """
    stage = record.stage
    if batch <= 1 or stage is None:
        return record
    first = first_of_batch(number, batch)
    masked = (
        Trial(trial.stage, trial.number, trial.rate, trial.length, momentum=trial.momentum, whole=trial.whole)
        for trial in stage.trials[first:]
    )
    return _with_stage(record, replace(stage, trials=(*stage.trials[:first], *masked)))


def remaining(record: Record) -> int:
    """Probe steps that the budget has left; a running probe counts as its whole length."""
    running = sum(t.length for s in record.stages for t in s.trials if t.state is TrialState.RUNNING)
    return record.settings.budget - record.probe_steps - running


def roll_back(record: Record, at: int, reason: str, *, to: int | None = None, finite: bool = False) -> RolledBack:
    """What to do when the kept run, come to step `at`, diverged.

    Args:
        to: kept step to go back to; None: that of the record.
        finite: the loss is; it broke.

    Raises:
        DivergedError: the loss is not finite, for more than the `ROLL_BACKS`-th time.
    """
    if not finite and len(record.roll_backs) - record.breaks >= ROLL_BACKS:
        raise DivergedError(
            f"the kept run diverged again ({reason}) after {ROLL_BACKS} roll-backs ({'; '.join(record.roll_backs)}). "
            f"All is kept up to step {record.kept_steps}; look at the data near that step, or lower the "
            "space's upper bound and start a new study."
        )
    to = record.kept_steps if to is None else to
    return RolledBack(at=at, to=to, factor=ROLL_BACK_FACTOR, reason=reason, finite=finite)


def _train(record: Record, stop: int) -> Train:
    """Train on: first the adopted prefix, then from checkpoint to checkpoint."""
    start, stage = record.kept_steps, record.stage
    every = record.settings.checkpoint_every or record.settings.steps
    end = min(stop, (start // every + 1) * every)
    if stage is not None and stage.adopt and start == stage.start:
        end = start + stage.adopt
        return Train(start, end, record.pieces, stage.index, adopt=stage.winner, momentum=record.momentum)
    return Train(start, end, record.pieces, stage.index if stage else 0, momentum=record.momentum)


def _plain(record: Record) -> Instruction:
    """No budget: the base schedule at the optimizer's own rate, exactly as a plain loop would do it."""
    if record.stage is None:
        return Open(stage=0, start=0, evaluate=False)
    settings, rate = record.settings, record.own_rate
    assert rate is not None
    space = settings.space
    pieces = base_pieces(
        space.schedule,
        rate=rate,
        start=0,
        stop=settings.steps,
        warmup=round(space.warmup * settings.steps),
        decay=space.decay,
    )
    return Decide(0, rate, settings.steps, pieces, reason="no search budget: the optimizer's own rate")


def _started(record: Record, event: Started) -> Record:
    return replace(
        record,
        own_rate=event.own_rate,
        ratios=event.ratios,
        validates=event.validates,
        own_momentum=event.momentum,
        sums_gradients=event.sums_gradients,
    )


def _opened(record: Record, event: Opened) -> Record:
    over = record.stage is None or record.stage.stop == record.kept_steps
    _expect(over and event.stage == len(record.stages) and event.start == record.kept_steps, record, event)
    stage = Stage(event.stage, event.start, event.start_loss, event.room)
    calls = record.validation_calls + event.validations
    return replace(record, stages=(*record.stages, stage), validation_calls=calls)


def _issued(record: Record, event: Issued) -> Record:
    stage = _searched(record, event, event.stage)
    trial = Trial(event.stage, event.number, event.rate, event.length, momentum=event.momentum, whole=event.whole)
    before = next(iter(stage.trials[event.number : event.number + 1]), None)
    # Issued again after a crash; by an older version, which knew no `whole`, before it.
    if before in (trial, replace(trial, whole=False)):
        trials = (*stage.trials[: trial.number], trial, *stage.trials[trial.number + 1 :])
        return _with_stage(record, replace(stage, trials=trials))
    _expect(event.number == len(stage.trials) and record.kept_steps == stage.start, record, event)
    return _with_stage(record, replace(stage, trials=(*stage.trials, trial)))


def _probed(record: Record, event: Probed) -> Record:
    stage = _searched(record, event, event.stage)
    running = [trial for trial in stage.trials if trial.state is TrialState.RUNNING and trial.number == event.number]
    _expect(len(running) == 1 and 0 <= event.steps <= running[0].length, record, event)
    trial = replace(
        running[0],
        state=event.state,
        steps=event.steps,
        curve=event.curve,
        validation=event.validation,
        first_loss=event.first_loss,
        objective=event.objective,
        forecast=event.forecast,
        reason=event.reason,
    )
    trials = (*stage.trials[: event.number], trial, *stage.trials[event.number + 1 :])
    # Without validation, and before any kept step, the first loss of any probe is the loss at the start.
    start_loss = event.first_loss if stage.start_loss is None else stage.start_loss
    record = replace(record, validation_calls=record.validation_calls + event.validations)
    return _with_stage(record, replace(stage, trials=trials, start_loss=start_loss))


def _decided(record: Record, event: Decided) -> Record:
    decision = event.decision
    stage = _searched(record, event, decision.stage)
    covered = decision.pieces and decision.pieces[0].start == stage.start < decision.stop <= decision.pieces[-1].stop
    fits = stage.start + decision.adopt <= decision.stop
    _expect(bool(covered) and fits and decision.pieces[-1].stop <= record.settings.steps, record, event)
    stage = replace(
        stage,
        rate=decision.rate,
        stop=decision.stop,
        winner=decision.winner,
        adopt=decision.adopt,
        reason=decision.reason,
        momentum=decision.momentum,
    )
    pieces = (*cut(record.pieces, 0, stage.start), *decision.pieces)
    return _with_stage(replace(record, pieces=pieces), stage)


def _trained(record: Record, event: Trained) -> Record:
    _expect(event.start == record.kept_steps < event.stop <= record.settings.steps, record, event)
    kept = Kept(event.start, event.stop, event.curve, event.adopted)
    return replace(record, kept=(*record.kept, kept), kept_steps=event.stop)


def _rolled_back(record: Record, event: RolledBack) -> Record:
    known = {record.kept_steps, 0, *(part.stop for part in record.kept)}
    _expect(bool(record.pieces) and event.to in known and event.to <= record.kept_steps <= event.at, record, event)
    before, after = cut(record.pieces, 0, event.to), cut(record.pieces, event.to, record.settings.steps)
    # The rate that a later search starts from, and falls back on, is the lowered one.
    stages = tuple(
        replace(stage, rate=stage.rate * event.factor) if stage.rate and stage.stop and stage.stop > event.to else stage
        for stage in record.stages
    )
    return replace(
        record,
        stages=stages,
        pieces=(*before, *(piece.scaled(event.factor) for piece in after)),
        kept=tuple(part for part in record.kept if part.stop <= event.to),
        kept_steps=event.to,
        discarded_steps=record.discarded_steps + event.at - event.to,
        breaks=record.breaks + event.finite,
        back_to=event.to,
        roll_backs=(*record.roll_backs, f"{event.reason}, back to {event.to}, rate x {event.factor:g}"),
    )


def _reverted(record: Record, event: Reverted) -> Record:
    _expect(event.to in {0, *(part.stop for part in record.kept[:-1])}, record, event)
    kept = tuple(part for part in record.kept if part.stop <= event.to)
    lost = record.lost_steps + record.kept_steps - event.to
    return replace(
        record,
        kept=kept,
        kept_steps=event.to,
        lost_steps=lost,
        finished=False,
        final_loss=None,
        average=None,
        plain_loss=None,
        early=None,
    )


def _moved(record: Record, event: Moved) -> Record:
    return replace(record, moved=(*record.moved, event.changes))


def _lost(record: Record, event: Lost) -> Record:
    return replace(record, lost_steps=record.lost_steps + event.steps)


def _elapsed(record: Record, event: Elapsed) -> Record:
    return replace(record, wall_seconds=record.wall_seconds + event.seconds)


def _finished(record: Record, event: Finished) -> Record:
    _expect(record.kept_steps == record.settings.steps and not record.finished, record, event)
    calls = record.validation_calls + event.validations
    return replace(
        record,
        finished=True,
        final_loss=event.final_loss,
        validation_calls=calls,
        average=event.average,
        plain_loss=event.plain_loss,
        early=event.early,
    )


_APPLY: Final[dict[type, Callable[[Record, Any], Record]]] = {
    Started: _started,
    Opened: _opened,
    Issued: _issued,
    Probed: _probed,
    Decided: _decided,
    Trained: _trained,
    RolledBack: _rolled_back,
    Reverted: _reverted,
    Moved: _moved,
    Lost: _lost,
    Elapsed: _elapsed,
    Finished: _finished,
}


def _with_stage(record: Record, stage: Stage) -> Record:
    return replace(record, stages=(*record.stages[: stage.index], stage, *record.stages[stage.index + 1 :]))


def _searched(record: Record, event: Event, index: int) -> Stage:
    """The stage that is being searched, which `event` must be about."""
    stage = record.stage
    _expect(stage is not None and stage.index == index and not stage.decided, record, event)
    assert stage is not None
    return stage


def _expect(holds: bool, record: Record, event: Event) -> None:
    if not holds:
        raise ValueError(
            f"{event} cannot follow in a record with {len(record.stages)} stages and {record.kept_steps} kept "
            "steps: the study's events are out of order."
        )
