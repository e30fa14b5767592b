"""What every curve model starts from: a curve's finite points in order, at most 64 of them, in units of their own.

Notation
    t     offsets of the points                                                    (n,) [step]
    u     offset since the first point over the observed span (u = 1: last point)  (n,)
    y     losses over the largest |loss|, so that nothing depends on its unit      (n,)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.records import Curve

Array = NDArray[np.float64]

FEWEST: Final = 8
"""Fewer points than this say too little about a curve's shape: models answer the last loss, wide."""

MOST: Final = 64
"""More points than this are reduced to bin means."""


@dataclass(frozen=True, slots=True)
class Points:
    """A curve, cleaned.

    Attributes:
        u, y: see the module; y is within [-1, 1].   (n,)
        noise: standard deviation of y at the curve's end.
        start: offset of the first point [step].
        span: from the first point to the last [step].
        scale: the largest |loss|, or 1 if all are 0.
    """

    u: Array
    y: Array
    noise: float
    start: float
    span: float
    scale: float

    def __len__(self) -> int:
        return len(self.y)

    @property
    def few(self) -> bool:
        """Whether a shape cannot be made out."""
        return len(self) < FEWEST or not 0 < self.span < math.inf

    @property
    def positive(self) -> bool:
        """Whether logarithms can be taken."""
        return bool(self.y.min() > np.finfo(np.float64).tiny)

    @property
    def last(self) -> float:
        """Mean of the last tenth of y."""
        return last_of(self.y)

    def ahead(self, at: float) -> float:
        """The offset `at` as u, from 0 (the first point) to 1e9: so far ahead nothing changes any more."""
        return min(max(at - self.start, 0.0) / self.span, 1e9)


def last_of(y: Array) -> float:
    """Mean of the last tenth, at least of the last one."""
    late = y[-max(1, len(y) // 10) :].tolist()
    return math.fsum(late) / len(late)


def ordered(curve: Curve) -> Curve:
    """`curve` with its finite points alone, by offset; itself if it is that."""
    t = curve.offsets
    if curve.finite and all(map(math.isfinite, t)) and all(a <= b for a, b in pairwise(t)):
        return curve
    rows = zip(t, curve.losses, curve.rates, strict=True)
    kept = sorted((row for row in rows if math.isfinite(row[0]) and math.isfinite(row[1])), key=itemgetter(0))
    offsets, losses, rates = zip(*kept, strict=True) if kept else ((), (), ())
    return replace(curve, offsets=offsets, losses=losses, rates=rates)


def points_of(curve: Curve) -> Points | None:
    """The finite points of `curve` by offset; None if there are none.

    Of more than `MOST` points bin means are taken. Where the curve does not know its noise (0), it is read from
    the differences of neighbours.
    """
    t, y = np.array(curve.offsets, dtype=np.float64), np.array(curve.losses, dtype=np.float64)
    finite = np.isfinite(t) & np.isfinite(y)
    if not finite.all():
        t, y = t[finite], y[finite]
    if len(y) == 0:
        return None
    if (t[1:] < t[:-1]).any():
        order = np.argsort(t, kind="stable")
        t, y = t[order], y[order]
    scale = float(np.abs(y).max()) or 1.0
    y = y / scale
    # Python's floats give inf where NumPy's would warn.
    start, span = float(t[0]), float(t[-1]) - float(t[0])
    u = (t - start) / span if 0 < span < math.inf else np.zeros(len(t))
    noise = min(curve.noise / scale, 1.0) if curve.noise > 0 else noise_of(y)
    if len(y) > MOST:
        index = bin_index(u, MOST)
        count = np.bincount(index)
        if curve.noise == 0:
            noise /= math.sqrt(late_count(count))
        u, y = (np.bincount(index, weights=x) / count for x in (u, y))
    return Points(u, y, noise, start, span, scale)


def bin_index(x: Array, bins: int) -> NDArray[np.intp]:
    """The bin of each of the ascending `x`, of at most `bins` of equal width; empty ones are not counted.   (n,)"""
    width = (x[-1] - x[0]) / bins
    if width == 0:
        return np.zeros(len(x), dtype=np.intp)
    raw = np.minimum((x - x[0]) / width, bins - 1).astype(np.intp)
    return np.asarray(np.cumsum(np.diff(raw, prepend=raw[0]) > 0), dtype=np.intp)


def noise_of(y: Array) -> float:
    """Standard deviation of single points about their trend, at the curve's end.

    From the mean squared first difference (von Neumann 1941) of the last third, at least 16 points.
    """
    late = np.diff(y[-max(16, len(y) // 3) :])
    return math.sqrt(0.5 * float(late @ late) / len(late)) if len(late) else 0.0


def late_count(count: NDArray[np.intp]) -> float:
    """Points a bin holds at the curve's end: the mean of the last third."""
    return float(count[-max(1, len(count) // 3) :].mean())
