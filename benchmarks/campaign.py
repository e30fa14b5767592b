"""Which runs are still missing, and making them: `python -m benchmarks run`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks.compare import or_inf
from benchmarks.methods import Method, Settings
from benchmarks.rows import RUNS, Row, append, read, run_number, settings_key
from benchmarks.tasks import Task

FINALISTS: Final = 2
"""Settings of each method that are run with every seed, not the first one only."""

Run = tuple[Task, Method, Settings, int]


def finalists(rows: Iterable[Row], task: Task, method: Method, seed: int) -> list[Settings]:
    """The settings of a method with the lowest validation loss at `seed`, best first."""
    losses = {
        row.settings: row.validation_loss for row in rows if row.key == (task.name, method.name, row.settings, seed)
    }
    known = [settings for settings in method.settings(task) if settings_key(settings) in losses]
    return sorted(known, key=lambda settings: or_inf(losses[settings_key(settings)]))[:FINALISTS]


def missing(
    rows: Sequence[Row], tasks: Sequence[Task], methods: Sequence[Method], seeds: Sequence[int]
) -> Iterator[Run]:
    """The runs still missing that can be named already: all settings with the first seed, then its finalists."""
    done = {row.key for row in rows}
    first, *others = seeds

    def new(task: Task, method: Method, settings: Iterable[Settings], seed: int) -> Iterator[Run]:
        for each in settings:
            if (task.name, method.name, settings_key(each), seed) not in done:
                yield task, method, each, seed

    for task, method in product(tasks, methods):
        yield from new(task, method, method.settings(task), first)
    for seed, task, method in product(others, tasks, methods):
        if not any(True for _ in new(task, method, method.settings(task), first)):
            yield from new(task, method, finalists(rows, task, method, first), seed)


def run_all(
    tasks: Sequence[Task],
    methods: Sequence[Method],
    seeds: Sequence[int],
    *,
    budget_minutes: float = math.inf,
    share: tuple[int, int] = (0, 1),
    path: Path = RUNS,
) -> None:
    """Make what is missing and append its rows; stop before a run that would not fit in the budget.

    A run that raises a `TimeoutError` is left for the next call.

    Args:
        share: (k, n): of n processes side by side this is number k, from 0; each makes its own part of the runs.
    """
    began, walls = time.monotonic(), {"": 0.0}
    late: set[int] = set()
    while mine := [
        run
        for run in missing(read(path), tasks, methods, seeds)
        if _number(run) % share[1] == share[0] and _number(run) not in late
    ]:
        task, method, settings, seed = mine[0]
        if time.monotonic() - began + walls.get(task.name, max(walls.values())) > 60 * budget_minutes:
            print(f"stopped: the budget of {budget_minutes:g} minutes is spent; run again to continue", flush=True)
            return
        try:
            row = method.run(task, dict(settings), seed)
        except TimeoutError as error:
            late.add(_number(mine[0]))
            print(f"{task.name} {method.name} {settings_key(settings)} seed {seed}: {error}", flush=True)
            continue
        append(row, path)
        walls[task.name] = max(walls.get(task.name, 0.0), row.wall_seconds)
        print(
            f"{task.name} {method.name} {settings_key(settings)} seed {seed}: validation {row.validation_loss:.5g}, "
            f"test {row.test_loss:.5g}, {row.kept_steps} + {row.probe_steps} steps, {row.wall_seconds} s; "
            f"{len(mine) - 1} known to be left",
            flush=True,
        )


def _number(run: Run) -> int:
    task, method, settings, seed = run
    return run_number(task.name, method.name, settings_key(settings), seed)
