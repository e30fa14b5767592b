"""Whether miniatures can tell which shape of decay suits the run -> docs/choices.md. Run: python -m benchmarks shapes

Each schedule of a share of the run is the whole one in small, at three rates about its best, on seeds that the
benchmark does not report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

from benchmarks import paired
from benchmarks.csvrows import append, read
from benchmarks.families import FAMILIES
from benchmarks.paired import cell, named
from benchmarks.plain import PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import EXAMPLES, TASKS, Task

ROWS: Final = RESULTS / "shapes.csv"
USUAL: Final = "wsd"
SEEDS: Final = (10, 11)
SHARES: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
SHORT: Final[Mapping[str, tuple[float, ...]]] = {"wsd": (0.6, 1.0, 1.7), "linear": (1.0, 1.7, 2.8)}
WHOLE: Final[Mapping[str, tuple[float, ...]]] = {
    "wsd": (0.7, 1.0, 1.4),
    "linear": (1.4, 2.0, 2.8),
    "rex": (1.0, 1.4, 2.0),
    "wsd-sqrt": (0.7, 1.0, 1.4),
}
"""Shape -> its peak rates over `BEST`: what decays from the start wants a higher peak."""

BEST: Final[Mapping[str, tuple[float, ...]]] = {
    "mnist_cnn": (0.083, 0.067, 0.046, 0.042, 0.042, 0.036),
    "char_gpt": (0.013, 0.0077, 0.0056, 0.0034, 0.0026, 0.0022),
    "tabular_mlp": (0.0071, 0.015, 0.021, 0.023, 0.011, 0.0088),
}
"""The best rate of each of `SHARES` (docs/choices.md, the best rate by length)."""


@dataclass(frozen=True)
class Row:
    task: str
    share: float
    shape: str
    factor: float
    seed: int
    validation_loss: float


def run(task: Task, share: float, shape: str, factor: float, seed: int) -> Row:
    steps = round(share * task.steps)
    rate = factor * BEST[task.name][SHARES.index(share)]
    rates = FAMILIES[shape](rate, steps, round(task.warmup / task.steps * steps))
    validation, _ = train(task, PlainSession(steps, rates.__getitem__), seed)
    return Row(task.name, share, shape, factor, seed, validation)


def run_all() -> None:
    """Run what is missing."""
    done = {(row.task, row.share, row.shape, row.factor, row.seed) for row in read(Row, ROWS)}
    for seed, share, task in product(SEEDS, SHARES, EXAMPLES):
        for shape, factors in (WHOLE if share == 1 else SHORT).items():
            for factor in factors:
                if (task, share, shape, factor, seed) not in done:
                    append(run(TASKS[task], share, shape, factor, seed), ROWS)


def changes(rows: list[Row], task: str, share: float, shape: str) -> list[float]:
    """Relative changes of the loss at the shape's best rate, against WSD at its best, seed by seed."""
    rates = WHOLE if share == 1 else SHORT

    def of(shape: str) -> Callable[[Row], bool]:
        return lambda row: (row.task, row.share, row.shape) == (task, share, shape)

    return paired.changes(rows, of(shape), of(USUAL), (len(rates.get(shape, ())), len(rates[USUAL])))


def section() -> list[str]:
    """Lines of Markdown."""
    rows = read(Row, ROWS)
    lines = [
        "## The shape of the decay",
        "",
        "Written by `python -m benchmarks shapes`. Change of the validation loss against WSD (20 % decay), each at the",
        f"best of three peak rates; seeds {SEEDS}, mean ± sd, paired. Short runs have the same shape in small. What",
        "suits the GPT and the MLP can be seen in miniatures of 4 and 8 %; what suits the CNN only in the whole run.",
        "",
        f"| task | shape | {' | '.join(map(named, SHARES))} |",
        "| --- " * (2 + len(SHARES)) + "|",
    ]
    for task, shape in product(EXAMPLES, (shape for shape in WHOLE if shape != USUAL)):
        cells = [cell(changes(rows, task, share, shape)) for share in SHARES]
        if any(cells):
            lines.append(f"| {task} | {shape} | {' | '.join(cells)} |")
    return lines
