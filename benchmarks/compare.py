"""Rows to comparisons: chosen on validation data, paired by seed, with intervals.

Notation
    r_s     log(loss of one method / loss of another), both run with seed s
    ratio   exp(mean of r_s); its 95 % interval is Student's t on the r_s        (a geometric mean over seeds)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.rows import Row


@dataclass(frozen=True)
class Line:
    """The runs of one method with one setting: they differ in nothing but the seed (and the rate, where it was found).

    Attributes:
        tries: settings that were tried to find this one.
    """

    method: str
    rows: tuple[Row, ...]
    tries: int = 1

    @property
    def validation(self) -> float:
        return fmean(row.validation_loss for row in self.rows)

    @property
    def test(self) -> float:
        return fmean(row.test_loss for row in self.rows)

    @property
    def search_steps(self) -> float:
        """Updates beyond the kept ones, a seed: its own probes, and the runs of the other settings tried."""
        return fmean(row.probe_steps + (self.tries - 1) * (row.kept_steps + row.probe_steps) for row in self.rows)


@dataclass(frozen=True)
class Ratio:
    """A ratio of losses and its 95 % interval; NaN bounds if there is but one pair."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) else "")


def best_line(rows: Iterable[Row], task: str, methods: Iterable[str]) -> Line | None:
    """The best of the methods' best settings, by mean validation loss over the seeds that all of them were run with."""
    lines = [line for method in methods if (line := line_of(rows, task, method))]
    common = set.intersection(*({row.seed for row in line.rows} for line in lines)) if lines else set()

    def validation(line: Line) -> float:
        return or_inf(fmean([row.validation_loss for row in line.rows if row.seed in common] or [math.nan]))

    return min(lines, key=validation, default=None)


def line_of(rows: Iterable[Row], task: str, method: str) -> Line | None:
    """The method's best setting by mean validation loss, among those run with the most seeds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if (row.task, row.method) == (task, method):
            groups.setdefault(row.settings, []).append(row)
    if not groups:
        return None
    most = max(map(len, groups.values()))
    full = [group for group in groups.values() if len(group) == most]
    best = min(full, key=lambda group: or_inf(fmean(row.validation_loss for row in group)))
    return Line(method, tuple(sorted(best, key=lambda row: row.seed)), len(groups))


def ratio(line: Line, other: Line, loss: str = "test_loss") -> Ratio | None:
    """`line` over `other`, over the seeds that both have; None if there are none, or a loss has no logarithm."""
    theirs = {row.seed: getattr(row, loss) for row in other.rows}
    pairs = [(getattr(row, loss), theirs[row.seed]) for row in line.rows if row.seed in theirs]
    if not pairs or not all(0 < value < math.inf for pair in pairs for value in pair):
        return None
    return _interval([math.log(mine / other) for mine, other in pairs])


def over_tasks(ratios: Sequence[Ratio]) -> Ratio | None:
    """Geometric mean of ratios of several tasks; its interval is of these tasks, not of tasks yet unseen.

    The standard errors of the tasks are independent and add up in squares.
    """
    if not ratios:
        return None
    logs = [math.log(each.value) for each in ratios]
    halves = [math.log(each.high / each.value) if math.isfinite(each.high) else math.nan for each in ratios]
    mean, half = fmean(logs), math.sqrt(sum(h * h for h in halves)) / len(halves)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), min(each.pairs for each in ratios))


def _interval(logs: Sequence[float]) -> Ratio:
    mean = fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), math.nan, math.nan, len(logs))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def or_inf(value: float) -> float:
    """A loss to be sorted by: one that is not finite comes last."""
    return value if math.isfinite(value) else math.inf
