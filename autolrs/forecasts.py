"""What a curve model answers: a distribution of the loss for each curve.

Notation
    n       curves
    x       the coordinate in which a distribution is interpolated: log loss where `log` holds, else the loss
    LEVELS  probabilities at which every distribution is tabulated                                    (K,)

Each distribution is its quantiles at `LEVELS`: between them the density is constant in x, and beyond the outermost
ones it falls exponentially from where it was. So parametric, binned and mixed forecasts are one kind of thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autolrs.records import Forecast

Array = NDArray[np.float64]

LEVELS: Final[Array] = 1.0 / (1.0 + np.exp(-np.linspace(-9.2, 9.2, 129)))
"""Evenly spaced in the logit from 1e-4 to 1 - 1e-4; the middle one is the median."""

_MIDDLE: Final = len(LEVELS) // 2  # of them: the median
_ONE_STD: Final = (0.15865525393145707, 0.8413447460685429)  # levels of a normal at -1 and +1 deviation
_BARS: Final = 0.5 * (np.diff(LEVELS, prepend=-LEVELS[0]) + np.diff(LEVELS, append=1.0 + LEVELS[0]))  # of the mean
_NARROWEST: Final = 1e-12  # width of a bar over the coordinate's size: a certain forecast has a density all the same
_HUGE: Final = 1e200  # quantiles whose slopes might overflow
_TAIL: Final = float(LEVELS[0] / (LEVELS[1] - LEVELS[0]))  # scale of a tail over the width of the bar beside it
_WIDEST: Final = float(np.finfo(np.float64).max)  # scale of a tail


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Predictive distributions of n curves. `Forecasts(at, mean, std)` are normal; see the class methods for others.

    A curve of which nothing is known has the mean NaN, an infinite deviation and the log density -inf.

    Attributes:
        at: offsets forecast.   (n,) [step]
        mean: location [loss]: the mean, that of the log loss brought back where `log` holds.   (n,)
        std: half the width of the central 68 % [loss]; a normal's standard deviation. (Second moments of heavy
            tails in log loss are not finite.)   (n,)
        table: quantiles at `LEVELS` in x; None: normal.   (n, K)
        log: whether x is the log loss.   (n,)
    """

    at: Array
    mean: Array
    std: Array
    table: Array | None = None
    log: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: int) -> Forecast:
        return Forecast(float(self.at[index]), float(self.mean[index]), float(self.std[index]))

    @classmethod
    def tabulated(cls, at: ArrayLike, table: Array, log: ArrayLike = False, *, median: bool = False) -> Forecasts:
        """From quantiles at `LEVELS`, in log loss where `log` holds, else in loss.   table: (n, K)

        `median`: is the `mean`, as of tails that are too heavy for one.
        """
        at = np.asarray(at, dtype=np.float64)
        in_log = np.asarray(log, dtype=bool)
        in_log = in_log if in_log.shape == at.shape else np.full(at.shape, in_log)
        x = np.empty((3, len(table)))
        with np.errstate(over="ignore", invalid="ignore"):
            x[0] = table[:, _MIDDLE] if median else table @ _BARS
            for row, (i, share) in enumerate(_SIDES, start=1):
                x[row] = (1 - share) * table[:, i] + share * table[:, i + 1]
            mean, low, high = np.exp(x, out=x, where=in_log)
            # Of a certain forecast the two differ by rounding only, either way round; of nothing all is unknown.
            std = np.maximum(0.5 * (high - low), 0.0)
        std[np.isnan(std)] = np.inf
        return cls(at, mean, std, table, in_log)

    @classmethod
    def student_t(
        cls, at: ArrayLike, location: ArrayLike, scale: ArrayLike, df: float, log: ArrayLike = False
    ) -> Forecasts:
        """Student-t with `df` degrees of freedom (inf: normal) in log loss where `log` holds, else in loss."""
        at = np.asarray(at, dtype=np.float64)
        location, scale = (np.broadcast_to(np.asarray(v, dtype=np.float64), at.shape) for v in (location, scale))
        return cls.tabulated(at, location[:, None] + scale[:, None] * _student_quantiles(df), log)

    @classmethod
    def bars(cls, at: ArrayLike, edges: Array, probabilities: Array, log: ArrayLike = False) -> Forecasts:
        """From a density that is constant on bars between `edges` (n, b + 1), with `probabilities` (n, b)."""
        return cls.tabulated(at, bar_quantiles(edges, probabilities), log)

    @classmethod
    def mixture(cls, parts: Sequence[Forecasts], weights: ArrayLike, *, median: bool = False) -> Forecasts:
        """Weighted mixture of forecasts of the same curves.   weights: (k,) or (k, n), of any positive sum.

        In log loss where all parts are; a part without weight is left out. `median`: as in `tabulated`.
        """
        n = len(parts[0])
        w = np.asarray(weights, dtype=np.float64)
        w = w if w.shape == (len(parts), n) else np.repeat(w.reshape(-1, 1), n, axis=1)
        w = w / w.sum(axis=0)
        used = [(part, shares) for part, shares in zip(parts, w, strict=True) if shares.any()]
        if len(used) == 1 and not median:
            return used[0][0]
        log = np.logical_and.reduce([part._in_log for part, _ in used])
        tables = [part._table_in(log) for part, _ in used]
        out = np.empty((n, len(LEVELS)))
        for i in range(n):
            mixed = [(table[i], float(shares[i])) for table, (_, shares) in zip(tables, used, strict=True) if shares[i]]
            knots = np.sort(np.concatenate([x for x, _ in mixed]))
            level = np.asarray(sum(share * _cdf(knots, x) for x, share in mixed))
            out[i] = _at_levels(level, knots)
        return cls.tabulated(parts[0].at, out, log, median=median)

    def widened(self, factor: ArrayLike) -> Forecasts:
        """The same medians, with all quantiles `factor` times as far away (in x).   factor: () or (n,)"""
        table = self._table
        middle = table[:, _MIDDLE, None]
        k = np.broadcast_to(np.asarray(factor, dtype=np.float64), (len(self),))[:, None]
        return type(self).tabulated(self.at, middle + k * (table - middle), self._in_log)

    def quantiles(self, levels: Sequence[float] | Array) -> Array:
        """Quantiles [loss] at `levels` in (0, 1).   (n, len(levels))

        Raises:
            ValueError: a level is not in (0, 1).
        """
        asked = np.asarray(levels, dtype=np.float64)
        if not ((asked > 0) & (asked < 1)).all():
            raise ValueError(f"`0 < level < 1` must hold, but got (levels={asked.tolist()}).")
        x = np.array([_quantile(asked, row) for row in self._table]).reshape(len(self), len(asked))
        return self._loss(x)

    @property
    def median(self) -> Array:
        """[loss]   (n,)"""
        return self._loss(self._table[:, _MIDDLE, None])[:, 0]

    def cdf(self, losses: ArrayLike) -> Array:
        """Probability of each curve's loss lying below the given one.   (n,)"""
        x = self._coordinate(losses)
        return np.array([_cdf(x[i : i + 1], row)[0] for i, row in enumerate(self._table)])

    def log_prob(self, losses: ArrayLike) -> Array:
        """Log density of `losses` (n,), per unit of loss.   (n,)"""
        rows = zip(self._coordinate(losses).tolist(), self._table, self._in_log.tolist(), strict=True)
        return np.array([_log_density(x, row) - (x if log and math.isfinite(x) else 0.0) for x, row, log in rows])

    def sample(self, size: int, rng: np.random.Generator) -> Array:
        """Independent draws [loss].   (size, n)"""
        levels = rng.uniform(np.finfo(np.float64).tiny, 1.0, (len(self), size))
        x = np.array([_quantile(u, row) for u, row in zip(levels, self._table, strict=True)])
        return self._loss(x.reshape(levels.shape)).T  # of no curves, too

    @property
    def _in_log(self) -> NDArray[np.bool_]:
        return np.zeros(len(self), dtype=bool) if self.log is None else self.log

    @property
    def _table(self) -> Array:
        if self.table is not None:
            return self.table
        with np.errstate(invalid="ignore"):
            return self.mean[:, None] + self.std[:, None] * _student_quantiles(np.inf)

    def _table_in(self, log: NDArray[np.bool_]) -> Array:
        """The table in log loss where `log` holds (there it already is), else in loss."""
        if (log == self._in_log).all():
            return self._table
        return np.where(log[:, None], self._table, self._loss(self._table))

    def _loss(self, x: Array) -> Array:
        """x (n, any) as losses."""
        in_log = self._in_log[:, None]
        with np.errstate(over="ignore"):
            return np.exp(x, out=x.copy(), where=in_log)

    def _coordinate(self, losses: ArrayLike) -> Array:
        y = np.full(len(self), losses, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(y, 0.0), out=y, where=self._in_log)


def bar_quantiles(edges: Array, probabilities: Array) -> Array:
    """Quantiles at `LEVELS` of densities that are constant on bars, see `Forecasts.bars`.   (n, K)"""
    levels = np.zeros(edges.shape)
    probabilities.cumsum(axis=1, out=levels[:, 1:])
    levels /= levels[:, -1:]
    table = np.empty((len(edges), len(LEVELS)))
    for row, level, x in zip(table, levels, edges, strict=True):
        row[:] = _at_levels(level, x)
    return table


@cache
def _student_quantiles(df: float) -> Array:
    from scipy.special import ndtri, stdtrit

    return np.asarray(ndtri(LEVELS) if np.isinf(df) else stdtrit(df, LEVELS), dtype=np.float64)


def _between(level: float) -> tuple[int, float]:
    """The last of `LEVELS` below a level, and how far from there to the next one it lies."""
    left = int(np.searchsorted(LEVELS, level)) - 1
    return left, float((level - LEVELS[left]) / (LEVELS[left + 1] - LEVELS[left]))


_SIDES: Final = tuple(map(_between, _ONE_STD))


def _at_levels(level: Array, x: Array) -> Array:
    """Quantiles at `LEVELS` from those at `level`."""
    size = max(abs(float(x[0])), abs(float(x[-1])))
    if size < _HUGE:
        return np.interp(LEVELS, level, x)
    return np.asarray(np.interp(LEVELS, level, x / size) * size)


def _narrowest(row: Array) -> float:
    """Width of a bar of one table, at least."""
    return _NARROWEST * max(1.0, abs(float(row[0])), abs(float(row[-1])))


def _tails(row: Array) -> tuple[float, float]:
    """Scales of the exponential tails of one table: the density goes on from the outermost bars."""
    least = _narrowest(row)
    widths = float(row[1]) - float(row[0]), float(row[-1]) - float(row[-2])  # Python's floats become inf in silence
    low, high = (min(max(_TAIL * width, least), _WIDEST) for width in widths)
    return low, high


def _cdf(x: Array, row: Array) -> Array:
    level = np.interp(x, row, LEVELS)
    below, above = x < row[0], x > row[-1]
    with np.errstate(over="ignore"):
        if below.any():
            level[below] = LEVELS[0] * np.exp((x[below] - row[0]) / _tails(row)[0])
        if above.any():
            level[above] = 1.0 - LEVELS[0] * np.exp((row[-1] - x[above]) / _tails(row)[1])
    return level


def _quantile(levels: Array, row: Array) -> Array:
    low, high = _tails(row)
    x = np.interp(levels, LEVELS, row)
    with np.errstate(over="ignore"):
        x = np.where(levels < LEVELS[0], row[0] + low * np.log(np.minimum(levels / LEVELS[0], 1.0)), x)
        return np.where(levels > LEVELS[-1], row[-1] - high * np.log(np.minimum((1.0 - levels) / LEVELS[0], 1.0)), x)


def _log_density(x: float, row: Array) -> float:
    """Log density in x."""
    if not (math.isfinite(x) and np.isfinite(row).all()):
        return -math.inf
    first, final = float(row[0]), float(row[-1])
    if first <= x <= final:
        bar = min(max(int(row.searchsorted(x, side="right")), 1), len(row) - 1)
        width = max(float(row[bar] - row[bar - 1]), _narrowest(row))
        return math.log(float(LEVELS[bar] - LEVELS[bar - 1]) / width)
    low, high = _tails(row)
    scale, off = (low, x - first) if x < first else (high, final - x)
    return math.log(float(LEVELS[0]) / scale) + off / scale
