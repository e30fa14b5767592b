"""Exponential loss-curve model: the paper's loss model with honest errors.

The paper fits L(t) = a*exp(-b*t) + c to a probe's losses after dropping outliers by a quadratic spline
(AutoLRS, section 3.2). Here (a, c) are solved in closed form for each b of a grid, bounded to what a loss can
be, and the forecasts of all b are averaged by their marginal likelihoods, which also gives their spread.

Notation
    u        offset since the first point, over the observed span (u = 1: last point)     (n,)
    y        losses over the largest |loss|, so that nothing depends on the loss's unit   (n,)
    a, b, c  y(u) ~ a*phi_b(u) + c;  phi_b = exp(-b*u) on a grid of b                      (B,)
    v        relative variance of each point: late points are trusted more                (n,)

References:
    Jin et al., "AutoLRS", ICLR 2021, arXiv 2105.10762, section 3.2.
    Golub and Pereyra, "Separable nonlinear least squares", Inverse Problems 19, 2003.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.points import FEWEST, points_of
from autolrs.errors import SettingError
from autolrs.protocols import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Schedule

Array = NDArray[np.float64]
_Smoother = Callable[[Array, Array], Array]
_Fitter = Callable[[Array, Array, float, float, float], tuple[float, float]]

_DECAYS = np.geomspace(0.03, 60.0, 64)  # b [1/observed span]; beyond these a curve is a line or a spike
_KNOTS = (0.1, 0.25, 0.5, 0.75)  # of the cleaning spline: denser where a curve bends
_TIED = 1e-9  # residuals, over the largest |y|, or offsets u that differ by less differ by rounding only
_LEAST = 0.003  # noise over drop below which a curve is not believed to be its model
_TINY = 1e-12  # relative variance below which a fit counts as exact
_DF = 3  # of the Student-t that a forecast is, with `_SHARE` of the deviation as its scale
_SHARE = 0.8
_WIDEST = 3.0  # deviation of the log loss, at most
_MOST = sys.float_info.max / 1e8  # of a mean or a deviation [loss]: so that quantiles can be interpolated


@dataclass(frozen=True, slots=True)
class Exponential:
    """The `CurveModel` of the paper; see the module's notation.

    Attributes:
        outliers: share of points dropped in each round of cleaning, the worst ones.
        rounds: rounds of cleaning.
        region: only points in this first share of the curve are dropped.
        reach: expected further drop over observed drop; extrapolations far beyond it weigh less.
        trend: misfit allowed at the curve's start, over its drop; it fades to 0 at the last point.
        doubt: share of the forecast's change from the last value, or of what the last doubling of the steps
            brought for each further doubling if that is more, that is added to the deviation.
    """

    outliers: float = 0.03
    rounds: int = 10
    region: float = 0.5
    reach: float = 2.0
    trend: float = 0.6
    doubt: float = 0.8

    def __post_init__(self) -> None:
        if not (0 <= self.outliers < 0.5 and self.rounds >= 0 and 0 <= self.region <= 1):
            raise SettingError(
                "`0 <= outliers < 0.5`, `rounds >= 0` and `0 <= region <= 1` must hold, but got "
                f"(outliers={self.outliers}, rounds={self.rounds}, region={self.region})."
            )
        if not (self.reach > 0 and self.trend >= 0 and self.doubt >= 0):
            raise SettingError(
                "`reach > 0`, `trend >= 0` and `doubt >= 0` must hold, but got "
                f"(reach={self.reach}, trend={self.trend}, doubt={self.doubt})."
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

        A curve without a finite point has the mean NaN and an infinite deviation.

        Raises:
            ValueError: `curves` and `at` differ in length.
        """
        return _each(curves, at, self._fit)

    def _fit(self, u: Array, y: Array, ahead: float, noise: float, scale: float) -> tuple[float, float]:
        """Mean and deviation of y at `ahead`, for y of at most 1 in size."""
        kept = clean(u, y, _spline, outliers=self.outliers, rounds=self.rounds, region=self.region)
        u, y = u[kept], y[kept]
        last, _ = _last(y, noise)
        # A loss above 0 stays there; any other may fall once more by what was seen.
        floor = 0.0 if y.min() > 0 else 2 * y.min() - y.max()
        drop = float(np.ptp(y))
        v = 1.0 + (self.trend * drop * (1.0 - u)) ** 2 / max(noise**2, (_LEAST * drop) ** 2, _TINY)
        fit = _solve(np.exp(-np.outer(_DECAYS, u)), y - floor, v)
        phi = np.exp(-_DECAYS * ahead)
        means = fit.a * phi + fit.c + floor
        free = len(y) - 2
        variance = np.maximum(fit.rss / free, _TINY)  # of a point at the observation's end

        # Marginal likelihood of b (a, c flat, Jeffreys' variance), times a prior on the further drop.
        observed = -np.expm1(-_DECAYS)
        further = np.maximum(np.exp(-_DECAYS) - phi, 0.0) / observed
        logits = np.log(observed) - 0.5 * (np.log(fit.det) + free * np.log(variance) + (further / self.reach) ** 2)
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()

        mean = min(float(weights @ means), float(y.max()))
        points = np.maximum(variance, noise**2)
        spread = float(weights @ ((means - mean) ** 2 + points * (1.0 + fit.leverage(phi))))
        # No curve is an exponential for ever: what the last doubling of u brought, each further one may bring again.
        doubling = abs(float(np.interp((0.4, 0.5, 0.6), u, y).mean()) - last) * math.log2(max(ahead, 1.0))
        return mean, math.sqrt(spread + (self.doubt * max(doubling, abs(mean - last))) ** 2)


@dataclass(frozen=True, slots=True)
class PublishedExponential:
    """The forecast of the released code, for benchmarks: a and c are free, the spline assumes noise of 1.

    It can forecast losses below 0 and depends on the loss's unit; `Exponential` is what to use. Where the
    released code raises (few points), the last value is forecast.
    """

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        """Forecasts of `curves` at the offsets `at`; points that are not finite are ignored."""
        return _each(curves, at, _published)


def _each(curves: Sequence[Curve], at: Sequence[float], fit: _Fitter) -> Forecasts:
    rows = [_forecast(curve, float(offset), fit) for curve, offset in zip(curves, at, strict=True)]
    mean, deviation, positive = (np.array([row[i] for row in rows], dtype=np.float64) for i in range(3))
    # Losses above 0 stay there: their distribution is one of the log loss.
    log = (positive > 0) & (mean > 0)
    size = np.where(log, mean, 1.0)
    location, scale = np.where(log, np.log(size), mean), np.where(log, np.minimum(deviation / size, _WIDEST), deviation)
    with np.errstate(invalid="ignore"):  # of a curve of which nothing is known
        found = Forecasts.student_t(at, location, _SHARE * scale, _DF, log)
    return replace(found, mean=mean, std=deviation)


def _forecast(curve: Curve, at: float, fit: _Fitter) -> tuple[float, float, bool]:
    """Mean, deviation and whether all losses are positive: what every variant shares.

    The last value where a shape cannot be made out.
    """
    points = points_of(curve)
    if points is None:
        return np.nan, np.inf, False
    noise = min(points.noise, 1.0)
    if points.few:
        mean, deviation = _last(points.y, noise)
    else:
        mean, deviation = fit(points.u, points.y, points.ahead(at), noise, points.scale)
    mean, deviation = mean * points.scale, deviation * points.scale
    return max(-_MOST, min(mean, _MOST)), min(deviation, _MOST), points.positive


def clean(
    u: Array, y: Array, smooth: _Smoother, *, outliers: float = 0.03, rounds: int = 10, region: float = 0.5
) -> NDArray[np.bool_]:
    """Which points are left after cleaning (AutoLRS, section 3.2).

    Each round smooths what is left, finds the share `outliers` of it that lies farthest off, and drops those
    with u < `region`. At least half of the points stay. Of points that are equally far off, but for rounding, the
    later ones count as farther: losses given in a few digits have such ties, and a unit must not decide them.
    """
    kept = np.ones(len(y), dtype=bool)
    for _ in range(rounds):
        indices = np.flatnonzero(kept)
        residuals = np.abs(y[kept] - smooth(u[kept], y[kept]))
        worst = indices[_largest(residuals, math.ceil(outliers * len(indices)), _TIED * np.abs(y[kept]).max())]
        worst = worst[u[worst] < region - _TIED]
        if len(worst) == 0 or len(indices) - len(worst) < max(FEWEST, len(y) / 2):
            break
        kept[worst] = False
    return kept


def _largest(x: Array, count: int, tolerance: float) -> NDArray[np.intp]:
    """Positions of the `count` largest; of those within `tolerance` of the last of these, the later ones."""
    if count == 0:
        return np.zeros(0, dtype=np.intp)
    least = np.partition(x, -count)[-count]
    above = np.flatnonzero(x > least + tolerance)
    tied = np.flatnonzero(np.abs(x - least) <= tolerance)
    return np.concatenate([tied[len(tied) - (count - len(above)) :], above])


def _published(u: Array, y: Array, ahead: float, noise: float, scale: float) -> tuple[float, float]:
    kept = clean(u, y * scale, _released_spline)
    z = _released_spline(u[kept], y[kept] * scale, u) / scale
    fit = _solve(np.exp(-np.outer(_DECAYS, u)), z, np.ones_like(u), bounded=False)
    best = int(fit.rss.argmin())
    mean = float(fit.a[best] * np.exp(-_DECAYS[best] * ahead) + fit.c[best])
    return mean, float(np.sqrt(fit.rss[best] / (len(u) - 2) + noise**2))


def _released_spline(u: Array, y: Array, at: Array | None = None) -> Array:
    """`UnivariateSpline` with its default smoothing, which takes the noise to be 1 in the loss's own unit."""
    from scipy.interpolate import UnivariateSpline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when its smoothing cannot be reached
        return np.asarray(UnivariateSpline(u, y, k=2)(u if at is None else at), dtype=np.float64)


class _Fit(NamedTuple):
    """Weighted least squares of z ~ a*phi + c with a, c >= 0, for each row of phi.   all (B,)"""

    a: Array
    c: Array
    rss: Array
    det: Array  # of the normal matrix
    s11: Array
    s12: Array
    s22: float

    def leverage(self, phi: Array) -> Array:
        """Variance of a prediction at `phi` over that of a point, given which bounds hold."""
        both = (self.s22 * phi**2 - 2 * self.s12 * phi + self.s11) / self.det
        one = np.where(self.a > 0, phi**2 / self.s11, 1.0 / self.s22)
        return np.where((self.a > 0) & (self.c > 0), both, one)


def _solve(phi: Array, z: Array, v: Array, *, bounded: bool = True) -> _Fit:
    """Fit every row of `phi` (B, n) to `z` (n,), where the points have the relative variances `v` (n,)."""
    w = 1.0 / v
    s11, s12, s22 = phi**2 @ w, phi @ w, float(w.sum())
    r1, r2 = phi @ (w * z), float(w @ z)
    # Points at a single offset, all but, cannot tell a from c: what is left of the difference is rounding.
    least = np.finfo(np.float64).eps * s11 * s22
    det = np.maximum(s11 * s22 - s12**2, np.maximum(least, np.finfo(np.float64).tiny))
    a, c = (s22 * r1 - s12 * r2) / det, (s11 * r2 - s12 * r1) / det
    # Two unknowns: if one is negative, the best point lies on that side of the quadrant (z is not negative).
    if bounded:
        a, c = (
            np.where(a < 0, 0.0, np.where(c < 0, r1 / s11, a)),
            np.where(a < 0, r2 / s22, np.where(c < 0, 0.0, c)),
        )
    rss = (z - a[:, None] * phi - c[:, None]) ** 2 @ w
    return _Fit(a, c, rss, det, s11, s12, s22)


def _last(y: Array, noise: float) -> tuple[float, float]:
    """Mean of the last tenth, and a deviation wide enough for knowing nothing more."""
    mean = float(y[-max(1, len(y) // 10) :].mean())
    return mean, float(max(np.ptp(y), noise, 0.5 * abs(mean)))


def _spline(u: Array, y: Array) -> Array:
    """Least-squares quadratic spline with fixed knots: linear in y, hence equivariant to the loss's scale."""
    basis = np.stack([u**0, u, u**2, *(np.maximum(u - knot, 0.0) ** 2 for knot in _KNOTS)], axis=1)
    return np.asarray(basis @ np.linalg.lstsq(basis, y, rcond=None)[0])
