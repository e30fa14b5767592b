"""Changes of the loss, paired by seed, as the tables of docs/choices.md show them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Protocol, TypeVar


class Seeded(Protocol):
    """What a row must say."""

    @property
    def seed(self) -> int: ...
    @property
    def validation_loss(self) -> float: ...


R = TypeVar("R", bound=Seeded)


def lowest(rows: Iterable[Seeded], count: int) -> dict[int, float]:
    """The lowest loss of each seed that has all of `count` rows, one a rate; NaN where all diverged."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        losses[row.seed].append(row.validation_loss)
    return {
        seed: min(filter(math.isfinite, found), default=math.nan)
        for seed, found in losses.items()
        if len(found) == count
    }


def changes(
    rows: list[R], this: Callable[[R], bool], usual: Callable[[R], bool], counts: tuple[int, int]
) -> list[float]:
    """Relative changes of the loss, each at the best of its rates, seed by seed.

    Args:
        this, usual: which rows are of the one, and of what it is held against.
        counts: how many rates each is tried with; a seed with a rate missing is left out.
    """
    mine = lowest(filter(this, rows), counts[0])
    others = lowest(filter(usual, rows), counts[1])
    return [mine[seed] / others[seed] - 1 for seed in sorted(mine.keys() & others.keys())]


def geometric_mean(ratios: Iterable[float]) -> tuple[float, float]:
    """Of positive ratios, and the standard error of its logarithm: NaN of a single one."""
    logs = [math.log(each) for each in ratios]
    return math.exp(fmean(logs)), stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan


def named(share: float) -> str:
    """A share, for a table's head."""
    return "whole run" if share == 1 else f"{share:g} times as long" if share > 1 else f"{share:.0%}"


def cell(found: list[float]) -> str:
    """Mean and standard deviation of relative changes."""
    if not found or not all(map(math.isfinite, found)):
        return "diverged" if found else ""
    return f"{fmean(found):+.1%}" + (f" ± {stdev(found):.1%}" if len(found) > 1 else "")
