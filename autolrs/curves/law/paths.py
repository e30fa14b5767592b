"""The learning rate as a function of the step, in the form in which loss laws integrate it.

Notation
    t       updates done since the run's start                              [step]
    rate    reference learning rate, linear in t between knots; a jump is two knots at one step
    S(t)    progress: the integral of the rate from the run's start         [rate * step]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.records import Curve
from autolrs.schedules import Schedule

Array = NDArray[np.float64]

_BENDS: Final = 32  # straight lines that stand for a piece that is not straight


@dataclass(frozen=True, slots=True)
class RatePath:
    """Rate by step: straight lines between knots, constant beyond the last one.

    Attributes:
        steps: not decreasing, the first one is the run's start.   (k,) [step]
        rates: finite and not negative.                            (k,)
    """

    steps: Array
    rates: Array

    @classmethod
    def of_schedule(cls, schedule: Schedule, start: float = 0.0) -> RatePath:
        """The path of `schedule`, whose step 0 is the step `start`."""
        steps: list[float] = []
        rates: list[float] = []
        for piece in schedule.pieces:
            parts = 1 if piece.shape in ("constant", "linear") else min(_BENDS, piece.stop - piece.start)
            # More knots where 1-sqrt is steepest, at its start; a piece's own formula also holds at its `stop`.
            edges = piece.start + (piece.stop - piece.start) * np.linspace(0, 1, parts + 1) ** 2
            knots = np.unique(np.rint(edges).astype(int)) if parts > 1 else (piece.start, piece.stop)
            steps += [start + int(knot) for knot in knots]
            rates += [piece.rate(int(knot)) for knot in knots]
        return cls(np.array(steps, dtype=np.float64), np.array(rates, dtype=np.float64))

    @classmethod
    def of_curves(cls, curves: Sequence[Curve]) -> RatePath:
        """The path along `curves`, in the order of their starts; from its start on, each replaces those before."""
        path = cls(np.zeros(0), np.zeros(0))
        for curve in sorted(curves, key=lambda one: one.start):
            points = np.array([curve.offsets, curve.rates], dtype=np.float64)
            offsets, rates = points[:, np.isfinite(points).all(axis=0)]
            if len(offsets):
                order = np.argsort(offsets, kind="stable")
                path = path.then(cls(curve.start + offsets[order], np.maximum(rates[order], 0.0)), curve.start)
        return path

    def then(self, other: RatePath, start: float) -> RatePath:
        """This path before `start`, and `other` from there on."""
        start = max(start, 0.0)
        here, before, later = np.array([start]), self.steps < start, other.steps > start
        steps, rates = [here, other.steps[later]], [other.at(here), other.rates[later]]
        if before.any():
            steps = [self.steps[before], here, *steps]
            rates = [self.rates[before], np.array([self._until(start)]), *rates]
        return RatePath(np.concatenate(steps), np.concatenate(rates))

    def _until(self, step: float) -> float:
        """The rate just before a step that is after the first knot; at a jump, the one before it."""
        right = int(np.searchsorted(self.steps, step, side="left"))
        return float(np.interp(step, self.steps[right - 1 : right + 1], self.rates[right - 1 : right + 1]))

    def at(self, steps: Array) -> Array:
        """Rates at `steps`; at a jump, the one after it.   (n,)"""
        index = np.clip(np.searchsorted(self.steps, steps, side="right") - 1, 0, len(self.steps) - 1)
        following = np.minimum(index + 1, len(self.steps) - 1)
        width = self.steps[following] - self.steps[index]
        share = np.clip((steps - self.steps[index]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        return np.asarray(self.rates[index] + share * (self.rates[following] - self.rates[index]))

    def progress(self, steps: Array) -> Array:
        """S at `steps`.   (n,)"""
        done = np.concatenate([[0.0], np.cumsum(np.diff(self.steps) * 0.5 * (self.rates[1:] + self.rates[:-1]))])
        index = np.clip(np.searchsorted(self.steps, steps, side="right") - 1, 0, len(self.steps) - 1)
        return np.asarray(done[index] + (steps - self.steps[index]) * 0.5 * (self.rates[index] + self.at(steps)))

    def over(self, unit: float) -> RatePath:
        """With rates in units of `unit`."""
        return RatePath(self.steps, self.rates / unit)
