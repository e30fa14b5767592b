"""A worker, as the driver sees it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolrs.distributed.cluster import RayExecutor
from autolrs.distributed.messages import Order, Pulse, Report, from_bytes, to_bytes
from autolrs.distributed.worker import Worker
from autolrs.records import Instruction

BEAT = 1.0
"""Seconds between two looks at how a worker is."""
STRANDED = 30.0
"""Seconds after which a worker that never answered is asked for again, if a node has gone since."""


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        seen: events that it knows.
        nodes: those of the cluster when it was asked for.
        talk: its next report, and `blob` the state that comes with it, as Ray references.
        brought: the state that came with its last report, as a window on the object store.
        at: key of the kept state that it holds; None: none of this run's.
        task: what it carries out; None: it begins, or waits for an order.
        idle: it waits for an order.
        leaving: it was sent away.
        held: probes whose kept state it holds.
        done: updates of its task that are not in the record, when it was last felt.
        moved: when it last got on with its task.   [s]
    """

    number: int
    actor: Any
    seen: int
    nodes: frozenset[str]
    talk: Any = None
    blob: Any = None
    brought: Any = None
    at: tuple[int, int] | None = None
    task: Instruction | None = None
    idle: bool = False
    leaving: bool = False
    held: set[int | None] = field(default_factory=set)
    done: int = 0
    loss: float = 0.0
    moved: float = field(default_factory=time.monotonic)
    _talk: Any = None
    _pulse: Any = None
    _felt: Pulse | None = None
    _asked: float = 0.0

    def __post_init__(self) -> None:
        self._talk = self.actor.talk.options(num_returns=2)

    def send(self, order: Order | None, state: Any = None) -> None:
        """Give an order; None: begin. `state`: reference to the state that the order starts from."""
        self.idle, self.done, self.moved = False, 0, time.monotonic()
        self.talk, self.blob = self._talk.remote(None if order is None else to_bytes(order), state)

    def dismiss(self) -> None:
        """Send it away; it reports once more, that it has left."""
        if not self.leaving:
            self.leaving = True
            self.send(Order(None))

    def heard(self) -> Report:
        """The report that is there; its state, if one comes with it, is then in `brought`."""
        import ray

        report: Report = from_bytes(ray.get(self.talk))
        self.brought = None if report.step is None and report.probe is None else ray.get(self.blob)
        self.moved = time.monotonic()
        return report

    def rest(self) -> None:
        """It has reported, and waits for an order."""
        self.idle, self.task, self.done = True, None, 0

    def awaited(self) -> list[Any]:
        return [ref for ref in (None if self.idle else self.talk, self._pulse) if ref is not None]

    def feel(self) -> None:
        """Ask how it is, unless that was asked a moment ago."""
        if self._pulse is None and time.monotonic() - self._asked > BEAT:
            self._asked = time.monotonic()
            self._pulse = self.actor.pulse.remote()

    def felt(self) -> None:
        """It has answered."""
        import ray

        pulse: Pulse = ray.get(self._pulse)
        self._pulse = None
        if self.idle or pulse != self._felt:
            self.moved = time.monotonic()
        self._felt, self.done, self.loss = pulse, 0 if self.idle else pulse.done, pulse.loss

    def silent(self) -> float:
        """Seconds since it last got on, or, if it waits, since it last answered."""
        return time.monotonic() - self.moved

    def stranded(self) -> bool:
        """Whether it never came to be, and a node that it may have been meant for is gone: Ray has been seen to wait
        for ever for such a worker."""
        return (
            self._felt is None
            and self.task is None
            and not self.idle
            and self.silent() > STRANDED
            and not self.nodes <= _alive()
        )

    def halt(self, reason: str) -> None:
        self.actor.halt.remote(reason)

    def kill(self) -> None:
        import ray

        with suppress(Exception):
            ray.kill(self.actor)


def hire(number: int, executor: RayExecutor, setup: bytes, seen: int) -> Member:
    """Ask Ray for a worker, which begins as soon as there is room."""
    import ray

    paths = [path for path in sys.path if path and Path(path).exists()]
    kind = ray.remote(Worker).options(max_restarts=0, max_concurrency=4, **executor.options())
    nodes = _alive()  # before it is asked for: a node that goes meanwhile may be the one that Ray chose
    member = Member(number, kind.remote(setup, paths, executor.threads), seen, nodes)
    member.send(None)
    return member


def _alive() -> frozenset[str]:
    """The cluster's nodes."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
