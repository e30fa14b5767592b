"""The runner: carries out instructions on the live training state.

It knows three states: the kept run's, which it may leave for probes and come back to, the start of the stage
being searched, and the kept state of the best probe so far. It is entered (`turn`) only between two steps,
where the losses of the last window are read in one transfer.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from autolrs.averages import POWERS, Averages
from autolrs.batches import Feed, PassEnded, position_of
from autolrs.breaks import KeptLosses
from autolrs.director import Directing, is_best, stopped
from autolrs.engine import BREAKS
from autolrs.errors import IdentityError, SessionError
from autolrs.live import LiveState, Snapshot
from autolrs.rates import Rates
from autolrs.records import (
    READ,
    UNVALIDATED,
    Curve,
    Finish,
    Finished,
    Issued,
    Open,
    Opened,
    Probe,
    Probed,
    RolledBack,
    Started,
    Train,
    Trained,
    TrialState,
    from_json,
    to_json,
)
from autolrs.schedules import Schedule
from autolrs.snapshot import Tracked, Tree

log = logging.getLogger("autolrs")


@dataclass
class _Segment:
    """The instruction being carried out, and the losses read so far."""

    instruction: Probe | Train
    schedule: Schedule
    start: int  # argument of `schedule` at the first step
    stop: int
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # (offset, loss)

    @property
    def now(self) -> int:
        return self.start + len(self.losses)


class Runner:
    def __init__(
        self,
        director: Directing,
        tracked: Mapping[str, Tracked],
        rates: Rates,
        feed: Feed,
        validate: Callable[[], Any] | None,
        pending: list[Tensor],
        averages: Averages | None = None,
    ) -> None:
        self.feed = feed
        self.rates = rates
        self.window: list[float] = []  # reference rates of the steps until the next read
        self._director = director
        self._live = LiveState(tracked, validate)
        self._pending = pending
        self._averages = averages  # among `tracked`, too
        self._segment: _Segment | None = None
        self._stage: Snapshot | None = None
        self._candidates: dict[int, tuple[Snapshot, list[float], list[float]]] = {}
        self._astray = False  # the live state is a probe's
        self._choice: Tree | None = None  # made at the end: which probe's state, if one's; the run's own loss
        settings = director.record.settings
        self._losses = KeptLosses(settings.steps, settings.checkpoint_every or settings.steps)
        self._begin()

    # Read by the session

    @property
    def step(self) -> int:
        """Kept step that the first step of the window stands for."""
        segment, stage = self._segment, self._director.record.stage
        if segment is None:
            return self._director.record.kept_steps
        return segment.now + (stage.start if self.is_probe and stage else 0)

    @property
    def is_probe(self) -> bool:
        return self._segment is not None and isinstance(self._segment.instruction, Probe)

    @property
    def searching(self) -> bool:
        """Whether a stage is open, to whose start in the data the probes go back."""
        return self._stage is not None

    @property
    def unsaved(self) -> int:
        segment = self._segment  # read once: another thread may ask
        return len(segment.losses) if segment else 0

    def turn(self) -> bool:
        """Between two windows: finish what is finished, begin what comes next. False: the run is done."""
        if len(self._pending) < len(self.window):
            return True  # a pass of the loader ended inside the window; the next pass goes on
        if self._segment is not None:
            self._read()
        return self._advance()

    def cut(self) -> bool:
        """The loader's pass is over. A probe ends with it and its stage goes on (True); the kept run waits (False)."""
        if not self.is_probe:
            return False
        segment = self._segment
        assert segment is not None
        if (bad := _first_bad(self._take())) is None:
            self._end_probe(segment, TrialState.PRUNED, "the epoch ended")
        else:
            self._end_probe(segment, TrialState.DIVERGED, f"loss {bad}")
        return True

    def stop(self, reason: str) -> NoReturn:
        """Save what is kept and leave."""
        segment = self._segment
        if segment is not None and isinstance(segment.instruction, Train):
            self._take()
            if segment.losses and all(map(math.isfinite, segment.losses)):
                if (broke := self._losses.judge(segment.losses, segment.now)) and self._may_rescue:
                    self._rescue(segment, broke)
                else:
                    self._average(segment)
                    self._end_stretch(segment)
        raise stopped(self._director.record, reason)

    def resume(self, tree: Tree) -> None:
        """Put the live state where a checkpoint left it; the feed is there already."""
        self._live.load(tree)
        self._losses.load(tree)
        self._choice = tree.get("choice")

    def _take_over(self, tree: Tree) -> None:
        """Become the kept run as another process left it; whatever was here goes."""
        self._stage, self._candidates, self._astray = None, {}, False
        self.feed.move(position_of(tree["feed"]))
        self.resume(tree)

    # Instructions

    def _begin(self) -> None:
        record, rates = self._director.record, self.rates
        if record.own_rate is None:
            self._director.tell(
                Started(rates.own_rate, rates.ratios, self._live.validates, rates.own_momentum, rates.sums_gradients)
            )
            return
        for what, old, new in (
            ("reference learning rate", record.own_rate, rates.own_rate),
            ("ratios between parameter groups", record.ratios, rates.ratios),
            ("momentum", record.own_momentum, rates.own_momentum),
            ("use of `validate`", record.validates, self._live.validates),
        ):
            if old != new:
                raise IdentityError(
                    f"the study was made with another {what}: {old!r}, now {new!r}. Put it back to resume, or start a "
                    "new study (resume='never' or another name)."
                )

    def _advance(self) -> bool:
        while self._segment is None:
            instruction = self._director.next()
            if (tree := self._director.handed_over()) is not None:
                self._take_over(tree)
            match instruction:
                case Open() | Probe() if self._stage is None and self.feed.over():
                    raise PassEnded  # no item is left for a probe: the search begins with the next pass
                case Open():
                    self._open(instruction)
                case Probe():
                    self._probe(instruction)
                case Train():
                    self._train(instruction)
                case Finish():
                    self._finish()
                    return False
                case other:
                    raise AssertionError(f"{other} is not for a session")
        self._open_window(self._segment)
        return True

    def _open(self, instruction: Open) -> None:
        loss, calls = None, 0
        if self._live.validates and instruction.evaluate:
            loss, calls = self._live.measure(self.feed), 1
            loss = loss if math.isfinite(loss) else None
        else:
            loss = self._losses.mean
        self._mark()
        if self._director.record.kept_steps == 0:
            self._save(0)
        self._director.tell(Opened(instruction.stage, instruction.start, loss, self.feed.room(), calls))

    def _probe(self, instruction: Probe) -> None:
        if self._stage is None:
            self._mark()
        elif self._astray:
            self._live.go(self._stage, self.feed)
        self._candidates = {n: kept for n, kept in self._candidates.items() if n == instruction.incumbent}
        self.rates.use_momentum(instruction.momentum)
        self._director.tell(Issued.of(instruction))
        self._astray = True
        self._segment = _Segment(instruction, Schedule(instruction.pieces), 0, instruction.length)

    def _train(self, instruction: Train) -> None:
        adopted = self._candidates.get(instruction.adopt) if instruction.adopt is not None else None
        if self._astray:
            assert self._stage is not None
            self._live.go(self._stage if adopted is None else adopted[0], self.feed)
            self._astray = False
        self.rates.use_momentum(instruction.momentum)
        self.feed.release()
        self._stage, self._candidates = None, {}
        segment = _Segment(instruction, Schedule(instruction.pieces), instruction.start, instruction.stop)
        if adopted is None:
            self._segment = segment
        else:
            _, segment.losses, segment.rates = adopted
            self._end_stretch(segment, adopted=True)

    def _finish(self) -> None:
        if self._director.record.finished:
            return  # the last process ended after this, but before its loop returned
        loss, calls, averages, plain = None, 0, self._averages, None
        if self._live.validates:
            loss, calls = self._live.measure(self.feed), 1
            plain = self._choice["plain"] if self._choice else loss
            if averages is not None and self._choice is None:  # else it was chosen before a crash
                calls += len(POWERS)
                loss = self._choose_average(averages, loss)
            if self._choice is None or self._choice["probe"] is None:
                loss = self._choose_probe(loss, plain)
            if not math.isfinite(loss):
                log.warning("the validation loss at the end is %s, though no training loss was.", loss)
        else:
            loss = self._losses.mean
        early = from_json(self._choice["probe"]) if self._choice else None
        average = averages.used if averages and not early else None
        self._director.keep_final()
        self._director.tell(Finished(loss, calls, average, plain if averages or early else None, early))

    def _choose_probe(self, loss: float, plain: float | None) -> float:
        """Let the state be that at the end of the best probe, if it is better than `loss`; the final state's loss.

        Args:
            plain: that of the last step's weights.
        """
        tree = self._director.load_probe(loss)
        if tree is None:
            return loss
        self._live.load(tree)
        self._choose(plain, tree["probe"])
        log.warning(
            "the whole run ended at %.6g, a probe of %d steps lower, at %.6g: its weights are the final ones. The run "
            "overfits, or broke.",
            loss,
            from_json(tree["probe"]).length,
            tree["loss"],
        )
        return float(tree["loss"])

    def _choose(self, plain: float | None, probe: Any = None) -> None:
        """Keep the live state as the final one, for good."""
        self._choice = {"plain": plain, "probe": probe}
        self._save(self._director.record.kept_steps)

    def _choose_average(self, averages: Averages, plain: float) -> float:
        """Let the weights be the average that validates best, if that is finite and better than `plain`; its loss."""
        own, losses = self._live.tree(), {}
        for power in POWERS:
            averages.use(power)
            losses[power] = self._live.measure(self.feed)
        self._live.load(own)
        power = min(POWERS, key=lambda power: (not math.isfinite(losses[power]), losses[power]))
        if not math.isfinite(losses[power]) or losses[power] >= plain:  # better than a `plain` of NaN, too
            return plain
        averages.use(power)
        self._choose(plain)
        return losses[power]

    # Reads

    def _open_window(self, segment: _Segment) -> None:
        now, stops = segment.now, [segment.stop]
        stops.append((now // READ + 1) * READ)
        if isinstance(probe := segment.instruction, Probe):
            stops += [offset for offset in (probe.keep, *_validation_points(probe)) if offset > now]
        self.window = segment.schedule.over(now, min(stops))

    def _take(self) -> list[float]:
        """Read the pending losses into the segment, in one transfer."""
        assert self._segment is not None
        losses = _to_floats(self._pending)
        self._segment.losses += losses
        self._segment.rates += self.window[: len(losses)]
        self._pending.clear()
        self.window = []
        return losses

    def _read(self) -> None:
        segment = self._segment
        assert segment is not None
        self.rates.check()
        losses = self._take()
        bad = _first_bad(losses)
        why = self._director.progress(segment.instruction, len(segment.losses), sum(losses) / len(losses))
        if isinstance(segment.instruction, Train):
            if bad is not None:
                first = segment.start + next(i for i, each in enumerate(segment.losses) if not math.isfinite(each))
                self._roll_back(segment, f"loss {bad} at step {first}")
            elif (broke := self._losses.watch(segment.losses, segment.now)) and self._may_rescue:
                self._rescue(segment, broke)
            else:
                self._average(segment)
                if segment.now == segment.stop:
                    self._end_stretch(segment)
        elif bad is not None:
            self._end_probe(segment, TrialState.DIVERGED, f"loss {bad}")
        else:
            self._read_probe(segment, segment.instruction)
        if why:
            self.stop(why)

    def _average(self, segment: _Segment) -> None:
        if self._averages is not None:
            self._averages.update(segment.now, self._director.record.settings.steps)

    def _read_probe(self, segment: _Segment, probe: Probe) -> None:
        offset = segment.now
        if offset == probe.keep:
            self._candidates[probe.number] = (self._live.capture(self.feed), list(segment.losses), list(segment.rates))
        if self._live.validates and offset in _validation_points(probe):
            loss = self._live.measure(self.feed)
            segment.validation.append((offset, loss))
            if not math.isfinite(loss):
                self._end_probe(segment, TrialState.DIVERGED, f"{UNVALIDATED} {loss}")
                return
        if offset == segment.stop:
            self._end_probe(segment, TrialState.COMPLETE)
        elif offset % READ == 0 and (reason := self._director.prune(probe, self._curve(segment))):
            self._end_probe(segment, TrialState.PRUNED, reason)

    def _end_probe(self, segment: _Segment, state: TrialState, reason: str = "") -> None:
        probe, steps = segment.instruction, len(segment.losses)
        assert isinstance(probe, Probe)
        validated = [offset for offset, _ in segment.validation]
        validates = self._live.validates and probe.validations
        if state is TrialState.PRUNED and validates and steps and steps not in validated:
            loss = self._live.measure(self.feed)
            segment.validation.append((steps, loss))
            if not math.isfinite(loss):
                state, reason = TrialState.DIVERGED, f"{UNVALIDATED} {loss}"
        objective = None
        if state is not TrialState.DIVERGED and steps:
            last = segment.losses[-max(READ, probe.length // 10) :]
            objective = segment.validation[-1][1] if segment.validation else math.fsum(last) / len(last)
        if probe.whole and state is TrialState.COMPLETE and segment.validation:
            self._offer(probe, segment.validation[-1][1])
        self._segment = None
        self._director.tell(
            Probed(
                stage=probe.stage,
                number=probe.number,
                state=state,
                steps=steps,
                curve=self._curve(segment),
                validation=self._validation_curve(segment),
                first_loss=segment.losses[0] if steps else None,
                objective=objective,
                reason=reason,
                validations=len(segment.validation),
            )
        )

    def _offer(self, probe: Probe, loss: float) -> None:
        """Store the state at a probe's end, in case the whole run ends higher; what is not the lowest is not needed."""
        if is_best(self._director.record, probe, loss):
            self._director.save_probe(probe, loss, {**self._live.tree(), "probe": to_json(probe), "loss": loss})

    def _end_stretch(self, segment: _Segment, *, adopted: bool = False) -> None:
        """The kept run has come to `segment.now`: checkpoint first, then the record."""
        self._losses.extend(segment.losses)
        self._save(segment.now)
        self._segment = None
        self._director.tell(Trained(segment.start, segment.now, self._curve(segment), adopted))

    def _roll_back(self, segment: _Segment, reason: str) -> None:
        """Back to the last checkpoint with a lower rate, but on with the data: the same batches might do it again."""
        tree = self._director.load()
        self._go_back(tree, self._director.diverged(segment.now, reason))

    @property
    def _may_rescue(self) -> bool:
        record = self._director.record
        return record.settings.rescue and record.breaks < BREAKS

    def _rescue(self, segment: _Segment, reason: str) -> None:
        """Roll back a run that broke with a finite loss; the second time, if there is no new checkpoint, to the one
        before, for the last one may be of a run that was about to break."""
        record = self._director.record
        again = record.breaks > 0 and record.back_to == record.kept_steps
        tree = self._director.load(before=again)
        to = tree.get("step", self._director.record.kept_steps)  # an older version's has none, and is not of before
        self._go_back(tree, self._director.diverged(segment.now, reason, to=to, finite=True))

    def _go_back(self, tree: Tree, event: RolledBack) -> None:
        self.resume(tree)
        self._segment = None
        self._save(event.to, event)
        self._director.tell(event)
        self._director.forget_later()

    def _curve(self, segment: _Segment) -> Curve:
        stage = self._director.record.stage
        start = segment.start if isinstance(segment.instruction, Train) else stage.start if stage else 0
        return Curve.reduce(segment.losses, segment.rates, stage=segment.instruction.stage, start=start)

    def _validation_curve(self, segment: _Segment) -> Curve | None:
        points = [(offset, loss) for offset, loss in segment.validation if math.isfinite(loss)]
        if not points:
            return None
        rates = [segment.rates[offset - 1] for offset, _ in points]
        offsets, losses = zip(*points, strict=True)
        start = self._director.record.kept_steps
        return Curve(tuple(map(float, offsets)), losses, tuple(rates), stage=segment.instruction.stage, start=start)

    # State

    def _mark(self) -> None:
        """The stage starts here."""
        self.feed.mark()
        self._stage, self._candidates = self._live.capture(self.feed), {}

    def _save(self, step: int, cause: RolledBack | None = None) -> None:
        tree = {
            "cause": to_json(cause),  # not yet in the record, which has so many:
            "roll_backs": len(self._director.record.roll_backs),
            "choice": self._choice,
            "step": step,
            "feed": self.feed.state(),
            **self._losses.tree(),
            **self._live.tree(),
        }
        self._director.save(step, tree)


def _validation_points(probe: Probe) -> list[int]:
    return sorted({max(1, round(probe.length * j / probe.validations)) for j in range(1, probe.validations + 1)})


def _first_bad(losses: list[float]) -> float | None:
    """The first loss that is not finite."""
    return next(itertools.filterfalse(math.isfinite, losses), None)


def _to_floats(losses: list[Tensor]) -> list[float]:
    """All in one transfer, where they are on one device.

    Raises:
        SessionError: a loss is not a scalar.
    """
    if not losses:
        return []
    try:
        if losses[0].device.type == "cpu" or len({loss.device for loss in losses}) > 1:
            return [loss.item() for loss in losses]
        return [float(loss) for loss in torch.stack([loss.reshape(()) for loss in losses]).tolist()]
    except RuntimeError as error:
        shapes = [tuple(loss.shape) for loss in losses if loss.numel() != 1]
        if not shapes:
            raise
        raise SessionError(f"`report` needs a scalar loss, but got shape {shapes[0]}: reduce it first.") from error
