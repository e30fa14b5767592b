"""What siblings share: one law of rate and time, fitted to all probes of one checkpoint at once.

A higher rate goes the same way faster, and is held higher by its own noise. So what a slow probe has ahead, a faster
one has behind, and how far the faster one stayed above tells what noise costs. One law says both:

    L(rate, t) = floor + sum of a * exp(-S / tau) + e * (rate / largest rate)^power,   S = rate * t

with every coefficient 0 or more: any completely monotone function of the distance S, such as a power law, and a
stationary excess that grows with the rate. It is linear in its coefficients, so that its fit is one problem of
non-negative least squares.

It is believed as far as it would have foretold: fitted to the probes' first parts only, it says what they gained since.
Its gains are multiplied by the share of those gains, in squares, that this explains; by 0 where it explains nothing.

Notation
    n        probes
    t        offset from the checkpoint                     [step]
    S        distance, as measured by the sum of the rates   [rate * step]

References:
    Tissue, Wang and Wang, "Scaling law with learning rate annealing", arXiv 2408.11029: the sum of rates as time.
    Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference", JMLR 18, 2017: the
    stationary excess grows with the rate.
    Lawson and Hanson, "Solving least squares problems", 1974, chapter 23 (non-negative least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.records import Curve

Array = NDArray[np.float64]

FEWEST: Final = 3
"""Of fewer probes no law is fitted."""

FEWEST_POINTS: Final = 3
"""Nor one of probes of which fewer points than this came before what it is to foretell."""

POWER: Final = 0.5
"""How the excess grows with the rate. Plain SGD says 1, Adam less; 0.5 did best on real siblings, by little."""

WILD: Final = 3.0
"""A probe that was ever so many times above where probes begin follows no such law."""

_TIMES: Final = np.geomspace(0.02, 1.0, 8)  # over a probe's length: a mean is fitted between each two
_DECAYS: Final = 18  # distances tau
_BEYOND: Final = 20.0  # the longest of them, over the farthest that any probe has gone
_RIDGE: Final = 0.01  # of a coefficient, over the mean loss; of relative errors
_RISEN: Final = 1.02  # nor does one that ends so far above
_EARLY: Final = 0.3  # share of a probe before what the law is to foretell, at least; else as it is asked to look ahead
_NEAR: Final = (0.8, 1.15)  # times over the asked one whose mean is a curve's value there
_LEAST: Final = 1e-12  # of a law's loss, over the mean loss


def gains(curves: Sequence[Curve], rates: Array, at: Array) -> Array:
    """Log losses at the offsets `at` less those at the curves' ends, by the law; 0 where it says nothing.   (n,)

    Args:
        curves: of n probes from one checkpoint; points that are not finite or not positive are ignored.
        rates: positive.   (n,)
        at: horizons.   (n,) [step]
    """
    found = np.zeros(len(curves))
    points = [_points(curve) for curve in curves]
    with np.errstate(all="ignore"):  # of times and losses at the ends of the number range
        first = np.median([y[0] for _, y in points if len(y)] or [1.0])
        most, last = WILD * first, _RISEN * first
        healthy = [i for i, (_, y) in enumerate(points) if len(y) and y.max() < most and y[-1] <= last]
        if len(healthy) < FEWEST:
            return found
        points, rates = [points[i] for i in healthy], rates[healthy]
        end = np.array([t[-1] for t, _ in points])
        ahead = np.maximum(at[healthy], end)
        law = _Law.fitted(points, rates)
        gain = law.gains(rates, end, ahead) * _belief(points, rates, np.maximum(end / ahead, _EARLY) * end, end)
    found[healthy] = np.where(np.isfinite(gain), gain, 0.0)
    return found


def _belief(points: Sequence[tuple[Array, Array]], rates: Array, start: Array, end: Array) -> float:
    """Share of what the probes gained between two times each that a law of what came before explains; 0: nothing."""
    before = [(t[t <= a], y[t <= a]) for (t, y), a in zip(points, start, strict=True)]
    if min(len(t) for t, _ in before) < FEWEST_POINTS:
        return 0.0
    told = _Law.fitted(before, rates).gains(rates, start, end)
    seen = np.array([_near(t, y, b) - _near(t, y, a) for (t, y), a, b in zip(points, start, end, strict=True)])
    explained = 1.0 - float(((seen - told) ** 2).sum() / (seen**2).sum())
    return min(max(explained, 0.0), 1.0) if np.isfinite(explained) else 0.0


@dataclass(frozen=True, slots=True)
class _Law:
    """The law with its coefficients, of losses over `unit`.

    Attributes:
        decays: tau.   (_DECAYS,)
        largest: rate.
        coefficients: of `features`; none if nothing could be fitted.
    """

    decays: Array
    largest: float
    coefficients: Array

    @classmethod
    def fitted(cls, points: Sequence[tuple[Array, Array]], rates: Array) -> _Law:
        """Fitted to the relative errors of means over parts of the probes."""
        from scipy.optimize import nnls

        rows = [(rate, *mean) for (t, y), rate in zip(points, rates, strict=True) for mean in _means(t, y)]
        rate, t, y = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        S = rate * t
        some = S > 0
        if not some.any() or not np.isfinite(S).all():
            return cls(np.ones(_DECAYS), 1.0, np.zeros(0))
        empty = cls(np.geomspace(S[some].min() / 2, _BEYOND * S.max(), _DECAYS), float(rate.max()), np.zeros(0))
        F = empty.features(rate, t) * (y.mean() / y)[:, None]
        if not np.isfinite(F).all():
            return empty
        ridge = _RIDGE * np.sqrt(len(y)) * np.eye(F.shape[1])
        target = np.concatenate([np.ones(len(y)), np.zeros(F.shape[1])])
        return replace(empty, coefficients=nnls(np.vstack([F, ridge]), target)[0])

    def gains(self, rates: Array, start: Array, end: Array) -> Array:
        """Log losses at the times `end` less those at `start`; 0 if nothing could be fitted.   (n,)"""
        if not len(self.coefficients):
            return np.zeros(len(rates))
        levels = (self.features(rates, t) @ self.coefficients for t in (start, end))
        before, after = (np.log(np.maximum(level, _LEAST)) for level in levels)
        return np.asarray(after - before)

    def features(self, rates: Array, t: Array) -> Array:
        """What the coefficients are of: floor, decays, excess.   (n, 2 + _DECAYS)"""
        distance, excess = (rates * t)[:, None], ((rates / self.largest) ** POWER)[:, None]
        return np.concatenate([np.ones((len(t), 1)), np.exp(-distance / self.decays), excess], axis=1)


def _points(curve: Curve) -> tuple[Array, Array]:
    """Offsets and losses that are finite, the losses positive."""
    t, y = np.array(curve.offsets, dtype=np.float64), np.array(curve.losses, dtype=np.float64)
    kept = np.isfinite(t) & np.isfinite(y) & (y > 0)
    return t[kept], y[kept]


def _means(t: Array, y: Array) -> list[tuple[float, float]]:
    """Mean time and loss of what lies between each two of `_TIMES`."""
    index = np.searchsorted(_TIMES * t[-1], t)
    parts = [index == i for i in range(1, len(_TIMES))]
    return [(float(t[part].mean()), float(y[part].mean())) for part in parts if part.any()]


def _near(t: Array, y: Array, at: float) -> float:
    """Log of the mean loss around a time."""
    near = (t >= _NEAR[0] * at) & (t <= _NEAR[1] * at)
    return float(np.log(y[near].mean() if near.any() else np.interp(at, t, y)))
