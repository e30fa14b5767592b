"""Small training loops, a scripted strategy and a store in memory, for the tests of what runs inside a session."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from autolrs.director import Director
from autolrs.engine import replay
from autolrs.protocols import Callback
from autolrs.records import (
    Curve,
    Decide,
    Event,
    Forecast,
    Instruction,
    Open,
    Probe,
    Probed,
    Record,
    Settings,
    TrialState,
    Wait,
)
from autolrs.schedules import Schedule, base_pieces
from autolrs.session import Session
from autolrs.snapshot import Tree, clone
from autolrs.space import SearchSpace
from autolrs.strategies.common import lost_in_crash


def seed_all(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generators are what loops draw from
    torch.manual_seed(seed)


def draw() -> tuple[float, ...]:
    """A number from each of the global generators."""
    return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002


def rng_digest() -> str:
    """Differs if any of the global generators is in another state."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    state = (random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["gauss"])
    return hashlib.sha256(repr(state).encode() + torch.get_rng_state().numpy().tobytes()).hexdigest()


def digest(model: nn.Module) -> str:
    """Differs if one bit of the parameters or buffers does."""
    sha = hashlib.sha256()
    for tensor in (*model.parameters(), *model.buffers()):
        sha.update(tensor.detach().numpy().tobytes())
    return sha.hexdigest()


class Augmented(Dataset[tuple[int, Tensor]]):
    """Items with noise from all three global generators, as augmentations draw it."""

    def __init__(self, size: int = 24) -> None:
        self.inputs = torch.randn(size, 6, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.inputs[index] + 0.1 * sum(draw())


def shuffled(dataset: Dataset[Any] | None = None, *, own: bool = False, **settings: Any) -> DataLoader[Any]:
    """Batches of 4 in random order, from the loader's own generator or from the global one."""
    generator = torch.Generator().manual_seed(11) if own else None
    return DataLoader(dataset or Augmented(), 4, shuffle=True, generator=generator, **settings)


def network() -> nn.Module:
    """All that makes two runs differ: dropout, running statistics."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(model(inputs), inputs.sum(1, keepdim=True))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> Tensor:
    loss = loss_of(model, inputs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


class Seen(NamedTuple):
    """What the body of a loop finds at one item."""

    step: int
    items: tuple[int, ...]
    rng: str
    rate: float
    weights: str


def see(step: int, items: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module) -> Seen:
    return Seen(step, tuple(items.tolist()), rng_digest(), float(optimizer.param_groups[0]["lr"]), digest(model))


def plain_run(
    schedule: Schedule, make: Callable[[], Iterable[Any]], *, seed: int = 0
) -> tuple[list[Seen], tuple[str, str]]:
    """What an ordinary loop sees at each step under `schedule`, and the weights and generators it leaves."""
    seed_all(seed)
    model, loader = network(), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedule.to_lambda_lr(optimizer)
    seen: list[Seen] = []
    for epoch in itertools.count():
        if hasattr(sampler := getattr(loader, "sampler", None), "set_epoch"):
            sampler.set_epoch(epoch)
        for items, inputs in loader:
            seen.append(see(len(seen), items, optimizer, model))
            update(model, optimizer, inputs)
            scheduler.step()
            if len(seen) == schedule.steps:
                return seen, (digest(model), rng_digest())
    raise AssertionError


@dataclass
class Run:
    """What the loop saw under a session, and what it left."""

    session: Session
    kept: list[Seen] = field(default_factory=list)
    probed: list[Seen] = field(default_factory=list)
    end: tuple[str, str] = ("", "")


def tuned_run(
    session: Session,
    make: Callable[[], Iterable[Any]],
    *,
    seed: int = 0,
    validate: bool = False,
    epochs: int | None = None,
) -> Run:
    """The loop of `plain_run` under a session; with `epochs`, inside a loop of its own."""
    seed_all(seed)
    model, loader = network(), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session.track(model=model, optimizer=optimizer)
    if validate:
        session.validate(lambda: validation_loss(model))
    run = Run(session)
    while not session.done:
        for items, inputs in session.batches(loader, epochs=epochs):
            seen = see(session.step, items, optimizer, model)
            (run.probed if session.is_probe else run.kept).append(seen)
            session.report(update(model, optimizer, inputs))
    run.end = digest(model), rng_digest()
    return run


def validation_loss(model: nn.Module) -> Tensor:
    """Careless on purpose: draws random numbers and leaves the model in evaluation mode."""
    model.eval()
    draw()
    return loss_of(model, torch.ones(5, 6))


@dataclass(frozen=True)
class Scripted:
    """In each of `stages` equal stages tries `rates` at constant rate; the lowest objective wins.

    `keep` updates of the winner are adopted. A probe in `prune` is stopped at the first read from that offset on.
    """

    rates: tuple[float, ...] = (0.02, 0.05)
    length: int = 20
    stages: int = 1
    keep: int = 0
    validations: int = 1
    whole: bool = False
    prune_from: dict[int, int] = field(default_factory=dict)

    name = "scripted"
    search_budget = 10.0

    def decide(self, record: Record, in_flight: Collection[int] = frozenset()) -> Instruction:
        stage, steps = record.stage, record.settings.steps
        if stage is None or (stage.decided and record.kept_steps == stage.stop):
            return Open(len(record.stages), record.kept_steps, evaluate=True)
        good = [trial for trial in stage.trials if trial.objective is not None and trial.state is TrialState.COMPLETE]
        winner = min(good, key=lambda trial: trial.objective or 0.0, default=None)
        lost = lost_in_crash(stage, in_flight)
        number = len(stage.trials) if lost is None else lost.number
        if number < len(self.rates):
            rate = self.rates[number]
            return Probe(
                stage=stage.index,
                number=number,
                rate=rate,
                length=self.length,
                pieces=base_pieces("constant", rate=rate, start=0, stop=self.length),
                keep=self.keep,
                validations=self.validations,
                incumbent=None if winner is None else winner.number,
                whole=self.whole,
            )
        if in_flight:
            return Wait()
        rate = self.rates[0] if winner is None else winner.rate
        stop = steps * (stage.index + 1) // self.stages
        pieces = base_pieces("constant", rate=rate, start=stage.start, stop=steps)
        adopt = self.keep if winner is not None else 0
        return Decide(stage.index, rate, stop, pieces, winner=None if winner is None else winner.number, adopt=adopt)

    def judge(self, record: Record, probed: Probed) -> Forecast | None:
        return None if probed.objective is None else Forecast(float(self.length), probed.objective, 0.1)

    def prune(self, record: Record, probe: Probe, curve: Curve) -> str:
        done = curve.offsets[-1] + 1 if len(curve) else 0
        return "scripted" if done >= self.prune_from.get(probe.number, self.length) else ""


class MemoryStore:
    """A study's events and checkpoints, in memory."""

    def __init__(self, checkpoints: Any = None) -> None:
        self.events: list[Event] = []
        self.beats: list[dict[str, Any]] = []
        self.checkpoints = checkpoints or MemoryCheckpoints()

    def append(self, event: Event) -> None:
        self.events.append(event)

    def heartbeat(self, payload: dict[str, Any]) -> None:
        self.beats.append(payload)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


class MemoryCheckpoints:
    def __init__(self) -> None:
        self.trees: dict[int, Tree] = {}
        self.tagged: dict[str, Tree] = {}
        self.final: Tree | None = None

    def save(self, step: int, tree: Tree, *, tag: str = "", keep: int | None = None) -> None:
        if tag:
            self.tagged[tag] = clone(tree)
            return
        self.trees[step] = clone(tree)
        for old in sorted(self.trees)[: -keep if keep else 0]:
            del self.trees[old]

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted(self.trees))

    def load(self, key: int | str) -> Tree:
        return clone(self.trees[key] if isinstance(key, int) else self.tagged[key])

    def forget_after(self, step: int) -> None:
        for later in [known for known in self.trees if known > step]:
            del self.trees[later]

    def remove(self, tag: str) -> None:
        self.tagged.pop(tag, None)

    def tag(self, step: int, tag: str) -> None:
        assert tag == "final"
        self.final = self.trees[step]

    def latest(self, at_most: int | None = None) -> tuple[int, Tree, list[str]]:
        step = max(step for step in self.trees if at_most is None or step <= at_most)
        return step, clone(self.trees[step]), []


def session_of(
    steps: int,
    strategy: Any = None,
    *,
    store: MemoryStore | None = None,
    base: str = "constant",
    every: int = 0,
    callbacks: Iterable[Callback] = (),
    deadline: float = 0.0,
    **settings: Any,
) -> Session:
    """A session on `store`; without a strategy it is plain training at the optimizer's own rate."""
    store = store or MemoryStore()
    scripted = strategy or Scripted()
    space = SearchSpace("test", (1e-5, 10.0), schedule=base, params={"clip": 1.0})
    budget = 100 * steps if strategy else 0
    given = Settings(steps, budget, 0, space, "test", checkpoint_every=every)
    director = Director(
        replay(given, store.events),
        scripted,
        store,
        callbacks=tuple(callbacks),
        deadline=deadline,
        events=len(store.events),
    )
    return Session(director, **settings)


def record_of(session: Session) -> Record:
    return session._director.record


def schedule_of(session: Session) -> Schedule:
    schedule = record_of(session).schedule
    assert schedule is not None
    return schedule


def ones(count: int = 5) -> list[Tensor]:
    """A loader of the simplest kind."""
    return [torch.full((3, 6), float(i + 1)) for i in range(count)]


def simple(session: Session, *, lr: float = 0.1, **tracked: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A tracked linear model and its optimizer."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    session.track(model=model, optimizer=optimizer, **tracked)
    return model, optimizer


def steps_of(session: Session, loader: Iterable[Any] | None = None, **how: Any) -> Iterator[Any]:
    """The items to the end, with a report after the body of each."""
    for item in session.batches(ones() if loader is None else loader, **how):
        yield item
        session.report(1.0)


def finish(
    session: Session,
    loader: Iterable[Any] | None = None,
    *,
    body: Callable[[], object] = lambda: None,
    loss: Any = 1.0,
    **how: Any,
) -> int:
    """Run to the end with `body` and a report of `loss` at each item; how many there were."""
    count = 0
    for _ in session.batches(ones() if loader is None else loader, **how):
        body()
        session.report(loss)
        count += 1
    return count
