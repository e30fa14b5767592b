"""What a session costs beside the training itself -> docs/performance.md. Run: python -m benchmarks performance

Every figure is a ratio of, or a difference between, things measured in this one process or in pairs, so that a busy
or slow machine moves both.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

import autolrs
from autolrs.snapshot import track
from benchmarks.plain import PlainSession
from benchmarks.tasks import TASKS, seed_all
from examples.char_gpt import GPT, data, optimizer

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"


def least(function: Callable[[], object], calls: int = 100, repeats: int = 50) -> float:
    """Seconds a call takes, undisturbed: the least mean over several batches of calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def step_cost(steps: int = 20_000, chunk: int = 160) -> tuple[float, float]:
    """Seconds of (`report`, the optimizer's hook, the next item) and of `tensor.detach()`, the least over chunks.

    Chunks are ten windows long, so that reading the losses every 16 steps is in it.
    """
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.ones(4)).square().sum()
    ours = detach = float("inf")
    with (
        TemporaryDirectory() as folder,
        autolrs.attach(
            model=model, optimizer=optimizer, steps=steps, search_budget=0, storage=folder, checkpoint_every=steps
        ) as session,
    ):
        items = session.batches([0] * steps)
        next(items)
        (hook,) = optimizer._optimizer_step_pre_hooks.values()
        for _ in range(steps // chunk - 1):
            start = time.perf_counter()
            for _ in range(chunk):
                hook(optimizer, (), {})
                session.report(loss)
                next(items)
            middle = time.perf_counter()
            for _ in range(chunk):
                loss.detach()
            ours = min(ours, (middle - start) / chunk)
            detach = min(detach, (time.perf_counter() - middle) / chunk)
        while not session.done:
            session.report(loss)
            next(items, None)
    return ours, detach


def restore_cost(megabytes: int) -> tuple[float, float]:
    """Seconds of capturing and of restoring a state of that size (weights and Adam's two moments)."""
    width = 512
    layers = max(1, round(megabytes * 2**20 / 4 / 3 / (width * width)))
    if megabytes < 3:
        width, layers = int((megabytes * 2**20 / 4 / 3) ** 0.5), 1
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(width)).sum().backward()
    optimizer.step()
    tracked = [track("model", model), track("optimizer", optimizer)]
    trees = [each.capture() for each in tracked]
    calls = 1 if megabytes > 10 else 20

    def restore() -> None:
        for each, tree in zip(tracked, trees, strict=True):
            each.restore(tree)

    return least(lambda: [each.capture() for each in tracked], calls), least(restore, calls)


def overhead(pairs: int) -> tuple[list[float], float]:
    """CPU seconds that `search_budget=0` adds to the char GPT's run, one a pair, and CPU seconds of the plain run.

    On a shared machine two runs of the same loop differ by far more than what is looked for. So the pairs are of a loop
    whose steps, but the first, do nothing but the session's part (the optimizer's state, and so each checkpoint, is as
    large as in the real run), and only what they are set against is a real run.
    """
    task = TASKS["char_gpt"]
    task.load()
    batches = list(itertools.islice(DataLoader(data()[0], batch_size=8), 50))

    def idle(session: Any) -> None:
        model = GPT()
        adamw = optimizer(model)
        session.track(model=model, optimizer=adamw)
        loss = None
        for (windows,) in session.batches(batches):
            if loss is None:
                loss = model(windows)
                loss.backward()
                adamw.step()
            for hook in adamw._optimizer_step_pre_hooks.values():
                hook(adamw, (), {})
            session.report(loss)

    def seconds(function: Callable[[], object]) -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    def tuned() -> None:
        with TemporaryDirectory() as folder:
            autolrs.tune(idle, steps=task.steps, space=task.space, search_budget=0, storage=folder)

    schedule = autolrs.Schedule.build("wsd", rate=task.default_rate, steps=task.steps, warmup=task.warmup)

    def plain(train: Callable[[Any], object] = idle) -> None:
        seed_all(0)
        train(PlainSession(task.steps, schedule))

    tuned(), plain()  # imports and caches
    added = [seconds(tuned) - seconds(plain) for _ in range(pairs)]
    return added, statistics.median(seconds(lambda: plain(task.train)) for _ in range(3))


@dataclass
class Watched:
    """Passes a session's calls on and counts what the program around it takes: its steps, its data, its validation.

    Attributes:
        steps: seconds of the loop's body without the session's calls, and of everything before the loop and after it.
        validation: seconds of the validation function.
        data: seconds of data loaders while it trains.
    """

    session: Any
    steps: float = 0.0
    validation: float = 0.0
    data: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.ended = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def validate(self, function: Callable[[], float]) -> None:
        def watched() -> float:
            start, data = time.perf_counter(), self.data
            loss = function()
            self.validation += time.perf_counter() - start
            self.data = data  # what it loads is its own
            return loss

        self.session.validate(watched)

    def batches(self, loader: Any) -> Iterator[Any]:
        load = _BaseDataLoaderIter.__next__

        def watched(iterator: Any) -> Any:
            start = time.perf_counter()
            try:
                return load(iterator)
            finally:
                self.data += time.perf_counter() - start

        self.steps += time.perf_counter() - self.began
        with patch.object(_BaseDataLoaderIter, "__next__", watched):
            for batch in self.session.batches(loader):
                start = time.perf_counter()
                yield batch
                self.steps += time.perf_counter() - start
        self.ended = time.perf_counter()

    def report(self, loss: torch.Tensor) -> None:
        start = time.perf_counter()
        self.session.report(loss)
        self.steps -= time.perf_counter() - start


def outside(name: str = "char_gpt", times: int = 6) -> tuple[float, float]:
    """Wall time [s] of a tuned run with its search, and the part of it that is none of the program's own.

    Imports are made before; what stays is the library's: the session, checkpoints, the study, proposals.
    """
    task = replace(TASKS[name], times=times)
    task.load()
    watched: list[Watched] = []

    def train(session: Any) -> object:
        watched.append(here := Watched(session))
        result = task.train(here)
        here.steps += time.perf_counter() - here.ended  # the test after the loop
        return result

    def tuned(steps: int) -> float:
        watched.clear()
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            autolrs.tune(train, steps=steps, space=task.space, storage=folder)
            return time.perf_counter() - start

    tuned(250)  # imports
    wall = tuned(task.steps)
    (run,) = watched
    return wall, wall - run.steps - run.validation - run.data


def command_seconds(*words: str, repeats: int = 10) -> float:
    """Median seconds of a command."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write(pairs: int = 20, path: Path = DOCUMENT) -> None:
    """Measure everything and write the document."""
    torch.set_num_threads(1)
    step, detach = step_cost()
    (small_capture, small), (large_capture, large) = restore_cost(1), restore_cost(100)
    start = command_seconds(sys.executable, "-c", "pass")
    imports = command_seconds(sys.executable, "-c", "import autolrs") - start
    assistance = command_seconds(str(Path(sys.executable).with_name("autolrs")), "--help")
    added, whole = overhead(pairs)
    wall, ours = outside()
    ratios = [seconds / whole for seconds in added]
    mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    rows = [
        ("a step: hook, `report`, next item", f"{step * 1e6:.2f} µs", f"{step / detach:.1f} x `detach()`", "5 x"),
        ("restore 1 MB of state", f"{small * 1e3:.2f} ms", f"capture {small_capture * 1e3:.2f} ms", "0.5 ms"),
        ("restore 100 MB of state", f"{large * 1e3:.1f} ms", f"capture {large_capture * 1e3:.1f} ms", "20 ms"),
        (
            f"CPU time that `search_budget=0` adds to the char GPT example, {pairs} pairs",
            f"{mean:+.2%}",
            f"95 % interval {mean - 2.09 * error:+.2%} to {mean + 2.09 * error:+.2%}; "
            f"{statistics.fmean(added):.2f} s of {whole:.1f} s",
            "upper end 1 %",
        ),
        (
            "wall time outside the program's steps, data and validation: the char GPT in six times the steps, tuned",
            f"{ours / wall:.2%}",
            f"{ours:.2f} s of {wall:.0f} s, the search in it",
            "2 %",
        ),
        ("`autolrs --help`", f"{assistance:.2f} s", "median of 10", "0.4 s"),
        ("`import autolrs`", f"{imports:.3f} s", f"beyond Python's own {start:.3f} s", "0.15 s"),
    ]
    lines = [
        "# Performance",
        "",
        f"Written by `python -m benchmarks performance` (torch {torch.__version__}, one thread); edit nothing here by",
        "hand. Memory: at most three states (the stage's start, the live one, and the best plateau or one to be",
        "stored) and the batches of one stage's probes, at most `replay_memory`. `python -m benchmarks.proposals`",
        "times the search's own computations.",
        "",
        "| what | measured | | goal |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
