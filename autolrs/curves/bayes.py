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

from autolrs.curves.points import Points, points_of
from autolrs.errors import SettingError
from autolrs.forecasts import LEVELS
from autolrs.protocols import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Schedule

Array = NDArray[np.float64]

_RATES: Final = np.geomspace(0.05, 60.0, 16)[:, None]  # b [1/observed span]
_POWERS: Final = (0.0, 0.25, 0.5, 1.0, 2.0)  # p
_SCALES: Final = np.geomspace(0.003, 10.0, 6)[:, None]  # s [observed span]
_DROPS: Final = np.geomspace(0.01, 3.0, 6)  # S, in z
_EXACT: Final = 1e-4  # noise of z below which no curve is believed to be its model
_LOUDEST: Final = 1e3  # noise of z, at most
_FLAT: Final = 1e-12  # range of losses, over the largest, below which they are all the same
_WIDE: Final = 0.25  # scale of the forecast in z where nothing but the last value is known
_WIDEST: Final = 3.0  # the scale of a forecast of the log loss, at most: a factor of 20
_LARGEST: Final = float(np.finfo(np.float64).max)
_MOST: Final = _LARGEST / 1e6  # of a quantile [loss]: so that the table can be interpolated
_ROBUST: Final = 1 / (0.6745 * math.sqrt(2))  # of the median absolute difference of two normals: their deviation
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
        with np.errstate(invalid="ignore", over="ignore"):
            table = mode[:, None] + _skewed(below, above)
            # In log loss the unit is a shift, in loss a factor.
            table = np.where(log[:, None], table + np.log(unit)[:, None], (table * unit[:, None]).clip(-_MOST, _MOST))
        found = Forecasts.tabulated(at, table, log)
        return replace(found, mean=found.median, std=np.where(np.isnan(mode), np.inf, found.std.clip(max=_MOST)))

    def _predict(self, points: Points | None, at: float) -> tuple[float, float, float, float, bool]:
        """Mode, scales below and above it, the loss that is 1 (in log loss: 0), and whether it is log loss."""
        if points is None:
            return math.nan, math.inf, math.inf, 1.0, False
        log = points.positive
        y = np.log(points.y) if log else points.y
        size = float(np.ptp(y))
        unit = 1.0 if log or size < _FLAT else size
        noise = min(points.noise / (points.last if log else unit), _LOUDEST)
        last = float(y[-max(1, len(y) // 10) :].mean())
        if points.few:
            mode = 0.0
            below = above = max(size / unit, noise, _WIDE * (1.0 if log else abs(last) / unit), _LEAST)
        else:
            mode, below, above = self._fit(points.u, (y - last) / unit, points.ahead(at), noise)
        if log:  # so that quantiles stay finite as losses
            below, above = min(below, _WIDEST), min(above, _WIDEST)
        return mode + last / unit, below, above, min(unit * points.scale, _LARGEST), log

    def _fit(self, u: Array, z: Array, h: float, noise: float) -> tuple[float, float, float]:
        """Mode and scales of z at `h`."""
        late = z[-max(8, len(z) // 3) :]
        late = np.sort(np.abs(late[1:] - late[:-1]))
        median = 0.5 * float(late[(len(late) - 1) // 2] + late[len(late) // 2])  # np.median takes six times as long
        noise = max(noise, _ROBUST * median)
        far = np.maximum.accumulate(np.abs(z[::-1]))[::-1]
        size = float(np.ptp(z))
        v = noise**2 + (self.misfit * far) ** 2 + (0.005 * size) ** 2 + _EXACT**2
        phi, ahead = _shapes(u, h)
        post = _posterior(phi, z, v, (size + 0.1) ** 2)
        means = post.level + post.drop * ahead[:, None]
        logits = post.evidence - 0.5 * (ahead[:, None] / self.reach) ** 2
        logits -= np.abs(post.drop * ahead[:, None]) / self.fall
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()

        mode = min(float((weights * means).sum()), float(z.max()))  # what rises is not followed beyond what was seen
        within = float((weights * post.variance(ahead[:, None])).sum())
        off = means - mode
        doublings = math.log2(max(h, 1.0))
        drift = _drift(u, z)
        below, above = (
            math.sqrt(
                _OWN * (within + 2.0 * float((weights * part**2).sum()))
                + _LEAST**2
                + (side.gain * mode) ** 2
                + (side.drift * drift * doublings) ** 2
                + (side.doubling * doublings) ** 2
            )
            for side, part in ((_BELOW, np.minimum(off, 0.0)), (_ABOVE, np.maximum(off, 0.0)))
        )
        return mode, below, above


def _shapes(u: Array, h: float) -> tuple[Array, Array]:
    """phi at the points and at the forecast.   (K, n), (K,)"""
    at = np.concatenate([u, [1.0, h]])
    logs = np.log1p(at / _SCALES)
    q = np.concatenate([-np.expm1(-_RATES * at), *(logs if p == 0 else -np.expm1(-p * logs) for p in _POWERS)])
    phi = 1.0 - q / q[:, -2:-1]
    return phi[:, :-2], phi[:, -1]


class _Posterior(NamedTuple):
    """Of level and drop, for every shape and prior scale of the drop.   all (K, J)"""

    level: Array
    drop: Array
    evidence: Array  # log marginal likelihood, up to a constant
    a00: Array
    a01: Array
    a11: Array
    det: Array

    def variance(self, phi: Array) -> Array:
        """Of level + drop*phi.   phi: (K, 1)"""
        return (self.a11 - 2 * self.a01 * phi + self.a00 * phi**2) / self.det


def _posterior(phi: Array, z: Array, v: Array, level_variance: float) -> _Posterior:
    w = 1.0 / v
    r0, r1 = float(w @ z), (phi @ (w * z))[:, None]
    a00, a01, a11 = w.sum() + 1.0 / level_variance, (phi @ w)[:, None], (phi**2 @ w)[:, None] + 1.0 / _DROPS**2
    det = a00 * a11 - a01**2
    level, drop = (a11 * r0 - a01 * r1) / det, (a00 * r1 - a01 * r0) / det
    evidence = 0.5 * (level * r0 + drop * r1) - 0.5 * np.log(det) - np.log(_DROPS)
    return _Posterior(level, drop, evidence, a00, a01, a11, det)


def _drift(u: Array, z: Array) -> float:
    """How fast z has changed of late, per doubling of the steps: since about the middle, and since three quarters."""
    parts = [(z[np.abs(u - v) <= 0.1], math.log2(1 / v)) for v in (0.5, 0.75)]
    paces = [abs(float(part.mean())) / doublings for part, doublings in parts if len(part)]
    return sum(paces) / len(paces) if paces else float(np.ptp(z))


def _skewed(below: Array, above: Array) -> Array:
    """Quantiles at `LEVELS` of two halves of Student-t with 2 degrees of freedom, joined at 0.   (n, K)"""
    share = (below / (below + above))[:, None]  # of the probability below 0: the density has no jump
    left = share > LEVELS
    half = np.where(left, LEVELS / (2 * share), 0.5 + (LEVELS - share) / (2 * (1 - share)))
    scale = np.where(left, below[:, None], above[:, None])
    return np.asarray(scale * (2 * half - 1) / np.sqrt(2 * half * (1 - half)))
