"""What another momentum is worth, and whether miniatures can tell -> docs/choices.md.

Run: python -m benchmarks momentum

Momentum of SGD, beta_1 of Adam, at rates about the best for the usual 0.9; for SGD times (1 - momentum) / 0.1, which
leaves the size of a step as it is. In miniatures (warm-up 10 %, decay 40 %) and in whole runs, on seeds that the
benchmark does not report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import torch
from torch.optim import Optimizer

from autolrs.momentum import set_momentum
from autolrs.schedules import Schedule
from benchmarks import paired, shapes
from benchmarks.csvrows import append, read
from benchmarks.multipliers import BEST
from benchmarks.paired import cell, named
from benchmarks.plain import MakeOptimizer, PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import EXAMPLES, TASKS, Task

ROWS: Final = RESULTS / "momentum.csv"
USUAL: Final = 0.9
MOMENTA: Final = (0.6, 0.8, USUAL, 0.95)
FACTORS: Final = (0.6, 1.0, 1.7)
"""Of the rate: another momentum may want another rate."""
SHARES: Final[Mapping[float, tuple[int, ...]]] = {0.04: (10, 11, 12), 0.08: (10, 11, 12), 1.0: (10, 11), 4.0: (10, 11)}
"""Share of the run -> seeds; 4 is a run four times as long, at one rate, and with a momentum of 0.8 only."""
LONG_RATE: Final = 0.71
"""Its rate, over the whole run's: about 4^-0.25."""


@dataclass(frozen=True)
class Row:
    task: str
    share: float
    momentum: float
    factor: float
    seed: int
    validation_loss: float


def with_momentum(momentum: float) -> MakeOptimizer:
    """The task's own optimizer with another momentum."""

    def make(model: torch.nn.Module, own: Optimizer) -> Optimizer:
        set_momentum(own.param_groups, momentum)
        return own

    return make


def run(task: Task, share: float, momentum: float, factor: float, seed: int) -> Row:
    steps = round(share * task.steps)
    warmup, decay = (round(0.1 * steps), 0.4) if share < 1 else (task.warmup, 0.2)
    best = LONG_RATE * shapes.BEST[task.name][-1] if share > 1 else BEST[task.name][share]
    rate = factor * best * ((1 - momentum) / (1 - USUAL) if task.space == "sgd" else 1.0)
    schedule = Schedule.build("wsd", rate=rate, steps=steps, warmup=warmup, decay=decay)
    validation, _ = train(task, PlainSession(steps, schedule), seed, with_momentum(momentum))
    return Row(task.name, share, momentum, factor, seed, validation)


def run_all() -> None:
    """Run what is missing."""
    done = {(row.task, row.share, row.momentum, row.factor, row.seed) for row in read(Row, ROWS)}
    for share, seeds in SHARES.items():
        momenta, factors = grid(share)
        for seed, task, momentum, factor in product(seeds, EXAMPLES, momenta, factors):
            if (task, share, momentum, factor, seed) not in done:
                append(run(TASKS[task], share, momentum, factor, seed), ROWS)


def grid(share: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Momenta and factors of the rate that a share is run with."""
    return ((0.8, USUAL), (1.0,)) if share > 1 else (MOMENTA, FACTORS)


def changes(rows: list[Row], task: str, share: float, momentum: float) -> list[float]:
    """Relative changes of the loss at the best of the rates, against the usual momentum at its best, seed by seed."""

    def of(momentum: float) -> Callable[[Row], bool]:
        return lambda row: (row.task, row.share, row.momentum) == (task, share, momentum)

    count = len(grid(share)[1])
    return paired.changes(rows, of(momentum), of(USUAL), (count, count))


def section() -> list[str]:
    """Lines of Markdown."""
    rows = read(Row, ROWS)
    lines = [
        "## Momentum",
        "",
        "Written by `python -m benchmarks momentum`. Change of the validation loss against a momentum (beta_1) of 0.9,",
        f"each at the best of three rates ({', '.join(f'{factor:g}' for factor in FACTORS)} times about the best for",
        "0.9), four times as long at the middle one; mean ± sd over seeds, paired. Lower momentum gains most in short",
        "runs, and in runs four times as long hardly anything.",
        "",
        f"| task | momentum | {' | '.join(map(named, SHARES))} |",
        "| --- " * (2 + len(SHARES)) + "|",
    ]
    for task, momentum in product(EXAMPLES, (m for m in MOMENTA if m != USUAL)):
        cells = [cell(changes(rows, task, share, momentum)) for share in SHARES]
        if any(cells):
            lines.append(f"| {task} | {momentum:g} | {' | '.join(cells)} |")
    return lines
