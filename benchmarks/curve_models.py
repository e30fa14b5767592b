"""What the curve model changes in both strategies, in whole runs of the examples -> a part of docs/curves.md.

Run: python -m benchmarks models [--seeds S ...] [--share K/N]. It makes what is missing, then writes that part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, median
from typing import Any, Final

from benchmarks.curves import DOCUMENT, markdown
from benchmarks.paired import geometric_mean
from benchmarks.rows import RESULTS, Row, append, read, run_number
from benchmarks.siblings import put
from benchmarks.tasks import EXAMPLES, TASKS, Task
from benchmarks.tuned import run

ROWS: Final = RESULTS / "curve_models.parquet"
HEADING: Final = "## What the curve model changes on the examples"
SEEDS: Final = (0, 1, 2)
ALL: Final = "all"


@dataclass(frozen=True)
class Variant:
    """How a run is tuned, and the name of the variant that it is compared with."""

    curve_model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "autolrs"
    against: str = "exponential"


VARIANTS: Final[Mapping[str, Variant]] = {
    "exponential": Variant("exponential"),
    "bayes": Variant("bayes"),
    "pfn": Variant("pfn"),
    "auto": Variant("auto"),
    "exponential, each by itself": Variant("exponential", {"pool": False}),
    "auto, each by itself": Variant("auto", {"pool": False}),
    "horizon": Variant("auto", strategy="horizon", against="horizon"),
    "horizon, losers by auto": Variant("auto", {"stop": "chance"}, strategy="horizon", against="horizon"),
}

_INTRODUCTION = """\
Written by `python -m benchmarks models`; edit nothing here by hand. Whole runs of the examples. Strategy `autolrs` with
its defaults chooses the rate of each stage by what the curve model forecasts of ten probes: its rows are curve models,
with gains pooled over the rates of a stage or (*each by itself*, `pool=False`) ranked as they are forecast. `horizon`,
the default strategy, measures complete miniatures; it asks the curve model only if it is told to (`stop="chance"`, the
row *losers by auto*), for which of them to give up.

- *validation*, *test*: loss at the end of the run over that of the row of 1.000 above, with the same seed: geometric
  mean over the pairs, ± its standard error. A run of the CNN varies by 3 % from seed to seed, of the GPT by 1 %, of the
  MLP by 3 %.
- *pairs*: seeds; on all examples, examples and seeds.
- *extra steps*: probe steps a kept step, mean.
- *rate*: highest rate of the run's schedule over that of the pair's other run, median."""


def run_all(
    seeds: Sequence[int] = SEEDS,
    *,
    tasks: Iterable[Task] = tuple(TASKS[name] for name in EXAMPLES),
    names: Iterable[str] = tuple(VARIANTS),
    share: tuple[int, int] = (0, 1),
) -> None:
    """Make what is missing and append its rows.

    Args:
        share: (k, n): of n processes side by side this is number k, from 0; each makes its own part of the runs.
    """
    done = {(row.task, row.method, row.seed) for row in read(ROWS)}
    for seed, task, name in product(seeds, tuple(tasks), tuple(names)):
        wanted = task.name, name, seed
        if wanted not in done and run_number(*wanted) % share[1] == share[0]:
            variant = VARIANTS[name]
            row = run(task, variant.strategy, seed, label=name, curve_model=variant.curve_model, **variant.options)
            append(row, ROWS)
            print(f"{task.name}, {name}, seed {seed}: test {row.test_loss:.5g}, {row.wall_seconds} s", flush=True)


def write() -> None:
    """Put this part of the report in its place."""
    put(DOCUMENT, HEADING, section())


def section() -> list[str]:
    """Markdown lines for docs/curves.md."""
    rows = read(ROWS)
    if not rows:
        missing = f"There is no `benchmarks/results/{ROWS.name}` yet: the same command writes it."
        return [*_INTRODUCTION.splitlines(), "", missing]
    head = ["example", "curve model", "pairs", "validation", "test", "extra steps", "rate"]
    return [*_INTRODUCTION.splitlines(), "", *markdown(head, list(_table(rows)))]


def _table(rows: Sequence[Row]) -> Iterator[list[str]]:
    for task, name in product((*EXAMPLES, ALL), VARIANTS):
        if found := pairs(rows, task, name):
            yield [task, name, str(len(found)), *_cells(found, name)]


def pairs(rows: Sequence[Row], task: str, name: str) -> list[tuple[Row, Row]]:
    """Runs with a variant beside those it is compared with, same example (or `ALL` of them) and seed."""
    against = VARIANTS[name].against
    of = {(row.task, row.method, row.seed): row for row in rows if row.task in EXAMPLES}
    mine = [row for row in of.values() if row.method == name and task in (row.task, ALL)]
    both = [(row, of[other]) for row in mine if (other := (row.task, against, row.seed)) in of]
    return [(row, other) for row, other in both if math.isfinite(other.validation_loss)]  # over NaN all is NaN


def _cells(found: Sequence[tuple[Row, Row]], name: str) -> list[str]:
    return [
        ratio([a.validation_loss / b.validation_loss for a, b in found], known=name == VARIANTS[name].against),
        ratio([a.test_loss / b.test_loss for a, b in found], known=name == VARIANTS[name].against),
        f"{fmean(row.probe_steps / row.kept_steps for row, _ in found):.2f}",
        f"{median(a.rate / b.rate for a, b in found):.2f}",
    ]


def ratio(ratios: Sequence[float], *, known: bool = False) -> str:
    """A geometric mean, with the standard error of its logarithm unless it is `known` or of a single pair."""
    if not all(map(math.isfinite, ratios)):
        return "diverged"
    mean, error = geometric_mean(ratios)
    return f"{mean:.3f}" + ("" if known or math.isnan(error) else f" ± {error:.3f}")
