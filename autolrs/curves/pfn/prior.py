"""The prior of the fitted network: training curves as probes show them.

A curve is drawn over a whole run, of which a share is seen as bin means; the rest is what is to be forecast. All is
in log loss up to a constant, for a loss's unit says nothing. Two populations: runs from initialisation (large drops,
early transients) and stretches that start mid-training (small drops, and a transient where the rate jumped).

Notation
    n, b, q  curves, bins seen, queries of each curve
    t        time over the run's length (0: start, 1: end)
    f        share of the run that is seen; bins cover (0, f]
    y        log loss
    g        a shape of the drop, g(0) = 0 and g(1) = 1:  y = -drop * g

References:
    Müller et al., "Transformers can do Bayesian inference", ICLR 2022, arXiv 2112.10510 (prior-data fitted networks).
    Adriaensen et al., "LC-PFN", NeurIPS 2023, arXiv 2310.20447 (sums of parametric curve families).
    Rakotoarison et al., "FT-PFN", ICML 2024, arXiv 2404.16795 (transients, divergence, plateaus).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Chosen = NDArray[np.intp]


_FAMILIES: Final = (0.40, 0.20, 0.32, 0.08)  # log1p, power, (stretched) exponential, linear
_WITHIN: Final = (np.arange(3) + 0.5) / 3  # points of a bin at which its mean is taken
_BOUND: Final = 30.0  # of |y|: e^30 is beyond what anybody trains through


@dataclass(frozen=True, slots=True)
class Batch:
    """Curves seen in part, and their later losses.

    Attributes:
        times: middles of the bins, over the run's length.              (n, b)
        losses: log of the bin means, up to a constant of the curve.    (n, b)
        noise: standard deviation of the last bin's mean over that mean, as estimated from what is seen.   (n,)
        at: times asked for.                                            (n, q)
        truths: log loss there, up to the same constant: the mean of a twentieth of the run.   (n, q)
    """

    times: Array
    losses: Array
    noise: Array
    at: Array
    truths: Array


def sample(rng: np.random.Generator, n: int, bins: int, queries: int) -> Batch:
    """Draw `n` curves with `bins` bins seen and `queries` questions each."""
    share = np.exp(rng.uniform(np.log(0.04), np.log(0.9), (n, 1)))
    edges = share * _edges(rng, n, bins)
    low, width = edges[:, :-1, None], np.diff(edges)[:, :, None]
    within = (low + width * _WITHIN).reshape(n, -1)
    times = 0.5 * (edges[:, 1:] + edges[:, :-1])
    # Half of the questions are about the run's end, as a probe's is about its stage's.
    at = share ** rng.uniform(0.0, 1.0, (n, queries))
    at[:, : queries // 2] = rng.uniform(0.95, 1.0, (n, queries // 2))
    at = np.maximum(at, edges[:, -1:])

    y = trend(rng, np.concatenate([within, at], axis=1))
    clean = np.log(np.exp(y[:, : within.shape[1]]).reshape(n, bins, -1).mean(axis=2))
    future = y[:, within.shape[1] :]

    # Bin noise: relative noise may grow as the loss falls; a truth averages many bins, correlated ones less well.
    sigma = np.exp(rng.normal(-4.1, 1.1, (n, 1)))
    sigma *= np.where(rng.random((n, 1)) < 0.08, np.exp(rng.uniform(-7.0, 0.0, (n, 1))), 1.0)  # next to none
    growth = rng.uniform(-0.3, 0.6, (n, 1))
    correlation = np.where(rng.random((n, 1)) < 0.4, rng.uniform(0.2, 0.9, (n, 1)), 0.0)
    level = clean[:, -max(1, bins // 10) :].mean(axis=1, keepdims=True)
    spread = sigma * np.exp(np.clip(-growth * (clean - level), -3.0, 1.5))
    noise = spread * _autocorrelated(_heavy(rng, (n, bins)), correlation)
    averaged = np.sqrt(20.0 * share / bins * (1.0 + correlation) / (1.0 - correlation)).clip(max=1.0)
    blur = sigma * np.exp(np.clip(-growth * (future - level), -3.0, 1.5)) * averaged
    losses = clean + np.where(noise > 0, np.log1p(np.maximum(noise, 0)), -np.log1p(-np.minimum(noise, 0)))
    truths = future + blur * rng.standard_normal(future.shape)

    # The noise is read from differences of neighbours: of single points, where correlated noise seems smaller, or,
    # where bin means are all there is, of bins, where the trend adds to it.
    of_points = sigma[:, 0] * np.sqrt(1.0 - correlation[:, 0]) * np.exp(rng.normal(0.0, 0.15, n))
    of_bins = np.sqrt(0.5 * np.mean(np.diff(losses[:, -max(16, bins // 3) :], axis=1) ** 2, axis=1))
    return Batch(times, losses, np.where(rng.random(n) < 0.8, of_points, of_bins), at, truths)


def trend(rng: np.random.Generator, t: Array) -> Array:
    """Noise-free log losses of n curves at their times t (n, m), up to a constant each; of size at most 30."""
    n = len(t)
    young = rng.random(n) < 0.55  # from initialisation
    flat = rng.random(n) < 0.12
    drop = np.exp(np.where(young, rng.normal(np.log(1.5), 0.8, n), rng.normal(np.log(0.18), 1.1, n)))
    drop = np.where(flat, np.exp(rng.normal(np.log(0.01), 1.3, n)), drop)
    two = rng.random(n) < 0.45
    part = np.where(two, rng.beta(1.0, 1.0, n), 1.0)[:, None]
    y = -drop[:, None] * (
        part * _shape(rng, t, _scales(rng, young)) + (1.0 - part) * _shape(rng, t, _scales(rng, young))
    )

    chosen = _some(rng, n, 0.35)  # a loss that cannot fall below a floor
    floor = rng.uniform(0.0, 0.9, (len(chosen), 1))
    y[chosen] = np.log(floor + (1.0 - floor) * np.exp(y[chosen]))

    chosen = _some(rng, n, 0.04)  # plateau first, then the drop
    begin = _between(rng, chosen, 0.01, 0.6)
    later = np.maximum(t[chosen] - begin, 0.0) / (1.0 - begin)
    y[chosen] = -drop[chosen, None] * _shape(rng, later, _scales(rng, young[chosen]))

    chosen = _some(rng, n, 0.04)  # slow rise
    y[chosen] = np.minimum(-0.5 * y[chosen], 1.0)

    chosen = _some(rng, n, np.where(young, 0.04, 0.15))  # spike at the start, then it relaxes
    x = t[chosen] / _between(rng, chosen, 1e-3, 0.3)
    y[chosen] += _about(rng, chosen, 0.1, 1.0) * x * np.exp(1.0 - x)

    chosen = _some(rng, n, np.where(young, 0.02, 0.08))  # up to another level and on from there
    x = t[chosen] / _between(rng, chosen, 1e-3, 0.3)
    y[chosen] -= _about(rng, chosen, 0.08, 1.0) * np.expm1(-x)

    chosen = _some(rng, n, np.where(young, 0.08, 0.0))  # an explosion in the first steps, left behind
    x = t[chosen] / _between(rng, chosen, 1e-4, 0.02)
    y[chosen] += _about(rng, chosen, 3.0, 1.0) * np.exp(-x)

    chosen = _some(rng, n, 0.08)  # a jump at any time that decays
    since = t[chosen] - _between(rng, chosen, 0.01, 1.0)
    decay = _between(rng, chosen, 1e-3, 0.5)
    height = _about(rng, chosen, 0.08, 1.2)
    y[chosen] += np.where(since >= 0, height * np.exp(-np.maximum(since, 0.0) / decay), 0.0)

    chosen = _some(rng, n, 0.15)  # the rate is lowered, at once or until the end
    begin = rng.uniform(0.0, 0.95, (len(chosen), 1))
    length = np.where(rng.random((len(chosen), 1)) < 0.7, 1.0 - begin, 0.02)
    gain = _about(rng, chosen, 0.08, 0.9)
    y[chosen] -= gain * np.clip((t[chosen] - begin) / length, 0.0, 1.0) ** 1.5

    chosen = _some(rng, n, 0.015)  # late divergence
    since = np.maximum(t[chosen] - rng.uniform(0.0, 1.0, (len(chosen), 1)), 0.0)
    y[chosen] += _about(rng, chosen, 1.0, 1.5) * since

    chosen = _some(rng, n, np.where(young, 0.08, 0.03))  # learned by heart: the loss falls on, by powers of ten
    y[chosen] -= _about(rng, chosen, 2.0, 0.9) * t[chosen] ** rng.uniform(0.4, 2.0, (len(chosen), 1))

    chosen = _some(rng, n, 0.4)  # no curve is its family: a wandering level
    y[chosen] += _about(rng, chosen, 0.025, 1.0) * _brownian(rng, t[chosen])
    return np.clip(y, -_BOUND, _BOUND)


def _scales(rng: np.random.Generator, young: Mask) -> Array:
    """Times, over the run's length, that shapes take: short from initialisation on.   (n,)"""
    n = len(young)
    return 10.0 ** np.where(young, rng.triangular(-5.0, -2.5, -0.2, n), rng.uniform(-2.5, 1.0, n))


def _shape(rng: np.random.Generator, t: Array, scales: Array) -> Array:
    """Shapes g (n, m) of one family each, that take the times `scales`."""
    n = len(t)
    family = rng.choice(len(_FAMILIES), n, p=_FAMILIES)
    x, end = t / scales[:, None], 1.0 / scales[:, None]
    power = np.exp(rng.normal(np.log(0.5), 0.7, (n, 1)))
    stretch = np.where(rng.random((n, 1)) < 0.5, 1.0, rng.uniform(0.3, 1.2, (n, 1)))
    bend = np.exp(rng.normal(0.0, 0.3, (n, 1)))
    g = np.empty_like(t)
    for kind in range(len(_FAMILIES)):
        i = family == kind
        if kind == 0:
            g[i] = np.log1p(x[i]) / np.log1p(end[i])
        elif kind == 1:
            g[i] = np.expm1(-power[i] * np.log1p(x[i])) / np.expm1(-power[i] * np.log1p(end[i]))
        elif kind == 2:
            g[i] = np.expm1(-(x[i] ** stretch[i])) / np.expm1(-(end[i] ** stretch[i]))
        else:
            g[i] = t[i] ** bend[i]
    return g


def _edges(rng: np.random.Generator, n: int, bins: int) -> Array:
    """Edges of the bins over what is seen; in an eighth of the curves the points are unevenly spaced.   (n, b + 1)"""
    widths = np.ones((n, bins))
    uneven = _some(rng, n, 0.125)
    widths[uneven] = np.exp(rng.uniform(0.0, 1.0, (len(uneven), 1)) * rng.standard_normal((len(uneven), bins)))
    edges = np.concatenate([np.zeros((n, 1)), np.cumsum(widths, axis=1)], axis=1)
    return np.asarray(edges / edges[:, -1:])


def _heavy(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Noise of unit scale: normal, in 30 % of the curves Student-t with 3 degrees of freedom."""
    z = rng.standard_normal(shape)
    tail = _some(rng, shape[0], 0.3)
    z[tail] /= np.sqrt(rng.chisquare(3.0, (len(tail), shape[1])) / 3.0)
    return z.clip(-30.0, 30.0)


def _autocorrelated(z: Array, correlation: Array) -> Array:
    """First-order autoregression of unit variance.   z: (n, b), correlation: (n, 1)"""
    out = z.copy()
    new = np.sqrt(1.0 - correlation[:, 0] ** 2)
    for i in range(1, z.shape[1]):
        out[:, i] = correlation[:, 0] * out[:, i - 1] + new * z[:, i]
    return out


def _brownian(rng: np.random.Generator, t: Array) -> Array:
    """A Brownian path of each curve at its times, in any order; variance 1 at t = 1."""
    order = np.argsort(t, axis=1)
    steps = np.diff(np.take_along_axis(t, order, axis=1), axis=1, prepend=0.0)
    path = np.cumsum(np.sqrt(steps) * rng.standard_normal(t.shape), axis=1)
    out = np.empty_like(t)
    np.put_along_axis(out, order, path, axis=1)
    return out


def _some(rng: np.random.Generator, n: int, share: float | Array) -> Chosen:
    """Indices of a random `share` of n curves."""
    return np.flatnonzero(rng.random(n) < share)


def _about(rng: np.random.Generator, chosen: Chosen, median: float, deviation: float) -> Array:
    """A log-normal size for each chosen curve.   (len(chosen), 1)"""
    return np.exp(rng.normal(np.log(median), deviation, (len(chosen), 1)))


def _between(rng: np.random.Generator, chosen: Chosen, low: float, high: float) -> Array:
    """A log-uniform time or size for each chosen curve.   (len(chosen), 1)"""
    return np.exp(rng.uniform(np.log(low), np.log(high), (len(chosen), 1)))
