"""Bayesian loss-curve model: an average over a fixed grid of shapes, exponentials and power laws of the log loss.

Each shape is a line in two unknowns, its level at the last point and its drop from the first point to the last, so
that its fit and its marginal likelihood have a closed form. The forecast is the mean over all shapes, weighted by
their posterior, within a heavy-tailed skewed distribution: curves go on to fall unforeseen more often than they rise.

Where losses are not positive, all of this is done on the losses themselves, over their range.

Notation
    u, h      offset over the observed span, of the points and of the forecast                    (n,), ()
    z         log loss (or loss over its range), less its mean over the last tenth                (n,)
    q(u)      how far a shape has come: 1 - exp(-b*u), or (1 - (1 + u/s)^-p) / p, log(1 + u/s) for p = 0
    phi(u)    1 - q(u)/q(1): 1 at the first point, 0 at the last, below 0 beyond                  (K, n)
    z(u) ~ level + drop*phi(u) + noise of variance v(u);  level ~ N(0, .), drop ~ N(0, S^2)       S: (J,)

References:
    Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3 (Bayesian linear regression).
    Domhan, Springenberg and Hutter, "Speeding up automatic hyperparameter optimization ... by extrapolation of
    learning curves", IJCAI 2015 (averages of parametric curves, by sampling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.points import Points, last_of, points_of
from autolrs.errors import SettingError
from autolrs.forecasts import LEVELS
from autolrs.protocols import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Schedule

Array = NDArray[np.float64]

_RATES: Final = np.geomspace(0.05, 60.0, 16)[:, None]  # b [1/observed span]
_POWERS: Final = np.array([0.25, 0.5, 1.0, 2.0])[:, None, None]  # p, beside 0
_SCALES: Final = np.geomspace(0.003, 10.0, 6)[:, None]  # s [observed span]
_KINDS: Final = (slice(16), slice(16, 22), slice(22, None))  # of shapes: exponentials, logarithms, powers
_SHAPES: Final = 46
_PRECISIONS: Final = 1.0 / np.geomspace(0.01, 3.0, 6) ** 2  # 1/S^2, in z
_FROM, _UNTIL = (0.4, 0.65), (0.6, 0.85)  # u about a half, and three quarters
_HALF, _QUARTER = 1.0, math.log2(4 / 3)  # doublings since then
_EXACT: Final = 1e-4  # noise of z below which no curve is believed to be its model
_LOUDEST: Final = 1e3  # noise of z, at most
_FLAT: Final = 1e-12  # range of losses, over the largest, below which they are all the same
_WIDE: Final = 0.25  # scale of the forecast in z where nothing but the last value is known
_WIDEST: Final = 3.0  # the scale of a forecast of the log loss, at most: a factor of 20
_LARGEST: Final = float(np.finfo(np.float64).max)
_MOST: Final = _LARGEST / 1e6  # of a quantile [loss]: so that the table can be interpolated
_ROBUST: Final = 1 / (0.6745 * math.sqrt(2))  # of the median absolute difference of two normals: their deviation
_REST: Final = 1 - LEVELS
_NOTHING: Final = (*(np.empty(0) for _ in range(4)), np.empty(0, dtype=bool))


class _Side(NamedTuple):
    """What widens one side of a forecast; all add up in squares.

    Attributes:
        gain: per forecast change from the last value.
        drift: per change over the last doublings of the steps, see `_drift`, for each further doubling.
        doubling: for each further doubling.
    """

    gain: float
    drift: float
    doubling: float


_BELOW: Final = _Side(gain=0.3, drift=0.5, doubling=0.004)
_ABOVE: Final = _Side(gain=0.25, drift=0.1, doubling=0.002)
_OWN: Final = 0.5  # share of the model's own variance in a forecast's; what no shape foresees is in the sides
_LEAST: Final = 0.002  # scale of a forecast in z, at least


@dataclass(frozen=True, slots=True)
class Bayes:
    """The `CurveModel` of the module.

    A forecast's `mean` is its median, because its tails are too heavy for a mean.

    Attributes:
        misfit: standard deviation that a point may lie off its shape, over how far it, or a later one, is from the
            last value: late points are trusted more.
        reach: expected further drop over the observed one; shapes that go far beyond it weigh less.
        fall: expected further drop in log loss; the same.
    """

    misfit: float = 0.3
    reach: float = 2.0
    fall: float = 2.0

    def __post_init__(self) -> None:
        if not (self.misfit >= 0 and self.reach > 0 and self.fall > 0):
            raise SettingError(
                "`misfit >= 0`, `reach > 0` and `fall > 0` must hold, but got "
                f"(misfit={self.misfit}, reach={self.reach}, fall={self.fall})."
            )

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        """Forecasts of `curves` at the offsets `at`; points that are not finite are ignored.

        A curve without a finite point has the mean NaN and an infinite deviation; of fewer than 8 points the last
        value is forecast, wide.

        Raises:
            ValueError: `curves` and `at` differ in length.
        """
        rows = [self._predict(points_of(curve), float(offset)) for curve, offset in zip(curves, at, strict=True)]
        mode, below, above, unit, log = (np.array(column) for column in zip(*rows, strict=True)) if rows else _NOTHING
        # In log loss the unit is a shift, in loss a factor.
        shift, factor = np.where(log, np.log(unit), 0.0)[:, None], np.where(log, 1.0, unit)[:, None]
        most = np.where(log, np.inf, _MOST)[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            table = (mode[:, None] + _skewed(below, above)) * factor + shift
            found = Forecasts.tabulated(at, table.clip(-most, most), log, median=True)
        return replace(found, std=np.where(np.isnan(mode), np.inf, found.std.clip(max=_MOST)))

    def _predict(self, points: Points | None, at: float) -> tuple[float, float, float, float, bool]:
        """Mode, scales below and above it, the loss that is 1 (in log loss: 0), and whether it is log loss."""
        if points is None:
            return math.nan, math.inf, math.inf, 1.0, False
        log = points.positive
        y = np.log(points.y) if log else points.y
        size = float(y.max() - y.min())
        unit = 1.0 if log or size < _FLAT else size
        noise = min(points.noise / (points.last if log else unit), _LOUDEST)
        last = last_of(y)
        if points.few:
            mode = 0.0
            below = above = max(size / unit, noise, _WIDE * (1.0 if log else abs(last) / unit), _LEAST)
        else:
            mode, below, above = self._fit(points.u, (y - last) / unit, points.ahead(at), noise, size / unit)
        if log:  # so that quantiles stay finite as losses
            below, above = min(below, _WIDEST), min(above, _WIDEST)
        return mode + last / unit, below, above, min(unit * points.scale, _LARGEST), log

    def _fit(self, u: Array, z: Array, h: float, noise: float, size: float) -> tuple[float, float, float]:
        """Mode and scales of z at `h`; `size`: the range of z."""
        late = z[-max(8, len(z) // 3) :]
        late = np.sort(np.abs(late[1:] - late[:-1]))
        median = 0.5 * float(late[(len(late) - 1) // 2] + late[len(late) // 2])  # np.median takes six times as long
        noise = max(noise, _ROBUST * median)
        far = np.maximum.accumulate(np.abs(z[::-1]))[::-1]
        v = self.misfit**2 * (far * far) + (noise**2 + (0.005 * size) ** 2 + _EXACT**2)
        phi, ahead = _shapes(u, h)
        ahead = ahead[:, None]
        post = _posterior(phi, z, v, (size + 0.1) ** 2)
        change = post.drop * ahead
        logits = post.evidence - 0.5 * (ahead / self.reach) ** 2 - np.abs(change) / self.fall
        weights = np.exp(logits - logits.max())
        weights = (weights / weights.sum()).ravel()

        means = post.means(ahead).ravel()
        mode = min(float(weights @ means), float(z.max()))  # what rises is not followed beyond what was seen
        within = float(weights @ post.variances(ahead).ravel())
        off = means - mode
        higher = np.maximum(off, 0.0)
        over, either = (float(weights @ (part * part)) for part in (higher, off))
        doublings = math.log2(max(h, 1.0))
        drift = _drift(u, z)
        below, above = (
            math.sqrt(
                _OWN * (within + 2.0 * spread)
                + _LEAST**2
                + (side.gain * mode) ** 2
                + (side.drift * drift * doublings) ** 2
                + (side.doubling * doublings) ** 2
            )
            for side, spread in ((_BELOW, max(either - over, 0.0)), (_ABOVE, over))
        )
        return mode, below, above


def _shapes(u: Array, h: float) -> tuple[Array, Array]:
    """phi at the points and at the forecast.   (K, n), (K,)"""
    at = np.concatenate([u, [1.0, h]])
    q = np.empty((_SHAPES, len(at)))  # sign and factor of each drop out
    exponentials, logs, powers = (q[rows] for rows in _KINDS)
    np.expm1(-_RATES * at, out=exponentials)
    np.log1p(at / _SCALES, out=logs)
    np.expm1(-_POWERS * logs, out=powers.reshape(-1, *logs.shape))
    phi = 1.0 - q / q[:, -2:-1]
    return phi[:, :-2], phi[:, -1]


class _Posterior(NamedTuple):
    """Of level and drop, for every shape and prior scale of the drop.

    Given the drop, the level is center - drop * middle, with the same variance for all.
    """

    center: float
    middle: Array  # (K, 1)
    variance: float  # of the level, given the drop
    drop: Array  # mean   (K, J)
    spread: Array  # variance of the drop   (K, J)
    evidence: Array  # log marginal likelihood, up to a constant   (K, J)

    def means(self, phi: Array) -> Array:
        """Of level + drop*phi.   phi: (K, 1)"""
        return self.center + self.drop * (phi - self.middle)

    def variances(self, phi: Array) -> Array:
        """Of level + drop*phi.   phi: (K, 1)"""
        return self.variance + self.spread * (phi - self.middle) ** 2


def _posterior(phi: Array, z: Array, v: Array, level_variance: float) -> _Posterior:
    """The level is integrated out first: Bishop's equations 3.50 and 3.51 by blocks."""
    w = 1.0 / v
    wz = w * z
    precision = float(w.sum()) + 1.0 / level_variance
    center = float(wz.sum()) / precision
    middle = phi @ w / precision
    told = phi @ wz - middle * (precision * center)
    known = (phi * phi) @ w - precision * middle * middle
    spread = 1.0 / (known[:, None] + _PRECISIONS)
    drop = told[:, None] * spread
    evidence = 0.5 * (told[:, None] * drop + np.log(spread * _PRECISIONS))
    return _Posterior(center, middle[:, None], 1.0 / precision, drop, spread, evidence)


def _drift(u: Array, z: Array) -> float:
    """How fast z has changed of late, per doubling of the steps: since about the middle, and since three quarters."""
    a, c = u.searchsorted(_FROM).tolist()
    b, d = u.searchsorted(_UNTIL, side="right").tolist()
    parts = [(z[i:j], doublings) for i, j, doublings in ((a, b, _HALF), (c, d, _QUARTER)) if i < j]
    paces = [abs(float(part.sum())) / (len(part) * doublings) for part, doublings in parts]
    return sum(paces) / len(paces) if paces else float(z.max() - z.min())


def _skewed(below: Array, above: Array) -> Array:
    """Quantiles at `LEVELS` of two halves of Student-t with 2 degrees of freedom, joined at 0.   (n, K)"""
    share = (below / (below + above))[:, None]  # of the probability below 0: the density has no jump
    left = share > LEVELS
    tail = np.where(left, LEVELS / share, _REST / (1 - share))  # beyond the level, of its half; doubled
    return np.asarray(np.where(left, -below[:, None], above[:, None]) * (1 - tail) / np.sqrt(tail * (1 - 0.5 * tail)))
