"""What another momentum is worth, and whether miniatures can tell -> docs/choices.md.

Run: python -m benchmarks momentum

Momentum of SGD, beta_1 of Adam, at rates about the best for the usual 0.9; for SGD times (1 - momentum) / 0.1, which
leaves the size of a step as it is. In miniatures (warm-up 10 %, decay 40 %) and in whole runs, on seeds that the
benchmark does not report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import torch
from torch.optim import Optimizer

from autolrs.schedules import Schedule
from benchmarks.csvrows import append, read
from benchmarks.multipliers import BEST, cell
from benchmarks.plain import MakeOptimizer, PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import EXAMPLES, TASKS, Task

ROWS: Final = RESULTS / "momentum.csv"
USUAL: Final = 0.9
MOMENTA: Final = (0.6, 0.8, USUAL, 0.95)
FACTORS: Final = (0.6, 1.0, 1.7)
"""Of the rate: another momentum may want another rate."""
SHARES: Final[Mapping[float, tuple[int, ...]]] = {0.04: (10, 11, 12), 0.08: (10, 11, 12), 1.0: (10, 11)}
"""Share of the run -> seeds."""


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
        for group in own.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
        return own

    return make


def run(task: Task, share: float, momentum: float, factor: float, seed: int) -> Row:
    steps = round(share * task.steps)
    warmup, decay = (round(0.1 * steps), 0.4) if share < 1 else (task.warmup, 0.2)
    rate = factor * BEST[task.name][share] * ((1 - momentum) / (1 - USUAL) if task.space == "sgd" else 1.0)
    schedule = Schedule.build("wsd", rate=rate, steps=steps, warmup=warmup, decay=decay)
    validation, _ = train(task, PlainSession(steps, schedule), seed, with_momentum(momentum))
    return Row(task.name, share, momentum, factor, seed, validation)


def run_all() -> None:
    """Run what is missing."""
    done = {(row.task, row.share, row.momentum, row.factor, row.seed) for row in read(Row, ROWS)}
    for share, seeds in SHARES.items():
        for seed, task, momentum, factor in product(seeds, EXAMPLES, MOMENTA, FACTORS):
            if (task, share, momentum, factor, seed) not in done:
                append(run(TASKS[task], share, momentum, factor, seed), ROWS)


def changes(rows: list[Row], task: str, share: float, momentum: float) -> list[float]:
    """Relative changes of the loss at the best of the rates, against the usual momentum at its best, seed by seed."""

    def best(of: float, seed: int) -> float:
        key = (task, share, of, seed)
        losses = [row.validation_loss for row in rows if (row.task, row.share, row.momentum, row.seed) == key]
        return min(losses) if len(losses) == len(FACTORS) else float("nan")

    pairs = [(best(momentum, seed), best(USUAL, seed)) for seed in SHARES[share]]
    return [mine / usual - 1 for mine, usual in pairs if mine == mine and usual == usual]


def section() -> list[str]:
    """Lines of Markdown."""
    rows = read(Row, ROWS)
    lines = [
        "## Momentum",
        "",
        "Written by `python -m benchmarks momentum`. Change of the validation loss against a momentum (beta_1) of 0.9,",
        f"each at the best of three rates ({', '.join(f'{factor:g}' for factor in FACTORS)} times about the best for",
        "0.9); mean ± sd over seeds, paired.",
        "",
        f"| task | momentum | {' | '.join('whole run' if share == 1 else f'{share:.0%}' for share in SHARES)} |",
        "| --- " * (2 + len(SHARES)) + "|",
    ]
    for task, momentum in product(EXAMPLES, (m for m in MOMENTA if m != USUAL)):
        cells = [cell(changes(rows, task, share, momentum)) for share in SHARES]
        if any(cells):
            lines.append(f"| {task} | {momentum:g} | {' | '.join(cells)} |")
    return lines
