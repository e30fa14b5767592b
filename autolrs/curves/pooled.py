"""Forecasts of sibling probes, pooled over the rate: siblings share what one curve's extrapolation gets wrong.

Extrapolated one by one, probes of one checkpoint get independent errors, which destroy their order; their last
losses are in order, but biased towards rates that are fast at first. A gain is what a loss still loses from the last
value to the horizon. What siblings show of each other's way (`autolrs.curves.shared`) says what gains to expect; by
how much a probe's own forecast differs from that is a smooth function of the rate, so it is smoothed over the rate.
Levels are last losses plus these gains.

Only probes that may still win are smoothed: of rates whose losses do not move any more all is known, and they would
teach that gains are small everywhere. What cannot win keeps its own forecast.

A probe that was once far above where probes begin has shown that its rate is unstable: falling back from there is no
learning, and what broke out once breaks out again. It is expected to stay where it is, and teaches the others nothing.
(Where losses are not positive, how far is far is not known, and no probe is taken for one.)

Notation
    n        probes from one checkpoint, forecast at one horizon
    x        log10 rate, so that distances are decades                                    (n,)
    l        last value: mean of the last tenth of a curve, as a coordinate               (n,)
    g, v     gain forecast for each probe, and the variance of its error                  (n,)
    h        gain by the law that all share; 0 where the coordinate is not the log loss   (n,)
    f        true gain, f ~ h + GP(0, K);  K = s^2 * matern52(|x - x'| / r) + m^2         (n,)

The coordinate is the log loss where all losses are positive, else the loss over the range of all losses. The
hyperparameters (r, s) are averaged over a fixed grid by their marginal likelihoods, so nothing is fitted. s is large:
a forecast is a posterior already, and would be shrunk twice by a prior that is narrow.

References:
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, equations 2.25, 2.26 and 2.30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.points import ordered
from autolrs.curves.shared import WILD, gains
from autolrs.forecasts import Forecasts
from autolrs.records import Curve

Array = NDArray[np.float64]

REACHES: Final = (0.25, 0.5, 1.0)
"""r: over how many decades of the rate gains are alike."""

SCALES: Final = (0.3, 1.0, 3.0)
"""s: by how much gains differ between rates."""

SHARED: Final = 1.0
"""m: prior deviation of the gain that all siblings share."""

ERROR: Final = 0.05
"""Least deviation of a forecast gain, however sure its model is."""

UNLIKELY: Final = 3.0
"""A probe cannot win if it would have to fall by so many deviations below its forecast."""

LAST: Final = 0.1
"""Share of a curve's points, at its end, whose mean is its last value."""

_MOST: Final = 30.0  # no gain is larger, and none less known
_FLAT: Final = 1e-9  # range of losses over the largest, up to which they are the same


def pooled(curves: Sequence[Curve], rates: Sequence[float], forecasts: Forecasts) -> Forecasts:
    """The level of each sibling at its horizon, from its last loss and the gains forecast for all.

    A probe without a finite forecast takes its gain from its siblings; one without a finite point has the mean NaN
    and an infinite deviation. The deviations are those by which siblings are compared: what is unknown about the gain
    that all share is not in them.

    Args:
        curves: what was seen of n probes from one checkpoint.
        rates: their rates, positive.   (n,)
        forecasts: of these curves, each by itself.

    Raises:
        ValueError: the three differ in length, or a rate is not positive and finite.
    """
    x = np.asarray(rates, dtype=np.float64)
    if not len(curves) == len(x) == len(forecasts):
        raise ValueError(f"{len(curves)=}, {len(x)=} and {len(forecasts)=} must be equal.")
    if not ((x > 0) & np.isfinite(x)).all():
        raise ValueError(f"rates must be positive and finite, but got {x.tolist()}.")
    curves = [ordered(curve) for curve in curves]
    with np.errstate(all="ignore"):  # of losses at the ends of the number range
        level, noise = np.array([last(curve) for curve in curves]).reshape(-1, 2).T
        band = forecasts.quantiles((0.16, 0.5, 0.84))
        seen = np.isfinite(level)
        log = bool((level[seen] > 0).all())
        unit = 1.0 if log else _span(curves, band[:, 1])
        if log:
            noise, level, band = noise / level, np.log(level), np.log(np.maximum(band, 0.0))
        else:
            noise, level, band = noise / unit, level / unit, band / unit
        gain, error = band[:, 1] - level, half_width(band)
        known = np.isfinite(gain) & np.isfinite(error)
        gain, error = np.clip(gain, -_MOST, _MOST), np.clip(error, ERROR, _MOST)
        shared = gains(curves, x, forecasts.at) if log else np.zeros(len(x))
        wild = known & (unstable(curves) if log else False)
        gain[wild] = np.maximum(gain[wild], 0.0)
        told = known & ~wild & contenders(level, gain, error)
        asked = told | ~known
        mean, variance = gain, error**2
        mean[asked], variance[asked] = smoothed(
            np.log10(x[told]), (gain - shared)[told], error[told] ** 2, np.log10(x[asked])
        )
        mean[asked] += shared[asked]
        location, scale = (np.where(seen, value, np.nan) for value in (level + mean, np.sqrt(variance + noise**2)))
        found = Forecasts.student_t(forecasts.at, unit * location, unit * scale, np.inf, log)
        return replace(found, mean=found.median, std=np.where(seen, found.std, np.inf))


def contenders(level: Array, gain: Array, error: Array) -> NDArray[np.bool_]:
    """Which probes may end lowest: not those that are far above what another will surely come down to.   (n,)"""
    best = np.nanmin(level + np.minimum(gain + UNLIKELY * error, 0.0), initial=np.inf)
    return np.asarray(level + gain - UNLIKELY * error <= best)


def unstable(curves: Sequence[Curve]) -> NDArray[np.bool_]:
    """Which probes were ever more than `WILD` times above the median of all probes' first losses.   (n,)"""
    finite = [[loss for loss in curve.losses if math.isfinite(loss)] for curve in curves]
    first = float(np.median([losses[0] for losses in finite if losses] or [math.inf]))
    return np.array([max(losses, default=0.0) > WILD * first for losses in finite], dtype=bool)


def last(curve: Curve) -> tuple[float, float]:
    """Mean of the last tenth of a curve's finite points, and its standard error [loss]; NaN and inf if there is none.

    The error is that of the curve's own noise, so it is 0 where the noise is not known.
    """
    losses = [loss for loss in curve.losses if math.isfinite(loss)]
    if not losses:
        return math.nan, math.inf
    count = max(1, round(LAST * len(losses)))
    return sum(loss / count for loss in losses[-count:]), curve.noise / math.sqrt(count)


def half_width(band: Array) -> Array:
    """Half of what lies between the 16 % and 84 % quantiles; the upper half where the lower one has no logarithm.

    band: 16 %, 50 % and 84 % quantiles, as coordinates.   (n, 3)
    """
    upper: Array = band[:, 2] - band[:, 1]
    return np.where(np.isneginf(band[:, 0]), upper, 0.5 * (band[:, 2] - band[:, 0]))


def smoothed(x: Array, g: Array, v: Array, at: Array) -> tuple[Array, Array]:
    """Posterior of the gain at `at` given the gains g at x with error variances v.

    Returns:
        Mean (m,), and the variance of its difference from the mean over all m points (m,).
    """
    r, s = (np.repeat(REACHES, len(SCALES)), np.tile(SCALES, len(REACHES)))  # the nodes, nine
    shared = SHARED**2
    alike, across, among = (
        s[:, None, None] ** 2 * _matern52((a[:, None] - b) / r[:, None, None]) for a, b in ((x, x), (at, x), (at, at))
    )
    L = np.linalg.cholesky(alike + shared + np.diag(v))
    rows = np.concatenate([np.broadcast_to(g, (len(r), 1, len(g))), across + shared], axis=1)
    white = np.linalg.solve(L, rows.swapaxes(1, 2))
    residual, V = white[..., :1], white[..., 1:]
    T = V.swapaxes(1, 2)
    means = (T @ residual)[..., 0]
    logits = -0.5 * (residual**2).sum((1, 2)) - np.log(np.diagonal(L, axis1=1, axis2=2)).sum(1)
    middle = np.eye(len(at)) - 1.0 / max(len(at), 1)
    left = middle @ (among - T @ V) @ middle  # what is shared cancels
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    mean = weights @ means
    spread = (means - mean) @ middle
    return mean, weights @ (np.maximum(np.diagonal(left, axis1=1, axis2=2), 0.0) + spread**2)


def _matern52(distance: Array) -> Array:
    """Matern kernel of smoothness 5/2 (Rasmussen and Williams, equation 4.17)."""
    r = np.sqrt(5.0) * np.abs(distance)
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r), dtype=np.float64)


def _span(curves: Sequence[Curve], forecasts: Array) -> float:
    """Range of all finite losses; if they are all the same, with the forecasts; 1 if these are the same, too."""
    losses = np.concatenate([np.asarray(curve.losses, dtype=np.float64) for curve in curves])
    losses = losses[np.isfinite(losses)]
    span = float(np.ptp(losses))
    if span <= _FLAT * float(np.abs(losses).max()):
        span = float(np.ptp(np.append(losses, forecasts[np.isfinite(forecasts)])))
    return span or 1.0
