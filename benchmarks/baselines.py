"""Fixed schedules: the plain loop that autolrs is compared with, at seven peak rates each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from statistics import fmean
from typing import Any, Final

import torch
from torch.optim import Optimizer

from autolrs.schedules import Schedule
from benchmarks.rows import BASELINES, Row, append, read
from benchmarks.tasks import Task, seed_all

FAMILIES: Final = ("cosine", "linear", "wsd")
"""Base schedules; `wsd` decays over the last 20 % of the steps."""

FINALISTS: Final = 2
"""Rates of each family that are run with every seed, not the first one only."""


Run = tuple[Task, str, float, int]
"""Task, base schedule, peak rate, seed."""


class PlainSession:
    """The four calls of a session around an ordinary loop: a rate before each batch, and the end of the run."""

    args: Final[dict[str, str]] = {}

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def track(self, *, model: torch.nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def validate(self, function: Callable[[], float]) -> None:
        self.validation_loss = function

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        step = 0
        while True:
            for batch in loader:
                if step == self.schedule.steps:
                    return
                for group in self.optimizer.param_groups:
                    group["lr"] = self.schedule(step)
                yield batch
                step += 1

    def report(self, loss: torch.Tensor) -> None:
        """A plain loop has no use for it."""


def run(task: Task, method: str, rate: float, seed: int) -> Row:
    """Train the task once with the base schedule `method` at peak `rate`."""
    task.load()
    schedule = Schedule.build(method, rate=rate, steps=task.steps, warmup=task.warmup)
    session = PlainSession(schedule)
    seed_all(seed)
    start = time.perf_counter()
    result = task.train(session)
    wall = time.perf_counter() - start
    validation_loss = float(session.validation_loss())
    return Row(task.name, method, rate, seed, validation_loss, result["test_loss"], task.steps, 0, round(wall, 2))


def finalists(rows: Sequence[Row], task: Task, method: str, seed: int) -> list[float]:
    """The rates of a family with the lowest validation loss at `seed`, best first."""
    found = [row for row in rows if row.key == (task.name, method, seed)]
    return [row.rate for row in sorted(found, key=lambda row: _or_inf(row.validation_loss))[:FINALISTS]]


def wanted(rows: Sequence[Row], tasks: Sequence[Task], seeds: Sequence[int]) -> list[Run]:
    """The runs still missing that can be named already, in order.

    All rates with the first seed; then with the others the finalists and cosine at the default rate.
    """
    done = {(*row.key, row.rate) for row in rows}

    def missing(runs: Iterable[Run]) -> list[Run]:
        return [run for run in runs if (run[0].name, run[1], run[3], run[2]) not in done]

    first, *others = seeds
    runs = [(task, method, rate, first) for task, method in product(tasks, FAMILIES) for rate in task.rates]
    if not missing(runs):
        for seed, task, method in product(others, tasks, FAMILIES):
            untuned = [task.default_rate] if method == "cosine" else []
            rates = dict.fromkeys(finalists(rows, task, method, first) + untuned)
            runs += [(task, method, rate, seed) for rate in rates]
    return missing(runs)


def run_all(tasks: Sequence[Task], seeds: Sequence[int], budget_minutes: float) -> None:
    """Run what is missing and append its rows; stop before a run that would not fit in the budget."""
    start, walls = time.monotonic(), [0.0]
    while missing := wanted(read([BASELINES]), tasks, seeds):
        task, method, rate, seed = missing[0]
        if time.monotonic() - start + max(walls) > 60 * budget_minutes:
            print(f"stopped: the budget of {budget_minutes} minutes is spent; run again to continue", flush=True)
            return
        row = run(task, method, rate, seed)
        append(row, BASELINES)
        walls.append(row.wall_seconds)
        print(
            f"{task.name} {method} rate {rate:g} seed {seed}: validation {row.validation_loss:.5f}, "
            f"test {row.test_loss:.5f}, {row.wall_seconds} s (mean {fmean(walls[1:]):.1f} s); "
            f"{len(missing) - 1} known to be left",
            flush=True,
        )


def _or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
