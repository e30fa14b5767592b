"""Acquisitions: how much is to be gained by trying a rate next. Losses are minimised; higher scores are better.

Each is a function from `Candidates`, the points of a dense grid, to one score a point; `acquisition` finds it by name.

Notation
    h, g    hyperparameter nodes of the surrogate, points of the grid
    m, S    posterior means (h, g) and covariances (h, g, g) of the noise-free response at the nodes
    s       its standard deviations (h, g)
    v       noise variances of one further outcome (h,)
    phi, Phi  density and distribution function of the standard normal
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from autolrs.errors import UnknownNameError

if TYPE_CHECKING:
    from botorch.models.model import Model
    from torch import Tensor

Array = NDArray[np.float64]

_FAR: Final = 8.5
"""Normal tails beyond this weigh less than one rounding error of a float64."""

_MINIMA: Final = 64
"""Sampled minima of max-value entropy search."""

_PATHS: Final = 256
"""Quasi-random posterior samples of log noisy EI."""


@dataclass(frozen=True)
class Candidates:
    """Points to choose from, and what the surrogate believes of them: a mixture of Gaussians.

    Attributes:
        model: the surrogate, with outcomes to be minimised.
        X: the points as the model takes them.   (g, d)
        tried: positions in `X` of those that were tried (or next to it); not empty.   (t,)
        weights: of the mixture; they add up to 1.   (h,)
        mean, covariance: m (h, g) and S (h, g, g).
        noise: v.   (h,)
        kappa: standard deviations that `lcb` subtracts.
        seed: of what is random.
    """

    model: Model
    X: Tensor
    tried: NDArray[np.intp]
    weights: Array
    mean: Array
    covariance: Array
    noise: Array
    kappa: float = 2.0
    seed: int = 0

    @cached_property
    def std(self) -> Array:
        """s (h, g); kept above rounding errors of the covariance."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=1, axis2=2), 1e-12))

    @property
    def incumbent(self) -> Array:
        """Lowest mean among the tried points, at each node.   (h, 1)"""
        lowest: Array = self.mean[:, self.tried].min(1, keepdims=True)
        return lowest


Acquisition = Callable[[Candidates], Array]


def knowledge_gradient(candidates: Candidates) -> Array:
    """Expected fall of the lowest posterior mean on the grid through one more outcome at each point.   (g,)

    KG_i = min_j m_j - E[min_j (m_j + b_ij Z)], b_ij = S_ij / sqrt(S_ii + v), Z ~ N(0, 1), averaged over the nodes.

    References:
        Frazier, Powell & Dayanik 2009, The Knowledge-Gradient Policy for Correlated Normal Beliefs, INFORMS Journal
        on Computing 21(4).
    """
    h, g = candidates.mean.shape
    slopes = candidates.covariance / np.sqrt(candidates.std**2 + candidates.noise[:, None])[:, :, None]
    gains = polygon_gain(np.repeat(candidates.mean, g, axis=0), slopes.reshape(h * g, g))
    return candidates.weights @ gains.reshape(h, g)


def polygon_gain(a: Array, b: Array) -> Array:
    """min_j a_j - E[min_j (a_j + b_j Z)] for each row of intercepts a and slopes b.   (r, j), (r, j) -> (r,)

    The minimum over lines in Z is a concave polygon. With its kinks c_k, at each of which the slope falls by d_k, the
    expectation is exact: sum_k d_k f(|c_k|), f(c) = phi(c) - c Phi(-c) (Frazier et al. 2009, eq. 14). Their
    Algorithm 1 finds the kinks of one row by a sort and a stack; here all rows march along their polygons together,
    from kink to kink, which needs as many passes as the longest polygon has kinks.
    """
    from scipy.special import ndtr

    gain = np.zeros(len(a))
    rows = np.arange(len(a))
    line = np.argmin(a - _FAR * b, axis=1)
    while len(rows):
        index = np.arange(len(rows))
        falls = b[index, line][:, None] - b
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            crossing = np.where(falls > 0, (a - a[index, line][:, None]) / falls, np.inf)
        line = np.argmin(crossing, axis=1)
        kink, fall = crossing[index, line], falls[index, line]
        live = kink < _FAR
        c = np.abs(kink[live])
        gain[rows[live]] += fall[live] * (np.exp(-0.5 * c * c) / math.sqrt(2 * math.pi) - c * ndtr(-c))
        rows, a, b, line = rows[live], a[live], b[live], line[live]
    return gain


def expected_improvement(candidates: Candidates) -> Array:
    """E[max(incumbent - response, 0)], averaged over the nodes (Mockus 1978; Snoek et al. 2012, sec. 3.2).   (g,)"""
    from scipy.special import ndtr

    z = (candidates.incumbent - candidates.mean) / candidates.std
    improvement = candidates.std * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
    scores: Array = candidates.weights @ improvement
    return scores


def lower_confidence_bound(candidates: Candidates) -> Array:
    """-(mean - kappa * standard deviation) of the mixture (Srinivas et al. 2010, eq. 6; AutoLRS, sec. 4.1).   (g,)"""
    mean = candidates.weights @ candidates.mean
    variance = candidates.weights @ (candidates.std**2 + (candidates.mean - mean) ** 2)
    scores: Array = candidates.kappa * np.sqrt(variance) - mean
    return scores


def max_value_entropy(candidates: Candidates) -> Array:
    """Information that the response at each point holds on its minimum (Wang & Jegelka 2017, eq. 6).   (g,)

    The minima are those of joint posterior samples on the grid, each from one node of the mixture.
    """
    from scipy.special import log_ndtr

    rng = np.random.default_rng(candidates.seed)
    h, g = candidates.mean.shape
    # The covariance on a dense grid is singular up to rounding; the same jitter must enter both path and std.
    jitter = 1e-6 * np.square(candidates.std).max(1, keepdims=True)
    root = np.linalg.cholesky(candidates.covariance + jitter[:, :, None] * np.eye(g))
    node = rng.choice(h, size=_MINIMA, p=candidates.weights)
    paths = candidates.mean[node] + (root[node] @ rng.standard_normal((_MINIMA, g, 1)))[..., 0]
    z = (candidates.mean[node] - paths.min(1, keepdims=True)) / np.sqrt(np.square(candidates.std) + jitter)[node]
    log_below = log_ndtr(z)
    ratio = np.exp(-0.5 * z * z - log_below) / math.sqrt(2 * math.pi)
    scores: Array = (0.5 * z * ratio - log_below).mean(0)
    return scores


def log_noisy_expected_improvement(candidates: Candidates) -> Array:
    """BoTorch's logarithm of noisy expected improvement over the tried points (Ament et al. 2023).   (g,)"""
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.objective import LinearMCObjective
    from botorch.sampling.normal import SobolQMCNormalSampler
    from linear_operator.utils.warnings import NumericalWarning

    minus = torch.tensor([-1.0], dtype=torch.float64, device="cpu")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # jitter on the covariance of neighbouring points
        acquisition = qLogNoisyExpectedImprovement(
            candidates.model,
            candidates.X[np.unique(candidates.tried)],
            sampler=SobolQMCNormalSampler(torch.Size([_PATHS]), seed=candidates.seed),
            objective=LinearMCObjective(minus),
            prune_baseline=False,
            cache_root=False,
        )
        scores: Array = acquisition(candidates.X.unsqueeze(-2)).numpy()
    return scores


ACQUISITIONS: Final[dict[str, Acquisition]] = {
    "kg": knowledge_gradient,
    "ei": expected_improvement,
    "lcb": lower_confidence_bound,
    "log-nei": log_noisy_expected_improvement,
    "mes": max_value_entropy,
}


def acquisition(name: str) -> Acquisition:
    """The acquisition of that name.

    Raises:
        UnknownNameError: there is none; the message lists them.
    """
    if name not in ACQUISITIONS:
        raise UnknownNameError.of("acquisition", name, ACQUISITIONS)
    return ACQUISITIONS[name]
