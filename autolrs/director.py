"""The director: holds the record, asks the engine, and has the store keep what happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, Protocol

from autolrs.codec import Encoded
from autolrs.engine import apply, decide, roll_back
from autolrs.errors import CheckpointError, StoppedError
from autolrs.protocols import Callback, Strategy
from autolrs.records import (
    Curve,
    Decide,
    Decided,
    Event,
    Instruction,
    Probe,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Trial,
    TrialState,
    from_json,
)
from autolrs.snapshot import Tree, rng_preserved

log = logging.getLogger("autolrs")

PROBE: Final = "probe"
"""Tag of the checkpoint at the end of the probe that ended lowest."""

BEAT_SECONDS: Final = 1.0
"""How often a run says where it is, so that what a crash throws away can be counted."""


class Checkpoints(Protocol):
    """The part of `checkpoints.CheckpointStore` that a run needs."""

    def save(self, step: int, tree: Tree | Encoded, *, tag: str = "", keep: int | None = None) -> object: ...

    def load(self, key: int | str) -> Tree: ...

    @property
    def steps(self) -> tuple[int, ...]: ...

    def tag(self, step: int, tag: str) -> object: ...

    def latest(self, at_most: int | None = None) -> tuple[int, Tree, list[str]]: ...

    def remove(self, tag: str) -> None: ...

    def forget_after(self, step: int) -> None: ...


class Store(Protocol):
    """Where a study lives: `storage.StudyStore`, or a double of it."""

    @property
    def checkpoints(self) -> Checkpoints: ...

    def append(self, event: Event) -> None: ...

    def heartbeat(self, payload: dict[str, Any]) -> None: ...


class Directing(Protocol):
    """What a session needs of a director: `Director` in its own process, or one that asks the driver's."""

    @property
    def record(self) -> Record: ...

    def next(self) -> Instruction: ...

    def handed_over(self) -> Tree | None: ...

    def tell(self, event: Event) -> None: ...

    def prune(self, probe: Probe, curve: Curve) -> str: ...

    def diverged(self, at: int, reason: str, *, to: int | None = None, finite: bool = False) -> RolledBack: ...

    def progress(self, instruction: Instruction, done: int, loss: float) -> str: ...

    def save(self, step: int, tree: Tree) -> None: ...

    def keep_final(self) -> None: ...

    def load(self, *, before: bool = False) -> Tree: ...

    def forget_later(self) -> None: ...

    def save_probe(self, probe: Probe, loss: float, tree: Tree) -> None: ...

    def load_probe(self, loss: float) -> Tree | None: ...


class Director:
    """Turns events into instructions, one study at a time.

    Everything that could draw random numbers runs with the global generators put back afterwards, so that being
    tuned does not change the numbers that the user's loop draws.

    Attributes:
        guard: puts them back, around each step; whoever does so around many may let it do nothing.
    """

    def __init__(
        self,
        record: Record,
        strategy: Strategy,
        store: Store,
        *,
        callbacks: Sequence[Callback] = (),
        deadline: float = 0.0,
        events: int = 0,
    ) -> None:
        self.record = record
        self._strategy = strategy
        self._store = store
        self._callbacks = tuple(callbacks)
        self._deadline = deadline
        self._began = self._last_beat = time.monotonic()
        self._events = events  # told so far
        self.guard: Callable[[], AbstractContextManager[None]] = rng_preserved

    def next(self, *, in_flight: Collection[int] = frozenset(), batch: int = 0) -> Instruction:
        """What to do now, see `engine.decide`; decisions are stored on the way."""
        with self.guard():
            while isinstance(
                instruction := decide(self.record, self._strategy, in_flight=in_flight, batch=batch), Decide
            ):
                self._tell(Decided(instruction))
            return instruction

    def handed_over(self) -> Tree | None:
        """A kept state of another process, from which the last instruction goes on; here there is no other."""
        return None

    def tell(self, event: Event) -> None:
        """Give an event to the store, then let it change the record, then tell the callbacks."""
        with self.guard():
            self._tell(event)

    def mute(self) -> None:
        """An error is on its way: what is told from here on is stored, but the callbacks are left alone."""
        self._callbacks = ()

    def prune(self, probe: Probe, curve: Curve) -> str:
        """Why a running probe should stop; "" to go on."""
        with self.guard():
            return self._strategy.prune(self.record, probe, curve)

    def diverged(self, at: int, reason: str, *, to: int | None = None, finite: bool = False) -> RolledBack:
        """What to do about a kept run, come to step `at`, that diverged, see `engine.roll_back`."""
        return roll_back(self.record, at, reason, to=to, finite=finite)

    def progress(self, instruction: Instruction, done: int, loss: float, *, running: int | None = None) -> str:
        """Tell the callbacks how far the instruction is; return why to stop, or "".

        Args:
            running: updates that a crash would throw away now; None: `done`.
        """
        now = time.monotonic()
        if now - self._last_beat > BEAT_SECONDS:
            self._last_beat = now
            lost = done if running is None else running
            self._store.heartbeat({"events": self._events, "running": lost, "seconds": now - self._began})
        if self._callbacks:
            with self.guard():
                for callback in self._callbacks:
                    callback.on_progress(self.record, instruction, done, loss)
        return "max_seconds is over" if self._deadline and now > self._deadline else ""

    def save(self, step: int, tree: Tree | Encoded) -> None:
        """Write the checkpoint of kept step `step`; the one before it stays, in case this one is damaged."""
        self._store.checkpoints.save(step, tree, keep=2)

    def keep_final(self) -> None:
        """Keep the checkpoint of the last step for good; it is chosen."""
        self._store.checkpoints.remove(PROBE)
        self._store.checkpoints.tag(self.record.kept_steps, "final")

    def load(self, *, before: bool = False) -> Tree:
        """The checkpoint of the record's kept step; if it is damaged, the one before, to which the record goes back.

        Args:
            before: the one before that, if there is one, for a roll-back to it.
        """
        if before and (tree := self._earlier()) is not None:
            return tree
        step, tree, damaged = self._store.checkpoints.latest(self.record.kept_steps)
        for message in damaged:
            log.warning("%s Going on from step %d.", message, step)
        if step < self.record.kept_steps:
            self.tell(Reverted(step, "the checkpoint of the last kept step is damaged"))
        if tree["cause"] is not None and tree["roll_backs"] == len(self.record.roll_backs):
            self.tell(from_json(tree["cause"]))  # a kill came between the roll-back's checkpoint and its record
        return tree

    def _earlier(self) -> Tree | None:
        """The last good checkpoint before that of the record's kept step, if it says of which step it is."""
        for step in reversed([step for step in self._store.checkpoints.steps if step < self.record.kept_steps]):
            try:
                tree = self._store.checkpoints.load(step)
            except CheckpointError as error:
                log.warning("%s", error)
                continue
            if "step" in tree:
                return tree
        return None

    def forget_later(self) -> None:
        """Training went back: remove the checkpoints of later steps."""
        self._store.checkpoints.forget_after(self.record.kept_steps)

    def save_probe(self, probe: Probe, loss: float, tree: Tree | Encoded) -> None:
        """Keep the state at a probe's end, where its validation loss is `loss`, if none ended lower before."""
        if not is_best(self.record, probe, loss):
            return
        try:
            self._store.checkpoints.save(self.record.kept_steps, tree, tag=PROBE)
        except CheckpointError as error:  # it is something to fall back on, and the run can do without
            log.warning("the state at the end of a probe is not kept: %s", error)

    def load_probe(self, loss: float) -> Tree | None:
        """The state at the end of the probe that ended lowest, if that is below `loss`, the whole run's."""
        best = better(self.record, loss)
        if best is None:
            return None
        try:
            tree = self._store.checkpoints.load(PROBE)
            probe = from_json(tree["probe"])
            if (probe.stage, probe.number, tree["loss"]) == (best.stage, best.number, best.objective):
                return tree
            why = f"what was stored is that of probe {probe.stage}.{probe.number}, which ended at {tree['loss']:.6g}."
        except CheckpointError as error:
            why = str(error)
        what = f"probe {best.stage}.{best.number} ended at {best.objective:.6g}, below the run's {loss:.6g}"
        log.warning("%s, but its state is gone: %s", what, why)
        return None

    def _tell(self, event: Event) -> None:
        if isinstance(event, Probed) and event.state is not TrialState.DIVERGED:
            event = replace(event, forecast=self._strategy.judge(self.record, event))
        record = apply(self.record, event)
        self._store.append(event)
        self._events += 1
        self.record = record
        unsearched = not any(stage.trials for stage in record.stages)
        if unsearched and isinstance(event, Decided) and record.settings.budget:
            log.warning("stage %d was not searched: %s", event.decision.stage, event.decision.reason)
        for callback in self._callbacks:
            callback.on_event(record, event)


def best_end(record: Record) -> Trial | None:
    """The probe that ended lowest, of those whose state there may become the final one."""
    if not (record.settings.restore_best and record.validates):
        return None
    trials = (trial for stage in record.stages for trial in stage.trials)
    ended = [t for t in trials if t.whole and t.state is TrialState.COMPLETE and t.validation is not None]
    return min(ended, key=lambda t: (_objective(t), t.stage, t.number), default=None)


def is_best(record: Record, probe: Probe, loss: float) -> bool:
    """Whether `probe`, which ends at the validation loss `loss`, is such a one, and ends lower than all before.

    Of equal ones it is the first by number, whichever ends first.
    """
    if not (record.settings.restore_best and record.validates and probe.whole):
        return False
    best = best_end(record)
    return best is None or (loss, probe.stage, probe.number) < (_objective(best), best.stage, best.number)


def better(record: Record, loss: float) -> Trial | None:
    """The best of them, if it ended below `loss`; any did below NaN."""
    best = best_end(record)
    return None if best is None or loss <= _objective(best) else best


def _objective(trial: Trial) -> float:
    assert trial.objective is not None
    return trial.objective


def stopped(record: Record, reason: str) -> StoppedError:
    """What tells that a run was asked to stop, for `reason`."""
    return StoppedError(
        f"stopped at step {record.kept_steps} of {record.settings.steps} ({reason}); "
        "all is saved, and the same command or script goes on from there."
    )
