"""Runs that follow a loss law exactly, summed step by step; for tests."""

from __future__ import annotations

import numpy as np

from autolrs.records import Curve
from autolrs.schedules import Schedule


def losses_of(
    schedule: Schedule,
    *,
    level: float = 2.5,
    slope: float = 0.2,
    alpha: float = 0.5,
    cooling: float = 0.15,
    decay: float = 0.98,
    peak: float = 0.01,
) -> np.ndarray:
    """The annealing law along a schedule: slope and level at a progress of 1000 steps of the peak rate."""
    rates = np.array([schedule(step) for step in range(schedule.steps)]) / peak
    recent, found = rates[0], []
    progress = np.concatenate([[1e-9], np.cumsum(rates)[:-1]]) / 1000
    for rate in rates:
        recent = decay * recent + (1 - decay) * rate
        found.append(recent)
    return level + slope * (progress**-alpha - 1) / alpha + cooling * np.array(found)


def curve_of(
    schedule: Schedule,
    losses: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Curve:
    """Steps [start, stop) as the engine stores them."""
    stop = schedule.steps if stop is None else stop
    noisy = losses[start:stop] + noise * np.random.default_rng(seed).standard_normal(stop - start)
    return Curve.reduce(noisy.tolist(), [schedule(step) for step in range(start, stop)], start=start)


def history_of(
    schedule: Schedule, losses: np.ndarray, stop: int, *, noise: float = 0.0, every: int = 100
) -> list[Curve]:
    """A kept run up to `stop`, a curve for each checkpoint."""
    return [curve_of(schedule, losses, at, min(at + every, stop), noise=noise, seed=at) for at in range(0, stop, every)]
