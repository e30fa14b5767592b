"""A director that asks the driver's: what a session talks to inside a worker.

The worker keeps a record of its own, which it brings up to date by applying the events that come with each order.
What is told is kept back until the next order is asked for: one exchange an instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autolrs.codec import decode, encode
from autolrs.director import better
from autolrs.distributed.messages import Order, Report, Setup, Want
from autolrs.engine import apply, before_batch, replay, roll_back
from autolrs.records import Curve, Event, Finished, Instruction, Issued, Probe, Record, RolledBack
from autolrs.snapshot import Tree, clone, rng_preserved

State = Any
"""A checkpoint as raw bytes: a NumPy array, perhaps a window on memory that all workers share; or None."""


class Dismissed(BaseException):
    """The worker's part is over. Not an `Exception`, so that no loop takes it for an error of its own."""


class RemoteDirector:
    """A `director.Directing` whose decisions come through `ask`, which sends a report and waits for the answer."""

    def __init__(self, setup: Setup, ask: Callable[[Report, State], tuple[Order, State]]) -> None:
        self.record: Record = replay(setup.settings, setup.events)
        self._stored = self.record  # as the driver has it
        self.loss = 0.0  # mean of the last losses that were read
        self._strategy = setup.strategy
        self._batch = setup.batch
        self._allow_pickle = setup.allow_pickle
        self._ask = ask
        self._told: list[Event] = []
        self._step: int | None = None
        self._state: bytearray | None = None
        self._probe: tuple[Probe, float] | None = None
        self._final = False
        self._handed: State = None

    def next(self) -> Instruction:
        """What to do now.

        Raises:
            Dismissed: nothing more.
        """
        order, self._handed = self._exchange(Want.order)
        if order.instruction is None:
            raise Dismissed
        return order.instruction

    def handed_over(self) -> Tree | None:
        """The kept state from which the last instruction goes on; None: the live one is right."""
        handed, self._handed = self._handed, None
        return None if handed is None else self._decoded(handed)

    def tell(self, event: Event) -> None:
        if isinstance(event, Issued):
            return  # the driver stores it as it sends the probe
        self.record = apply(self.record, event)
        self._told.append(event)
        if isinstance(event, Finished):
            self._exchange(Want.nothing)  # what the loop does from here on may take long, or fail

    def prune(self, probe: Probe, curve: Curve) -> str:
        """Judged here, by the record as it was when the probe began: no waiting, and no chance."""
        with rng_preserved():
            return self._strategy.prune(before_batch(self.record, probe.number, self._batch), probe, curve)

    def diverged(self, at: int, reason: str, *, to: int | None = None, finite: bool = False) -> RolledBack:
        return roll_back(self.record, at, reason, to=to, finite=finite)

    def progress(self, instruction: Instruction, done: int, loss: float) -> str:
        """The driver looks for itself (`messages.Pulse`)."""
        self.loss = loss
        return ""

    def save(self, step: int, tree: Tree) -> None:
        if self._state is not None:
            self._exchange(Want.nothing)
        self._step, self._state = step, encode(tree, allow_pickle=self._allow_pickle)

    def keep_final(self) -> None:
        self._final = True

    def load(self, *, before: bool = False) -> Tree:
        _, state = self._exchange(Want.before if before else Want.state)
        return self._decoded(state)

    def forget_later(self) -> None:
        """The driver does, when it hears of the roll-back."""

    def save_probe(self, probe: Probe, loss: float, tree: Tree) -> None:
        if self._state is not None:
            self._exchange(Want.nothing)
        self._probe, self._state = (probe, loss), encode(tree, allow_pickle=self._allow_pickle)

    def load_probe(self, loss: float) -> Tree | None:
        if better(self.record, loss) is None:
            return None
        _, state = self._exchange(Want.probe, loss=loss)
        return None if state is None else decode(memoryview(state), allow_pickle=self._allow_pickle, alias=True)

    def report(self, want: Want, **more: Any) -> tuple[Report, State]:
        """What there is to report, and the checkpoint to go with it; it then counts as reported."""
        import numpy as np

        report = Report(self._step, self._final, tuple(self._told), want, self._probe, **more)
        state = None if self._state is None else np.frombuffer(self._state, np.uint8)
        self._told, self._step, self._state, self._final, self._probe = [], None, None, False, None
        return report, state

    def _exchange(self, want: Want, **more: Any) -> tuple[Order, State]:
        order, state = self._ask(*self.report(want, **more))
        # The driver's events have ours among them, with the forecasts that its strategy adds.
        for event in order.events:
            self._stored = apply(self._stored, event)
        self.record = self._stored
        return order, state

    def _decoded(self, state: State) -> Tree:
        """The tree whose tensors are copied straight from the shared memory into the live ones."""
        tree: Tree = decode(memoryview(state), allow_pickle=self._allow_pickle, alias=True)
        return tree | {"feed": clone(tree["feed"])}  # which is kept, and would keep the memory
