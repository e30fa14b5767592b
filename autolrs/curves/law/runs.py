"""Curves as what the laws are fitted to: points of a run, and the rate along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from autolrs.curves.law.fitting import Observed
from autolrs.curves.law.paths import Array, RatePath
from autolrs.curves.points import noise_of
from autolrs.records import Curve
from autolrs.schedules import Schedule

POINTS: Final = 128  # a run is reduced to this many at most
SKIPPED: Final = 0.05  # share of a run, at its start, of which the laws say nothing


def kept_run(curves: Sequence[Curve]) -> Observed | None:
    """The kept run that `curves` make up; None without a finite point, or with no rate that is known."""
    path = RatePath.of_curves(curves)
    steps, losses, noise = points(curves)
    if not (len(path.steps) and len(steps)) or not 0 < float(path.progress(steps[-1:])[0]) < np.inf:
        return None
    peak = float(path.rates.max())
    late = steps >= SKIPPED * steps[-1]
    return Observed(peak, path.over(peak), *thinned(steps[late], losses[late], noise[late]))


def branch(run: Observed, probe: Curve, schedule: Schedule | None = None) -> Observed | None:
    """A probe with the rate of `run` before it; None if its own rates are not known.

    Args:
        schedule: the rate over the probe's offsets; None: what the curve says, and its last rate from there on.
    """
    own = RatePath.of_schedule(schedule, probe.start) if schedule else RatePath.of_curves([probe])
    if not len(own.steps):
        return None
    return Observed(run.peak, run.path.then(own.over(run.peak), probe.start), *thinned(*points([probe])))


def points(curves: Sequence[Curve]) -> tuple[Array, Array, Array]:
    """Steps, losses and noise of all finite points; from its start on, each curve replaces those before.   (n,) each"""
    steps, losses, noise = np.zeros(0), np.zeros(0), np.zeros(0)
    for curve in sorted(curves, key=lambda one: one.start):
        both = np.array([curve.offsets, curve.losses], dtype=np.float64)
        offsets, own = both[:, np.isfinite(both).all(axis=0)]
        order = np.argsort(offsets, kind="stable")
        before = steps < curve.start
        steps = np.concatenate([steps[before], curve.start + offsets[order]])
        losses = np.concatenate([losses[before], own[order]])
        noise = np.concatenate([noise[before], np.full(len(own), curve.noise or noise_of(own[order]))])
    return steps, losses, noise


def thinned(steps: Array, losses: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Means over at most `POINTS` bins of equal width in steps.   (m,) each"""
    if len(steps) <= POINTS:
        return steps, losses, noise
    width = (steps[-1] - steps[0]) / POINTS
    index = np.minimum((steps - steps[0]) / max(width, np.finfo(np.float64).tiny), POINTS - 1).astype(int)
    index = np.unique(index, return_inverse=True)[1]
    count = np.bincount(index)
    means = [np.bincount(index, weights=x) / count for x in (steps, losses, noise)]
    return means[0], means[1], means[2] / np.sqrt(count)
