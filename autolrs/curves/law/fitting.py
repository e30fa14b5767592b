"""Fits of the loss laws to runs: a posterior over a grid of shapes, with the linear part in closed form.

Both laws are linear in three coefficients once their shape is fixed:

    loss = level + slope * (s^-alpha - 1) / alpha + cooling * r,    s = S / S(end of the data)

`level` is what the run would have at its end without any rate, `slope` what another e-fold of progress brings there,
and `cooling` what the peak rate adds to the loss (C of the annealing law, B of the multi-power law); r is the rate,
over its peak, as far as the loss has felt it. So alpha and the shape of r are put on a grid, and each node has a
Gaussian posterior. Nothing is searched for, no start matters, and what the data do not say shows as a posterior as
wide as the prior. The two laws have half of the weight each: their errors differ, and their mean has the smaller one.

Notation
    G       nodes: laws x alphas x shapes of r
    n       points
    z       residuals over `size`, which is the loss itself where all are positive: those of the log loss   (n,)
    X       the three columns at each node                                                             (G, n, 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.law.annealing import recent_rate
from autolrs.curves.law.multipower import felt_rate
from autolrs.curves.law.paths import Array, RatePath

LAWS: Final = ("annealing", "multipower")
COEFFICIENTS: Final = ("level", "slope", "cooling")

ALPHAS: Final[Array] = np.geomspace(0.1, 1.6, 13)
TIMESCALES: Final[Array] = np.geomspace(0.002, 0.2, 9)  # tau of the annealing law, over the run's length
SHAPES: Final[Array] = np.array(  # beta, gamma, and 1 / c over the run's progress, of the multi-power law
    [(beta, gamma, scale) for beta in (0.3, 1.0) for gamma in (0.3, 1.0) for scale in (0.001, 0.003, 0.01, 0.03)]
)

# Priors. Medians and deviations of logs; means and deviations of what is linear, over the loss's unit (`Fit.size`).
_ALPHA: Final = (0.5, 0.6)
_TIMESCALE: Final = (0.02, 1.2)
_SCALE: Final = (0.005, 1.2)
LINEAR: Final[Array] = np.array([(0.8, 1.0), (0.0, 0.5), (0.04, 0.024)])  # cooling: .15 nats of 3 + .8, within exp(.6)

FLOOR: Final = 0.001
"""Error of a law that no data remove, over the loss."""

_TREND: Final = 0.02  # error of a law at the run's start, over the drop since; it fades to 0 at the end
_COUNT: Final = 20.0  # independent values of a law's error, which is smooth, along all data
_HUBER: Final = 1.5  # deviations up to which a residual counts by its square
_ROUNDS: Final = 5  # of reweighting
_OFFSET: Final = 0.01  # deviation of a probe's level from the law's, over the loss
_SPREAD: Final = (0.1, 0.9)  # quantiles whose difference, with the last loss, is the unit of the loss
_FORBIDDEN: Final = 1e3  # taken from a log weight
_EARLIEST: Final = 1e-4  # progress below which s is taken for this


class Observed(NamedTuple):
    """One run, or a probe with the run before it.

    Attributes:
        peak: unit of the rates: the highest one of the kept run.
        path: the rate over `peak`, from the run's start on.
        steps: of the points, ascending.                          (n,) [step]
        losses: finite.                                           (n,) [loss]
        noise: standard deviation of each point.                  (n,) [loss]
    """

    peak: float
    path: RatePath
    steps: Array
    losses: Array
    noise: Array

    def where(self, chosen: NDArray[np.bool_]) -> Observed:
        """With these points only."""
        return self._replace(steps=self.steps[chosen], losses=self.losses[chosen], noise=self.noise[chosen])


@dataclass(frozen=True, slots=True)
class Fit:
    """A posterior over both laws.

    Attributes:
        laws: those taken in; see `LAWS`.
        peak: unit of the rates.
        length: steps to the last point; the unit of the timescales.
        progress: S there.
        size: unit of the loss: the last one's size, and how far apart the losses are.
        means: of `COEFFICIENTS` over `size`, at each node.    (G, 3)
        covariances:                                           (G, 3, 3)
        weights: posterior of the nodes, sum 1.                (G,)
        misfit: root mean square of z, of the mean forecast.
        log: whether all losses are positive, so that z are those of the log loss.
    """

    laws: tuple[str, ...]
    peak: float
    length: float
    progress: float
    size: float
    means: Array
    covariances: Array
    weights: Array
    misfit: float
    log: bool

    def predict(self, path: RatePath, steps: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the loss at `steps` of a run along `path`.   (n,) each [loss]"""
        x = self._columns(path, steps)
        each = (x @ self.means[:, :, None])[..., 0]
        mean = self.weights @ each
        variance = ((x @ self.covariances) * x).sum(axis=2) + (each - mean) ** 2
        return self.size * mean, self.size * np.sqrt(self.weights @ variance)

    def updated(self, probe: Observed) -> Fit:
        """With level and cooling moved by what a probe says; alpha, slope and the shape of r stay as they are.

        A probe after a jump of the rate shows a transient that would pass for curvature: nothing else is refitted.
        """
        x, y, noise = self._columns(probe.path, probe.steps), probe.losses / self.size, probe.noise / self.size
        residuals = y - (x @ self.means[:, :, None])[..., 0]
        variance = noise**2 + FLOOR**2 * max(1.0, len(y) / _COUNT)
        moved = x[:, :, [0, 2]]
        prior = np.zeros((len(x), 2, 2))
        prior[:, 0, 0], prior[:, 1, 1] = _OFFSET**-2, 1.0 / self.covariances[:, 2, 2]
        weighted = moved / variance[:, None]
        covariance = np.linalg.inv(moved.transpose(0, 2, 1) @ weighted + prior)
        shift = covariance @ (weighted.transpose(0, 2, 1) @ residuals[..., None])
        means, covariances = self.means.copy(), self.covariances * np.diag([0.0, 1.0, 0.0])
        means[:, [0, 2]] += shift[..., 0]
        covariances[:, [[0], [2]], [[0, 2]]] = covariance
        # What is left beyond the noise is the law's error on this probe, which may grow.
        left = self.weights @ (residuals - (moved @ shift)[..., 0])
        covariances[:, 0, 0] += max(0.0, float(np.mean(left**2 - noise**2)))
        return replace(self, means=means, covariances=covariances)

    def _columns(self, path: RatePath, steps: Array) -> Array:
        return _columns(self.laws, path, steps, self.length, self.progress)


def fit(runs: Sequence[Observed], laws: Sequence[str] = LAWS) -> Fit:
    """Fit the laws jointly to `runs`, whose rates have one unit; the longest gives the other units."""
    longest = max(runs, key=lambda run: run.steps[-1])
    length = float(longest.steps[-1])
    progress = max(float(run.path.progress(run.steps[-1:])[0]) for run in runs)
    y, noise = (np.concatenate([getattr(run, name) for run in runs]) for name in ("losses", "noise"))
    t = np.concatenate([run.steps / run.steps[-1] for run in runs])
    positive = bool((y > 0).all())
    low, high = np.quantile(y, _SPREAD)
    size = max(abs(float(longest.losses[-1])) + float(high - low), np.finfo(np.float64).tiny)
    y, noise = y / size, noise / size
    scale = y if positive else np.ones_like(y)
    noise = (noise / scale) ** 2
    model = FLOOR**2 + (_TREND * float(np.ptp(y)) * (1.0 - t)) ** 2

    x = np.concatenate([_columns(laws, run.path, run.steps, length, progress) for run in runs], axis=1)
    x, z = x / scale[:, None], y / scale
    mean, deviation = LINEAR.T
    prior = np.diag(deviation**-2)
    # Each point has its own noise; the error of the law has at most `_COUNT` values for all of them.
    dependence, excess, robust = max(1.0, len(y) / _COUNT), 1.0, np.ones((len(x), len(y)))
    for _ in range(_ROUNDS):
        weight = robust / (noise + dependence * excess * model)
        weighted = x * weight[:, :, None]
        precision = x.transpose(0, 2, 1) @ weighted + prior
        right = weighted.transpose(0, 2, 1) @ z + prior @ mean
        means = np.linalg.solve(precision, right[..., None])[..., 0]
        residuals = (x @ means[:, :, None])[..., 0] - z
        deviations = np.abs(residuals) / np.sqrt(noise + excess * model)
        robust = _HUBER / np.maximum(deviations, _HUBER)
        excess = max(1.0, float(((robust * residuals**2 - noise).mean(axis=1) / model.mean()).min()))
    covariances = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    logs = -0.5 * (
        (weight * residuals**2).sum(axis=1)
        + (((means - mean) / deviation) ** 2).sum(axis=1)
        + np.linalg.slogdet(precision)[1]
    )
    # A loss that rises with progress, or falls as the rate rises, follows neither law.
    logs -= _FORBIDDEN * ((means[:, 1] < 0) | (means[:, 2] < 0))
    weights = _posterior(laws, logs)
    misfit = float(np.sqrt(np.mean((weights @ residuals) ** 2)))
    return Fit(tuple(laws), runs[0].peak, length, progress, size, means, covariances, weights, misfit, positive)


def _columns(laws: Sequence[str], path: RatePath, steps: Array, length: float, progress: float) -> Array:
    """X; alphas vary slowest within a law.   (G, n, 3)"""
    log_s = np.log(np.maximum(path.progress(steps) / progress, _EARLIEST))
    power = np.expm1(-np.outer(ALPHAS, log_s)) / ALPHAS[:, None]
    parts = []
    for law in laws:
        if law == "annealing":
            felt = recent_rate(path, steps, TIMESCALES * length)
        else:
            felt = felt_rate(path, steps, SHAPES * np.array([1.0, 1.0, progress]))
        part = np.ones((len(ALPHAS), len(felt), len(steps), 3))
        part[..., 1] = power[:, None]
        part[..., 2] = felt
        parts.append(part.reshape(-1, len(steps), 3))
    return np.concatenate(parts)


def node_values(law: str) -> tuple[Array, Array]:
    """Of each node alpha, and what scales the response to a drop: tau over the run's length, 1 / c over its progress.

    (G,) each, of one law
    """
    scales = TIMESCALES if law == "annealing" else SHAPES[:, 2]
    return np.repeat(ALPHAS, len(scales)), np.tile(scales, len(ALPHAS))


def log_prior(law: str) -> Array:
    """Log weights of one law's nodes before any data, up to a constant.   (G,)"""
    alphas, scales = node_values(law)
    parts = ((alphas, _ALPHA), (scales, _TIMESCALE if law == "annealing" else _SCALE))
    return np.asarray(-0.5 * sum((np.log(x / median) / deviation) ** 2 for x, (median, deviation) in parts))


def _posterior(laws: Sequence[str], logs: Array) -> Array:
    """Weights of all nodes from their log likelihoods; each law has the same.   (G,)"""
    weights, start = [], 0
    for law in laws:
        prior = log_prior(law)
        log = prior + logs[start : start + len(prior)]
        weight = np.exp(log - log.max())
        weights.append(weight / weight.sum() / len(laws))
        start += len(prior)
    return np.concatenate(weights)
