"""What the driver and its workers say to each other.

    driver ──Order, state──▶ worker: carry out `instruction`; here is what happened since we spoke
    driver ◀──Report, state── worker: this happened, and now I want my next order (or a state, or nothing)

A state is a checkpoint as raw bytes, beside the message, so that Ray keeps it out of band in its object store.
Messages go as bytes, too: Ray pickles by way of cloudpickle, which takes a fifth of the time of an exchange.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from autolrs.distributed.shipping import Shipped
from autolrs.protocols import Strategy
from autolrs.records import Event, Instruction, Probe, Settings


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to know before it begins.

    Attributes:
        events: of the study so far.
        batch: see `engine.decide`.
        threads: that torch and OpenMP may use.
        deterministic: whether torch must use deterministic algorithms, as in the driver.
        dtype: name of torch's default dtype in the driver.
    """

    train: Shipped
    settings: Settings
    events: tuple[Event, ...]
    strategy: Strategy
    batch: int
    args: Mapping[str, Any]
    tuned: str | None
    replay_memory: int
    allow_pickle: bool
    threads: int
    deterministic: bool
    dtype: str


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker does next; None: leave. `events`: of the study, since the last order."""

    instruction: Instruction | None
    events: tuple[Event, ...] = ()


class Want(Enum):
    """What a worker waits for."""

    order = auto()
    state = auto()  # the checkpoint of the record's kept step
    before = auto()  # the one before that
    probe = auto()  # that of the best probe's end, if it ended below a loss
    nothing = auto()  # but that the driver knows what it was told


@dataclass(frozen=True, slots=True)
class Ended:
    """The user's function is over.

    Attributes:
        result: what it returned, pickled; None: it did not, or it was told to leave.
        error: what it raised and the text of its traceback, pickled.
    """

    result: bytes | None = None
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did since its last order, in the order in which it must be stored.

    Attributes:
        step: kept step of the checkpoint that comes beside the report; None: none does.
        final: the last checkpoint is the final one.
        probe: the state beside the report is that at this probe's end, and its validation loss there.
        loss: with `Want.probe`, the whole run's validation loss.
    """

    step: int | None = None
    final: bool = False
    events: tuple[Event, ...] = ()
    want: Want = Want.order
    probe: tuple[Probe, float] | None = None
    loss: float = 0.0
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Pulse:
    """Where a worker is, while it works.

    Attributes:
        talks: orders heard so far.
        done: updates of the present instruction that are not in the record yet.
        loss: mean of the last losses that were read.
    """

    talks: int
    done: int
    loss: float


def to_bytes(message: Order | Report) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def from_bytes(data: bytes) -> Any:
    """The `Order` or `Report` of those bytes, which come from a process of the same run."""
    return pickle.loads(data)
