"""How the best rate of a complete miniature depends on its length -> docs/choices.md. Run: python -m benchmarks lengths

Miniatures as `horizon` probes them, of 2 to 16 % of a run, and whole runs, at rates a quarter of a decade apart, of the
development tasks, on seeds that the benchmark does not report.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Final

import numpy as np

from autolrs.schedules import Schedule
from autolrs.strategies.horizon import Horizon
from benchmarks import csvrows, rows
from benchmarks.families import DECAY
from benchmarks.plain import PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import TASKS, Task

ROWS: Final = RESULTS / "lengths.csv"
SEEDS: Final = (10, 11)
SHARES: Final = (0.02, 0.04, 0.08, 0.16, 1.0)
GAMMAS: Final = (0.0, 0.1, 0.2, 0.25, 0.32, 0.4, 0.5)
WIDTH: Final = 0.25
"""Standard deviation [decades] of the weights that a response is smoothed with."""

ENOUGH: Final = 5
"""A response of fewer rates is not shown."""

CENTRES: Final[Mapping[str, float]] = {
    "mnist_cnn": 0.036,
    "char_gpt": 0.0025,
    "tabular_mlp": 0.0088,
    "vit_digits": 0.0056,
    "gru_weather": 0.01,
    "finetune_digits": 0.0004,
    "glove_tokens": 0.316,
    "diamonds_resnet": 0.09,
    "photo_denoiser": 0.0316,
}
"""About the best rate of the whole run, after the tables of docs/benchmarks.md."""

Response = Iterable[tuple[float, float]]
"""Rates and validation losses; a rate may be there more than once."""


@dataclass(frozen=True)
class Row:
    task: str
    seed: int
    share: float
    rate: float
    validation_loss: float


def run_all(tasks: Sequence[str] = tuple(CENTRES)) -> None:
    """Run what is missing."""
    done = {(*key, rate) for key, found in _all().items() for rate in found}
    for seed, share, name in product(SEEDS, SHARES, tasks):
        for rate in _rates(TASKS[name], share):
            if (name, seed, share, rate) not in done:
                csvrows.append(Row(name, seed, share, rate, run(TASKS[name], share, rate, seed)), ROWS)


def run(task: Task, share: float, rate: float, seed: int) -> float:
    """Validation loss at the end of a miniature of that share of the task's steps; of the whole run for 1."""
    steps = round(share * task.steps)
    schedule = Schedule.build("wsd", rate=rate, steps=task.steps, warmup=task.warmup, decay=DECAY)
    if share < 1:
        schedule = Schedule(Horizon().miniature(rate, steps, task.warmup)[0])
    return train(task, PlainSession(steps, schedule), seed)[0]


def read() -> dict[tuple[str, int, float], dict[float, float]]:
    """Responses by task, seed and share, those of enough rates."""
    return {key: response for key, response in _all().items() if len(response) >= ENOUGH}


def _all() -> dict[tuple[str, int, float], dict[float, float]]:
    responses: defaultdict[tuple[str, int, float], dict[float, float]] = defaultdict(dict)
    for row in csvrows.read(Row, ROWS):
        responses[row.task, row.seed, row.share][row.rate] = row.validation_loss
    return dict(responses)


def whole_run(task: str) -> list[tuple[float, float]]:
    """The response of the whole run: of all seeds, and of the benchmark's rows with the same schedule."""
    here = [
        pair for (name, _, share), found in _all().items() if (name, share) == (task, 1.0) for pair in found.items()
    ]
    return here + [(row.rate, row.validation_loss) for row in rows.read() if (row.task, row.method) == (task, "wsd")]


def optimum(response: Response) -> float:
    """Rate of the lowest smoothed loss within what was tried."""
    response = tuple(response)
    x, _ = _finite(response)
    low, high = x[0], x[-1]
    for _ in range(5):  # each a fiftieth as wide
        grid = np.linspace(low, high, 101)
        best = grid[np.argmin(_smooth(response, grid))]
        low, high = max(x[0], best - (high - low) / 100), min(x[-1], best + (high - low) / 100)
    return float(10**best)


def regret(response: Response, rate: float) -> float:
    """By how much the smoothed loss at `rate` exceeds the lowest, as a share; beyond what was tried, at its end."""
    response = tuple(response)
    best, here = _smooth(response, np.log10([optimum(response), rate]))
    return math.expm1(max(0.0, here - best))


def section() -> list[str]:
    """Lines of Markdown."""
    responses = read()
    lines = [
        "## The best rate by length",
        "",
        "Written by `python -m benchmarks lengths`. Rate with the lowest validation loss of complete miniatures of a",
        f"share of the run (smoothed over a quarter of a decade; geometric mean of seeds {SEEDS},",
        "or of the first alone where the second was not run), and of the whole run:",
        "",
        "| task | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
        "| --- " * (len(SHARES) + 1) + "|",
    ]
    for task in CENTRES:
        best = {
            share: [
                math.log(optimum(responses[key].items())) for seed in SEEDS if (key := (task, seed, share)) in responses
            ]
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
    whole = {task: whole_run(task) for task in CENTRES}
    for share in SHARES[:3]:
        cells = []
        for gamma in GAMMAS:
            lost = [
                regret(whole[task], optimum(responses[task, seed, share].items()) * share**gamma)
                for task, seed in product(CENTRES, SEEDS)
                if (task, seed, share) in responses and len(whole[task]) >= ENOUGH
            ]
            cells.append(f"{fmean(lost):.1%} ({max(lost):.1%})" if lost else "")
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    return lines


def _finite(response: Response) -> tuple[np.ndarray, np.ndarray]:
    """log10 rates and log losses, in order; more than twice the lowest loss counts as twice."""
    finite = sorted((rate, loss) for rate, loss in response if math.isfinite(loss))
    rates, losses = np.array(finite).T
    return np.log10(rates), np.log(np.minimum(losses, 2 * losses.min()))


def _smooth(response: Response, at: np.ndarray) -> np.ndarray:
    """Log loss at log10 rates: a parabola through the log losses, the near ones weighted most."""
    x, y = _finite(response)
    found = []
    for middle in np.clip(at, x[0], x[-1]):
        weights = np.exp(-0.25 * ((x - middle) / WIDTH) ** 2)  # np.polyfit squares them
        found.append(np.polyfit(x - middle, y, 2, w=weights)[-1])
    return np.array(found)


def _rates(task: Task, share: float) -> list[float]:
    """A quarter of a decade apart about the task's centre: of miniatures 11, within the fixed schedules' rates."""
    low, centre, high = (round(4 * math.log10(rate)) for rate in (task.rates[0], CENTRES[task.name], task.rates[-1]))
    steps = range(centre - 3, centre + 4) if share == 1 else range(max(low, centre - 5), min(high, centre + 6) + 1)
    return [float(f"{10 ** (i / 4):.3g}") for i in steps]
