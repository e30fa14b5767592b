"""Rows to docs/benchmarks.md: chosen on validation data, reported on test data too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from benchmarks.baselines import FAMILIES
from benchmarks.rows import BASELINES, TUNED, Row, read
from benchmarks.tasks import TASKS, Task

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEADER: Final = """# Benchmarks

Written by `python -m benchmarks table` from the rows that `python -m benchmarks baselines` and
`python -m benchmarks tuned` append to `benchmarks/results/`; edit nothing here by hand.

The tasks are the examples (`examples/`), each with fixed training, validation and test splits. A fixed schedule
and a tuned run with the same seed have the same initial weights and batches, the same number of kept steps and
the same warm-up. Every fixed family is tried at seven peak rates with the first seed; its two best, by
*validation* loss, are run with every seed, and the better of them by mean validation loss is its line below.

*search steps*: updates beyond the kept ones; for a fixed family the six runs that were thrown away, for autolrs its
probes (less those adopted as training) and roll-backs. *wall*: mean of one run, in seconds on one thread of a busy
machine, search included for autolrs. *to best*, *to untuned*: mean loss over that of the best tuned fixed schedule,
and over cosine at the optimizer's default rate; below 1 is better than it. sd: over seeds.
"""

COLUMNS: Final = (
    "method", "peak rate", "seeds", "validation", "sd", "test", "sd", "kept steps", "search steps", "wall",
    "validation to best", "test to best", "validation to untuned", "test to untuned",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The runs of one method that differ in nothing but the seed (and the rate, where it was found)."""

    label: str
    rows: tuple[Row, ...]
    search_steps: float

    @property
    def validation(self) -> float:
        return fmean(row.validation_loss for row in self.rows)

    @property
    def test(self) -> float:
        return fmean(row.test_loss for row in self.rows)


def fixed(rows: Sequence[Row], task: Task, family: str) -> Line | None:
    """The family's best rate by mean validation loss, among the rates run with the most seeds."""
    groups = _by_rate(row for row in rows if (row.task, row.method) == (task.name, family))
    if not groups:
        return None
    most = max(map(len, groups.values()))
    full = [group for group in groups.values() if len(group) == most]
    best = min(full, key=lambda group: _or_inf(fmean(row.validation_loss for row in group)))
    tries = len(groups)
    return Line(f"{family}, best of {tries} rates", tuple(best), (tries - 1) * task.steps)


def untuned(rows: Sequence[Row], task: Task) -> Line | None:
    found = [row for row in rows if (row.task, row.method, row.rate) == (task.name, "cosine", task.default_rate)]
    return Line("cosine, default rate", tuple(found), 0) if found else None


def tuned(rows: Sequence[Row], task: Task) -> list[Line]:
    strategies = dict.fromkeys(row.method for row in rows if row.task == task.name and row.method not in FAMILIES)
    lines = []
    for name in strategies:
        found = tuple(row for row in rows if (row.task, row.method) == (task.name, name))
        lines.append(Line(f"**autolrs**, `{name}`", found, fmean(row.probe_steps for row in found)))
    return lines


def section(rows: Sequence[Row], task: Task) -> str:
    """One task's tables."""
    families = [line for family in FAMILIES if (line := fixed(rows, task, family))]
    default = untuned(rows, task)
    best = min(families, key=lambda line: _or_inf(line.validation), default=None)
    lines = [*([default] if default else []), *families, *tuned(rows, task)]
    cells = [_cells(line, task, best, default) for line in lines]
    return "\n\n".join(
        (
            f"## {task.name}\n\n`{task.module.replace('.', '/')}.py`, {task.steps} steps, space `{task.space}`.",
            _markdown(COLUMNS, cells),
            "Validation loss of every fixed schedule with the first seed:",
            _rates(rows, task),
        )
    )


def write(path: Path = DOCUMENT) -> None:
    """Write the document from the rows on file."""
    rows = read([BASELINES, TUNED])
    seen = {row.task for row in rows}
    made = (
        f"Made with torch {_joined(row.torch for row in rows)}, autolrs {_joined(row.autolrs for row in rows)}, "
        f"commits {_joined(row.commit for row in rows)} (+: with changes not yet committed)."
    )
    parts = [HEADER.strip(), made, *(section(rows, task) for task in TASKS.values() if task.name in seen)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows -> {path}")


def _cells(line: Line, task: Task, best: Line | None, default: Line | None) -> list[str]:
    rates = sorted(row.rate for row in line.rows)
    ratios = [value for other in (best, default) for value in _ratios(line, other)]
    return [
        line.label,
        f"{rates[0]:.3g}" if rates[0] == rates[-1] else f"{rates[0]:.3g} to {rates[-1]:.3g}",
        ", ".join(str(seed) for seed in sorted(row.seed for row in line.rows)),
        *(f"{line.validation:.5f}", _sd([row.validation_loss for row in line.rows])),
        *(f"{line.test:.5f}", _sd([row.test_loss for row in line.rows])),
        f"{fmean(row.kept_steps for row in line.rows):.0f}",
        f"{line.search_steps:.0f}",
        f"{fmean(row.wall_seconds for row in line.rows):.1f}",
        *(f"{ratio:.3f}" if isfinite(ratio) else "" for ratio in ratios),
    ]


def _ratios(line: Line, other: Line | None) -> tuple[float, float]:
    """Over the seeds that both have: a mean over other seeds would compare seeds, not methods."""
    seeds = {row.seed for row in line.rows} & {row.seed for row in other.rows} if other else set()
    if other is None or not seeds:
        return nan, nan

    def mean(of: Line, loss: str) -> float:
        return fmean(getattr(row, loss) for row in of.rows if row.seed in seeds)

    losses = ("validation_loss", "test_loss")
    validation, test = (mean(line, loss) / mean(other, loss) for loss in losses)
    return validation, test


def _rates(rows: Sequence[Row], task: Task) -> str:
    first = min(row.seed for row in rows if row.task == task.name)
    losses = {(row.method, row.rate): row.validation_loss for row in rows if row.key == (task.name, row.method, first)}
    table = [
        [family, *(f"{losses[family, rate]:.4f}" if (family, rate) in losses else "" for rate in task.rates)]
        for family in FAMILIES
    ]
    return _markdown(("peak rate", *(f"{rate:g}" for rate in task.rates)), table)


def _by_rate(rows: Iterable[Row]) -> dict[float, list[Row]]:
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.rate, []).append(row)
    return groups


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _sd(values: Sequence[float]) -> str:
    return f"{stdev(values):.5f}" if len(values) > 1 else ""


def _or_inf(value: float) -> float:
    return value if isfinite(value) else inf


def _joined(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
