"""Annealing part of the annealing law.

Tissue et al., "Scaling Law with Learning Rate Annealing", arXiv 2408.11029, eq. 1:

    L(s) = L0 + A * S1^-alpha - C * S2,    S2 = sum_i m_i,    m_i = lambda * m_{i-1} + (rate_{i-1} - rate_i)

Summed up, (1 - lambda) * S2(s) is the first rate less the exponential moving average of the rate with decay
lambda (induction over s). So, with C in units of the loss at the peak rate and the constant left to L0, the law is

    L(s) = L0 + A * S1^-alpha + C * r(s),    dr/dt = (rate - r) / tau,    lambda = exp(-1 / tau):

the loss is a power of the progress, plus what the *recent* rate adds. A warm-up is a negative drop by construction.
"""

from __future__ import annotations

import numpy as np

from autolrs.curves.law.paths import Array, RatePath


def recent_rate(path: RatePath, steps: Array, timescales: Array) -> Array:
    """The moving average r of the rate at `steps`, for each of `timescales` [step].   (len(timescales), n)

    Exact for rates that are linear between knots, in O(knots log knots).
    """
    t = np.union1d(path.steps, np.maximum(steps, path.steps[0]))
    # Both sides of each interval, so that a jump of the rate belongs to none.
    left = path.at(t[:-1])
    right = _before(path, t[1:])
    width = np.diff(t)
    x = width / timescales[:, None]
    decay = np.exp(-x)
    # The integral of exp(-(end - t)/tau) * rate(t) / tau over an interval, for a rate linear in t.
    gained = np.where(x > 1e-8, -np.expm1(-x) / np.where(x > 0, x, 1.0), 1.0)
    added = right - left * decay - (right - left) * gained
    first = np.full((len(timescales), 1), path.at(t[:1])[0])
    average = np.concatenate([first, _recurrence(decay, added, first)], axis=1)
    return np.asarray(average[:, np.searchsorted(t, np.maximum(steps, path.steps[0]))])


def _before(path: RatePath, steps: Array) -> Array:
    """Rates just before `steps`."""
    index = np.clip(np.searchsorted(path.steps, steps, side="left"), 1, len(path.steps))
    following = np.minimum(index, len(path.steps) - 1)
    width = path.steps[following] - path.steps[index - 1]
    share = np.clip((steps - path.steps[index - 1]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    return np.asarray(path.rates[index - 1] + share * (path.rates[following] - path.rates[index - 1]))


def _recurrence(decay: Array, added: Array, first: Array) -> Array:
    """All x_j = decay_j * x_{j-1} + added_j, by doubling (Hillis and Steele 1986).   (J, n) each, first (J, 1)"""
    shift = 1
    while shift < decay.shape[1]:
        added = np.concatenate([added[:, :shift], added[:, shift:] + decay[:, shift:] * added[:, :-shift]], axis=1)
        decay = np.concatenate([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], axis=1)
        shift *= 2
    return np.asarray(added + decay * first)
