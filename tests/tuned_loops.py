"""Training loops for the tests of tuning, and processes to run them in.

The processes are forked from a server that has imported torch once: each is a real process that can be killed, and
starts in milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from loops import Scripted, digest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autolrs import Session, Study, tune
from autolrs.schedules import Schedule
from autolrs.space import SearchSpace
from autolrs.storage import StudyStore

SEARCH = Scripted(rates=(3e-3, 1e-2, 1e-3), length=10, keep=6)
SPACE = SearchSpace("toy", (1e-4, 1e-1), initial=3e-3, schedule="wsd", warmup=0.05)


class Counter:
    """Optimizer updates really done, of whatever kind, since the last `build`."""

    steps = 0


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(240, 8, generator=generator)
    targets = torch.sin(inputs @ torch.randn(8, 1, generator=generator))
    return inputs, targets + 0.05 * torch.randn(240, 1, generator=generator)


def build(*, own_generator: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    Counter.steps = 0
    inputs, targets = data()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(11) if own_generator else None
    loader = DataLoader(TensorDataset(inputs[:200], targets[:200]), 20, shuffle=True, generator=generator)
    return model, optimizer, loader


def update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    Counter.steps += 1
    return loss


def validation_loss(model: nn.Module) -> float:
    model.eval()
    inputs, targets = data()
    with torch.no_grad():
        return nn.functional.mse_loss(model(inputs[200:]), targets[200:]).item()


Body = Callable[[Session, Tensor], None]


def loop(
    *, own_generator: bool = False, validate: bool = True, each: Body = lambda session, loss: None
) -> Callable[[Session], dict[str, Any]]:
    """A train function; `each` is called with every loss before it is reported."""

    def train(session: Session) -> dict[str, Any]:
        model, optimizer, loader = build(own_generator=own_generator)
        session.track(model=model, optimizer=optimizer)
        if validate:
            session.validate(lambda: validation_loss(model))
        for batch in session.batches(loader):
            loss = update(model, optimizer, batch)
            each(session, loss)
            session.report(loss)
        return {"weights": digest(model), "draws": [random.random(), torch.rand(1).item()]}

    return train


def plain(schedule: Schedule, *, seed: int = 0, own_generator: bool = False) -> dict[str, Any]:
    """What `loop` returns, by a loop without autolrs that follows `schedule`."""
    random.seed(seed)
    torch.manual_seed(seed)
    model, optimizer, loader = build(own_generator=own_generator)
    scheduler = schedule.to_lambda_lr(optimizer)
    done = 0
    while done < schedule.steps:
        for batch in loader:
            update(model, optimizer, batch)
            scheduler.step()
            done += 1
            if done == schedule.steps:
                break
    return {"weights": digest(model), "draws": [random.random(), torch.rand(1).item()]}


SMALL: dict[str, Any] = {
    "steps": 60,
    "space": SPACE,
    "strategy": SEARCH,
    "search_budget": 0.5,
    "checkpoint_every": 16,
    "name": "run",
}
"""Settings for 3 probes of 10 steps, of which the best one's first 6 are kept, and 60 kept steps."""


def run(storage: Path, train: Callable[[Session], Any] | None = None, **settings: Any) -> Study:
    """A small run in `storage`."""
    return tune(train or loop(), storage=str(storage), **(SMALL | settings))


# Runs that are broken off in this process


def stop_at(number: int) -> Body:
    """Asks to stop at the update of that number, counted from 1, probes' included."""
    left = [number]

    def each(session: Session, loss: Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            session.halt("test")

    return each


class Killed(BaseException):
    """As sudden as a kill, as far as the run is concerned."""


def dying_beside(kind: type, *, stored: bool) -> Callable[[StudyStore, Any], None]:
    """A `StudyStore.append` that dies at the first event of a kind, before or after it is stored."""
    append = StudyStore.append

    def dying(store: StudyStore, event: Any) -> None:
        if type(event) is kind:
            if stored:
                append(store, event)
            raise Killed
        append(store, event)

    return dying


# Other processes

Hook = Callable[[], None]
"""What a process does before it tunes, such as making itself die at some moment. Must be picklable."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tuned_loops", "autolrs.surrogates", "torch._dynamo", "sqlalchemy"])


def spawn(storage: Path, settings: Mapping[str, Any], *hooks: Hook, **loop_settings: Any) -> BaseProcess:
    """A process that runs `run` and writes OUTCOME beside the study."""
    _start_server()
    process = _context.Process(target=_work, args=(storage, dict(settings), hooks, loop_settings))
    process.start()
    return process


def _start_server() -> None:
    """Let the server find this module, to preload it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def finish(storage: Path, settings: Mapping[str, Any], *hooks: Hook, **loop_settings: Any) -> dict[str, Any]:
    """Run to the end in a process; what came out."""
    process = spawn(storage, settings, *hooks, **loop_settings)
    process.join(120)
    assert process.exitcode == 0
    return outcome(storage)


def outcome(storage: Path) -> dict[str, Any]:
    """What the last process on a study had to say."""
    found: dict[str, Any] = json.loads((storage / "outcome.json").read_text())
    return found


def _work(storage: Path, settings: dict[str, Any], hooks: tuple[Hook, ...], loop_settings: dict[str, Any]) -> None:
    for hook in hooks:
        hook()
    try:
        study = run(storage, loop(**loop_settings), **settings)
        found = {"result": study.result, "schedule": study.schedule.to_json(), "steps": Counter.steps}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error), "steps": Counter.steps}
    (storage / "outcome.json").write_text(json.dumps(found))


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def journal_size(storage: Path, name: str = "run") -> int:
    path = storage / name / "study.journal"
    return path.stat().st_size if path.exists() else 0


@contextmanager
def stepping(storage: Path, settings: Mapping[str, Any], *hooks: Hook) -> Iterator[BaseProcess]:
    """A process at work on a study, with some events stored; killed in the end if it is still there."""
    process = spawn(storage, settings, *hooks)
    try:
        wait_for(lambda: journal_size(storage) > 3000)
        yield process
    finally:
        process.kill()
        process.join()
