"""`python -m benchmarks breaks` on synthetic curves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from curve_files import write_curves

from benchmarks.breaks import CHECKPOINTS, first_break, levels_of, lines
from benchmarks.windows import Run


def run_of(losses: np.ndarray) -> Run:
    steps = np.arange(float(len(losses)))
    return Run("a", "g", "c", len(losses), steps, losses, np.ones_like(steps))


def test_levels_are_means_before_checkpoints() -> None:
    levels = levels_of(run_of(np.arange(20.0 * CHECKPOINTS + 1)))  # 20 steps each
    assert levels[0] == np.arange((20 * CHECKPOINTS + 1) // 200).mean()
    assert levels[1] == np.arange(11, 21).mean()
    assert levels[-1] == np.arange(20 * CHECKPOINTS - 9, 20 * CHECKPOINTS + 1).mean()
    assert len(levels) == 1 + CHECKPOINTS


def test_levels_end_where_a_loss_is_not_finite() -> None:
    losses = np.ones(20 * CHECKPOINTS + 1)
    losses[20 * 9 + 15] = math.nan
    assert len(levels_of(run_of(losses))) == 10


def test_a_break_is_found_where_it_is() -> None:
    losses = 0.1 + np.exp(-np.arange(20 * CHECKPOINTS + 1) / 30)
    assert first_break(levels_of(run_of(losses))) is None
    losses[20 * 20 + 1 :] = 0.8
    assert first_break(levels_of(run_of(losses))) == 21


def test_every_curve_is_counted_once(tmp_path: Path) -> None:
    write_curves(tmp_path)
    good, other = lines(tmp_path)
    # Three siblings, one blown up; another seed; four of a trunk. The one that stopped is too short.
    runs = [int(line.split(" rates: ")[1].split(" ")[0]) for line in (good, other)]
    assert sum(runs) == 9
    assert all("0 called broken" in line for line in (good, other))  # the one blown up had made no progress before
