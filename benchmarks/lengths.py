"""How the best rate of a complete miniature depends on its length -> docs/choices.md. Run: python -m benchmarks lengths

Miniatures as `horizon` first probed them (warm-up 10 %, decay 40 %) of 2 to 32 % of a run, and whole runs, at rates a
quarter of a decade apart, on seeds that the benchmark does not report.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Final

import numpy as np

from autolrs.schedules import Schedule
from benchmarks import csvrows
from benchmarks.plain import PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import EXAMPLES, TASKS, Task

ROWS: Final = RESULTS / "lengths.csv"
SEEDS: Final = (10, 11)
SHARES: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
GAMMAS: Final = (0.0, 0.1, 0.2, 0.25, 0.32, 0.4, 0.5)
NEAR: Final = 1.0
"""Decades on each side of the lowest loss that the response is smoothed over."""

ENOUGH: Final = 5
"""A response of fewer rates is not shown."""

Response = Mapping[float, float]
"""Rate -> validation loss."""


@dataclass(frozen=True)
class Row:
    task: str
    seed: int
    share: float
    rate: float
    validation_loss: float


def run_all(tasks: Sequence[str] = EXAMPLES) -> None:
    """Run what is missing."""
    done = {(*key, rate) for key, found in _all().items() for rate in found}
    for seed, share, name in product(SEEDS, SHARES, tasks):
        for rate in _rates(TASKS[name]):
            if (name, seed, share, rate) not in done:
                csvrows.append(Row(name, seed, share, rate, run(TASKS[name], share, rate, seed)), ROWS)


def run(task: Task, share: float, rate: float, seed: int) -> float:
    """Validation loss at the end of a miniature of that share of the task's steps; of the whole run for 1."""
    steps = round(share * task.steps)
    warmup, decay = (round(0.1 * steps), 0.4) if share < 1 else (task.warmup, 0.2)
    schedule = Schedule.build("wsd", rate=rate, steps=steps, warmup=warmup, decay=decay)
    return train(task, PlainSession(steps, schedule), seed)[0]


def read() -> dict[tuple[str, int, float], dict[float, float]]:
    """Responses by task, seed and share, those of enough rates."""
    return {key: response for key, response in _all().items() if len(response) >= ENOUGH}


def _all() -> dict[tuple[str, int, float], dict[float, float]]:
    responses: defaultdict[tuple[str, int, float], dict[float, float]] = defaultdict(dict)
    for row in csvrows.read(Row, ROWS):
        responses[row.task, row.seed, row.share][row.rate] = row.validation_loss
    return dict(responses)


def optimum(response: Response) -> float:
    """Rate of the lowest loss of a parabola through the log losses near the lowest, within what was tried."""
    x, y = _near(response)
    a, b, _ = np.polyfit(x, y, 2)
    best = -b / (2 * a) if a > 0 else x[np.argmin(y)]
    return float(10 ** np.clip(best, x[0], x[-1]))


def regret(response: Response, rate: float) -> float:
    """By how much the smoothed loss at `rate` exceeds its lowest value, as a share."""
    x, y = _near(response)
    curve = np.poly1d(np.polyfit(x, y, 2))
    best = math.log10(optimum(response))
    return math.exp(max(0.0, curve(math.log10(rate)) - curve(best))) - 1


def section() -> list[str]:
    """Lines of Markdown."""
    responses = read()
    lines = [
        "## The best rate by length",
        "",
        "Written by `python -m benchmarks lengths`. Rate with the lowest validation loss of complete miniatures of a",
        f"share of the run (a parabola through log losses; geometric mean of seeds {SEEDS},",
        "or of the first alone where the second was not run), and of the whole run:",
        "",
        "| task | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
        "| --- " * (len(SHARES) + 1) + "|",
    ]
    for task in EXAMPLES:
        best = {
            share: [math.log(optimum(responses[key])) for seed in SEEDS if (key := (task, seed, share)) in responses]
            for share in SHARES
        }
        cells = [f"{math.exp(fmean(found)):.2g}" if found else "" for found in best.values()]
        if any(cells):
            lines.append(f"| {task} | {' | '.join(cells)} |")
    lines += [
        "",
        "So no exponent serves all. What the whole run loses (smoothed, over its best rate) if a miniature's best rate",
        "is multiplied by share^gamma, mean over seeds and tasks; the worst of them in brackets:",
        "",
        "| miniature | " + " | ".join(f"gamma {gamma:g}" for gamma in GAMMAS) + " |",
        "| --- " * (len(GAMMAS) + 1) + "|",
    ]
    for share in SHARES[:3]:
        cells = []
        for gamma in GAMMAS:
            lost = [
                regret(responses[task, seed, 1.0], optimum(responses[task, seed, share]) * share**gamma)
                for task, seed in product(EXAMPLES, SEEDS)
                if {(task, seed, share), (task, seed, 1.0)} <= responses.keys()
            ]
            cells.append(f"{fmean(lost):.1%} ({max(lost):.1%})" if lost else "")
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    return lines


def _near(response: Response) -> tuple[np.ndarray, np.ndarray]:
    """log10 rates and log losses within `NEAR` decades of the lowest, in order."""
    finite = {rate: loss for rate, loss in response.items() if math.isfinite(loss)}
    lowest = min(finite, key=finite.__getitem__)
    near = sorted(rate for rate in finite if abs(math.log10(rate / lowest)) <= NEAR + 0.01)
    return np.log10(near), np.log([finite[rate] for rate in near])


def _rates(task: Task) -> list[float]:
    """A quarter of a decade apart, over the decades of the fixed schedules' rates."""
    first = round(4 * math.log10(task.rates[0]))
    return [float(f"{10 ** (i / 4):.3g}") for i in range(first, first + 13)]
