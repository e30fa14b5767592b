"""Which parameters of the laws the data determine: posterior against prior, and against the grid's ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autolrs.curves.law.fitting import COEFFICIENTS, LINEAR, Fit, log_prior, node_values
from autolrs.curves.law.paths import Array

_NARROWER: Final = 0.5  # posterior over prior deviation below which the data have said something
_AT_END: Final = 0.25  # weight of a grid's end from which on the truth may lie beyond


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the laws as the data show it.

    Attributes:
        name: "level", "slope", "cooling" [loss], "alpha", or "timescale" [step]; see `fitting`.
        value: posterior mean; that of the log, brought back, where `log` holds: alpha and the timescale.
        std: posterior deviation, of the log where `log` holds.
        prior_std: the same before any data.
        reason: why the data do not identify it; "" if they do.
    """

    name: str
    value: float
    std: float
    prior_std: float
    reason: str
    log: bool = False

    @property
    def identified(self) -> bool:
        return not self.reason


def parameters(fit: Fit) -> tuple[Parameter, ...]:
    """What `fit` says of the parameters of its first law; only the annealing law has a timescale."""
    law = fit.laws[0]
    alphas, timescales = node_values(law)
    own = slice(len(alphas))
    weights, means = fit.weights[own] / fit.weights[own].sum(), fit.means[own]
    mean = weights @ means
    variance = weights @ (np.diagonal(fit.covariances[own], axis1=1, axis2=2) + (means - mean) ** 2)
    found = []
    for i, name in enumerate(COEFFICIENTS):
        std, prior_std = (fit.size * float(x) for x in (np.sqrt(variance[i]), LINEAR[i, 1]))
        found.append(Parameter(name, fit.size * float(mean[i]), std, prior_std, _reason(std, prior_std)))
    prior = np.exp(log_prior(law))
    found.append(_on_grid("alpha", alphas, weights, prior))
    if law == "annealing":
        found.append(_on_grid("timescale", timescales * fit.length, weights, prior))
    return tuple(found)


def _on_grid(name: str, values: Array, weights: Array, prior: Array) -> Parameter:
    """The parameter that has `values` at the nodes.   all (G,)"""
    (mean, std), (_, prior_std) = (_moments(values, w) for w in (weights, prior))
    low, high = float(values.min()), float(values.max())
    reason = _reason(std, prior_std)
    if max(float(weights[values == end].sum()) for end in (low, high)) > _AT_END:
        reason = f"at the end of what is allowed, {low:.3g} to {high:.3g}"
    return Parameter(name, float(np.exp(mean)), std, prior_std, reason, log=True)


def _moments(values: Array, weights: Array) -> tuple[float, float]:
    """Mean and deviation of the log."""
    logs, shares = np.log(values), weights / weights.sum()
    mean = float(shares @ logs)
    return mean, float(np.sqrt(shares @ (logs - mean) ** 2))


def _reason(std: float, prior_std: float) -> str:
    if std < _NARROWER * prior_std:
        return ""
    return f"its deviation is still {std / prior_std:.0%} of what was assumed without any data"
