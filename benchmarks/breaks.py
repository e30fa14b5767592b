"""How often `autolrs.breaks` calls a real training run broken -> stdout. Run: python -m benchmarks breaks

As if each curve were a run with 32 checkpoints; nothing is rolled back. A rate is good where the run ends within a
tenth of the progress of the best run of its group, curves with the same start.
"""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Final

import numpy as np

from autolrs.breaks import broken
from benchmarks.windows import Run, curves_folder, read_runs

CHECKPOINTS: Final = 32
FEWEST: Final = 100
"""Points that a curve must have."""
GOOD: Final = 0.1
END: Final = 3
"""Levels whose mean is the loss at the end."""


def levels_of(run: Run) -> list[float]:
    """Losses at the start and before each checkpoint, up to the first that is not finite."""
    steps, losses, end = run.steps, run.losses, run.steps[-1]
    levels = [float(losses[: max(1, len(losses) // 200)].mean())]
    for k in range(1, CHECKPOINTS + 1):
        here = losses[(steps > end * (k - 0.5) / CHECKPOINTS) & (steps <= end * k / CHECKPOINTS)]
        if len(here):
            levels.append(float(here.mean()))
        if not isfinite(levels[-1]):
            return levels[:-1]
    return levels


def first_break(levels: list[float]) -> int | None:
    """Number of the first level that is a broken run's."""
    return next((k for k in range(1, len(levels)) if broken(levels[:k], levels[k])), None)


def lines(folder: Path | None = None) -> list[str]:
    groups: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for run in read_runs(folder or curves_folder()):
        if np.isfinite(run.losses).sum() >= FEWEST:
            groups[run.source, run.group].append(levels_of(run))
    table = {good: [0, 0, 0] for good in (True, False)}  # runs, called broken, of these back at their best later
    for runs in groups.values():
        ends = [fmean(levels[-END:]) for levels in runs]
        start, best = median(levels[0] for levels in runs), min(ends)
        for levels, end in zip(runs, ends, strict=True):
            row = table[end <= best + GOOD * (start - best)]
            row[0] += 1
            if (at := first_break(levels)) is not None:
                row[1] += 1
                row[2] += min(levels[at:]) <= min(levels[:at])
    names = {True: "good", False: "other"}
    return [
        f"{names[good]} rates: {runs} runs, {called} called broken, of which {back} came back by themselves"
        for good, (runs, called, back) in table.items()
    ]


def run_all() -> None:
    print("\n".join(lines()))
