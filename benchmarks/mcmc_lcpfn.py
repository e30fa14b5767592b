"""The fitted network against chains on LC-PFN's prior, on real windows. Run: python -m benchmarks.mcmc lcpfn

References:
    Adriaensen et al., "LC-PFN", NeurIPS 2023, arXiv 2310.20447: the three-family prior, after Domhan et al. (2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import logsumexp

from autolrs.curves.pfn.model import PFN
from benchmarks.csvrows import append, read
from benchmarks.mcmc_chains import ENSEMBLES, Array, Sampled, answered, load, run_chains
from benchmarks.mcmc_report import LCPFN, SHIPPED, Real
from benchmarks.windows import Window, errors, in_log, log_scores, windows

_UNIFORM: Final = np.array(  # pow3: a, c; ilog2: c, a; janoschek: a, beta; three weights
    [(-0.6, 0.6), (0.0, 1.25), (0.0, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
)
_NORMAL: Final = np.array([(0.0, 2.0), (-2.0, 1.0), (0.0, 0.5), (-4.0, 1.0)])  # logs: alpha; k, delta; noise


def accuracies(v: Array, x: Array) -> Array:
    """Noise-free curves of LC-PFN's prior at x (m,), for parameters (n, 13).   (n, m)"""
    a, c, c2, a2, a3, beta, *weights = (v[:, i : i + 1] for i in range(9))
    alpha, k, delta = (np.exp(v[:, i : i + 1]) for i in (9, 10, 11))
    with np.errstate(over="ignore", under="ignore"):
        pow3 = c - a * x**-alpha
        ilog2 = c2 - a2 / np.log(x + 1.0)
        janoschek = a3 - (a3 - beta) * np.exp(-k * x**delta)
    return np.asarray(weights[0] * pow3 + weights[1] * ilog2 + weights[2] * janoschek)


def lcpfn_posterior(x: Array, y: Array, end: float, seed: int) -> Sampled:
    """Chains for accuracies `y` seen at `x`, of curves that rise and stay within [0, 1] up to `end`."""
    rng = np.random.default_rng(seed)
    grid = np.concatenate([[1.0], np.linspace(2.0, end, 8)])

    def log_density(v: Array) -> Array:
        inside = ((v[:, :9] > _UNIFORM[:, 0]) & (v[:, :9] < _UNIFORM[:, 1])).all(axis=1)
        z = (v[:, 9:] - _NORMAL[:, 0]) / _NORMAL[:, 1]
        allowed = accuracies(v, grid)
        inside &= (allowed >= 0).all(axis=1) & (allowed <= 1).all(axis=1) & (allowed[:, -1] > allowed[:, 0])
        sigma = np.exp(v[:, 12])
        misfit = ((accuracies(v, x) - y) ** 2).sum(axis=1) / sigma**2
        return np.where(inside, -0.5 * (misfit + (z**2).sum(axis=1)) - len(x) * v[:, 12], -np.inf)

    many = np.concatenate([rng.uniform(*_UNIFORM.T, (60_000, 9)), rng.normal(*_NORMAL.T, (60_000, 4))], axis=1)
    values = log_density(many)
    best = np.argsort(values)[-ENSEMBLES * 40 :]
    start = many[rng.permutation(best)].reshape(ENSEMBLES, 40, 13)
    return run_chains(log_density, start, lambda v: accuracies(v, np.array([end]))[:, 0], most=8000, seed=seed)


def lcpfn(count: int, path: Path = LCPFN) -> None:
    """Judge both on the first `count` of the chosen real windows; append what is missing."""
    done = {row.window for row in read(Real, path) if row.shipped == SHIPPED}
    load(PFN())
    for i, window in enumerate(chosen_windows(count)):
        if (window.source, window.curve_id, window.kind, window.start, window.share) not in done:
            append(compared(window, seed=1000 * i), path)
            print(f"window {i + 1} of {count}: {window.source}", flush=True)


def compared(window: Window, seed: int) -> Real:
    """Both on one real window: relative error and log score of y/last."""
    losses, steps = np.array(window.curve.losses), np.array(window.curve.offsets)
    # Losses become accuracies: 1 is a loss of 0, 0 the first one; time goes from 1 to 100, as where it comes from.
    x, y, first = 1.0 + 99.0 * steps / window.at, 1.0 - losses / losses[0], losses[0]
    sampled = lcpfn_posterior(x, y, 100.0, seed)
    means = first * (1.0 - accuracies(sampled.samples, np.array([100.0]))[:, 0])
    noise = np.maximum(first * np.exp(sampled.samples[:, 12]), 1e-12)
    density = logsumexp(-0.5 * ((window.truth - means) / noise) ** 2 - np.log(noise * math.sqrt(2 * math.pi)))
    forecast, seconds = answered(PFN(), window.curve, window.at)
    return Real(
        window.source,
        window.curve_id,
        window.kind,
        window.start,
        window.share,
        shipped=SHIPPED,
        error_chains=abs(float(np.median(means)) - window.truth) / window.truth,
        error_network=float(errors(forecast, [window])[0]),
        score_chains=-float(np.clip(density - math.log(len(means)) + math.log(window.last), -8, 8)),
        score_network=float(log_scores(forecast, [window])[0]),
        rhat=sampled.rhat,
        chains_s=sampled.seconds,
        network_s=seconds,
    )


def chosen_windows(count: int) -> Sequence[Window]:
    """Runs and pieces with positive, finite losses, the same number of every source as far as there are any.

    The first of more are those of fewer.
    """
    rng = np.random.default_rng(0)
    usable = in_log(windows(kinds=("run", "piece")))
    by_source: dict[str, list[Window]] = {}
    for i in rng.permutation(len(usable)):
        by_source.setdefault(usable[i].source, []).append(usable[i])
    turns = [group[turn] for turn in range(count) for group in by_source.values() if turn < len(group)]
    return turns[:count]
