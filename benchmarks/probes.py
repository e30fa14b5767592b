"""How long a probe, and how much of the budget -> docs/choices.md. Run: python -m benchmarks probes

Whole runs of `horizon` on the development tasks, on seeds that the benchmark does not report. From run to run losses
differ by more than what is looked for; so the rate that each search chose is judged by the smoothed response of whole
runs (`benchmarks.lengths`), too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any, Final

from autolrs.space import SearchSpace
from benchmarks import lengths
from benchmarks.csvrows import append, read
from benchmarks.paired import geometric_mean
from benchmarks.rows import RESULTS
from benchmarks.tasks import TASKS, Task

ROWS: Final = RESULTS / "probes.csv"
SEEDS: Final = (10, 11)
FORMER: Final = "4 %, at most 80 % of the budget"
LONGER: Final = "6 %, all of the budget"
RISING: Final = "the base schedule rises for 20 % and decays for 30 % of the run, not 5 and 20"
CHOICES: Final[Mapping[str, tuple[float, dict[str, Any], dict[str, Any]]]] = {
    FORMER: (0.24, {"length": 0.04}, {}),
    LONGER: (0.3, {"length": 0.06}, {}),
    f"{LONGER}; {RISING}": (0.3, {"length": 0.06}, {"warmup": 0.2, "decay": 0.3}),
    f"{LONGER}; the same, and gamma 0.1": (0.3, {"length": 0.06, "gamma": 0.1}, {"warmup": 0.2, "decay": 0.3}),
    f"{LONGER}, between the neighbours of the best, none stopped before half of its decay: the default now": (
        0.3,
        {},
        {},
    ),
}
"""Name -> (search budget, options of the strategy, changes of the space). All but the last were run when proposals
could lie anywhere and probes be stopped from 40 % on, up to commit 756716f."""


@dataclass(frozen=True)
class Row:
    task: str
    choice: str
    seed: int
    rate: float
    validation_loss: float


def run(task: Task, choice: str, seed: int) -> Row:
    from benchmarks.tuned import run as tuned

    budget, options, changes = CHOICES[choice]
    space = replace(SearchSpace.load(task.space), **changes)
    made = tuned(task, "horizon", seed, space=space, budget=budget, **options)
    return Row(task.name, choice, seed, made.rate, made.validation_loss)


def run_all() -> None:
    """Run what is missing."""
    done = {(row.task, row.choice, row.seed) for row in read(Row, ROWS)}
    for seed, choice, task in product(SEEDS, CHOICES, lengths.CENTRES):
        if (task, choice, seed) not in done:
            append(run(TASKS[task], choice, seed), ROWS)


def lost(rows: list[Row], task: str, choice: str) -> float | None:
    """By how much the rates of a choice exceed the lowest smoothed loss of whole runs, as a share; mean over seeds.
    None: not all were run, or of another schedule."""
    rates = [row.rate for row in rows if (row.task, row.choice) == (task, choice)]
    if CHOICES[choice][2] or len(rates) < len(SEEDS):
        return None
    whole = lengths.whole_run(task)
    return fmean(lengths.regret(whole, rate) for rate in rates)


def section() -> list[str]:
    """Lines of Markdown."""
    rows = read(Row, ROWS)
    losses = {(row.task, row.choice, row.seed): row.validation_loss for row in rows}
    runs = list(product(lengths.CENTRES, SEEDS))
    lines = [
        "## How long a probe",
        "",
        "Written by `python -m benchmarks probes`. What the rate that `horizon` chose costs in the whole run, over the",
        f"best rate's smoothed loss: mean of seeds {SEEDS}. *validation*: losses of the tuned runs themselves, over",
        f"those with probes of {FORMER}; geometric mean ± standard error. A run",
        "of the CNN or the transformer differs from the next by 5 to 10 %, so this tells less. Of the lines without",
        "costs the base schedule is another.",
        "",
        f"| probes | {' | '.join(lengths.CENTRES)} | mean | validation |",
        "| --- " * (len(lengths.CENTRES) + 3) + "|",
    ]
    for choice in CHOICES:
        if any((task, choice, seed) not in losses for task, seed in runs):
            continue  # its runs are still to be made
        found = [lost(rows, task, choice) for task in lengths.CENTRES]
        known = [each for each in found if each is not None]
        cells = ["" if each is None else f"{each:.1%}" for each in found]
        cells.append(f"{fmean(known):.1%}" if len(known) == len(found) else "")
        mean, error = geometric_mean(losses[task, choice, seed] / losses[task, FORMER, seed] for task, seed in runs)
        cells.append(f"{mean:.3f}" + (f" ± {error:.3f}" if error else ""))
        lines.append(f"| {choice} | {' | '.join(cells)} |")
    return lines
