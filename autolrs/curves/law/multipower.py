"""Annealing part of the multi-power law.

Luo et al., "A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules", arXiv 2503.12811, eq. 3-5:

    L(t) = L0 + A * S1^-alpha - B * sum_k (rate_{k-1} - rate_k) * (1 - (c * rate_k^-gamma * S_k(t) + 1)^-beta)

where S_k is the progress since the drop k. As in the annealing law, what is returned has the sign of a loss:
the less rate, the lower.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autolrs.curves.law.paths import Array, RatePath

_DROPS: Final = 96  # drops that stand for all those of a path
_LEAST_RATE: Final = 1e-3  # over the peak; a rate of 0 is taken for this


def felt_rate(path: RatePath, steps: Array, nodes: Array) -> Array:
    """The rate at `steps` as far as the loss has felt it: -(the law's sum over drops).   (len(nodes), n)

    Args:
        nodes: rows of beta, gamma and 1 / c, the latter in units of progress.   (J, 3)
    """
    drops, progress, rates = _drops(path)
    since = np.maximum(path.progress(steps)[:, None] - progress, 0.0)
    beta, gamma, scale = nodes.T[:, :, None, None]
    with np.errstate(over="ignore"):
        felt = 1.0 - (1.0 + since * rates**-gamma / scale) ** -beta
    return np.asarray(path.at(path.steps[:1])[0] - felt @ drops)


def _drops(path: RatePath) -> tuple[Array, Array, Array]:
    """Drops of the rate, the progress at which and the rate to which each one led, in at most `_DROPS` groups."""
    # Long slopes are cut into short ones first.
    peak = max(float(path.rates.max()), np.finfo(np.float64).tiny)
    parts = np.maximum(np.ceil(np.abs(np.diff(path.rates)) / peak * _DROPS), 1).astype(int)
    index = np.repeat(np.arange(len(parts)), parts)
    share = (np.arange(len(index)) - np.repeat(np.cumsum(parts) - parts, parts) + 0.5) / parts[index]
    drop = (path.rates[:-1] - path.rates[1:])[index] / parts[index]
    steps = path.steps[index] + share * np.diff(path.steps)[index]
    rates = path.rates[index] - drop * parts[index] * share
    travelled = np.cumsum(np.abs(drop))
    if not len(drop) or travelled[-1] == 0.0:
        return np.zeros(0), np.zeros(0), np.ones(0)
    group = np.minimum((travelled / travelled[-1] * _DROPS).astype(int), _DROPS - 1)
    weight = np.abs(drop) + np.finfo(np.float64).tiny
    total = np.bincount(group, weight)
    used = total > 0
    progress = np.bincount(group, weight * path.progress(steps))[used] / total[used]
    level = np.bincount(group, weight * rates)[used] / total[used]
    total_drop = np.bincount(group, drop)[used].astype(np.float64)
    return total_drop, progress, np.maximum(level, _LEAST_RATE * peak)
