"""Markov chains that run until they agree, and the forward pass that they are timed against.

References:
    Foreman-Mackey et al., "emcee", PASP 125, 2013: affine-invariant ensembles.
    Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis 16, 2021.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.pfn.model import PFN
from autolrs.forecasts import Forecasts
from autolrs.records import Curve

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]  # (walkers, d) -> (walkers,)

ENSEMBLES: Final = 4
CONVERGED: Final = 1.01
"""R-hat of the forecast, below which chains agree."""


@dataclass(frozen=True)
class Sampled:
    """Posterior of one curve.   samples: (s, d)"""

    samples: Array
    rhat: float
    seconds: float


def run_chains(
    log_density: LogDensity,
    start: Array,
    forecast: Callable[[Array], Array],
    *,
    steps: int = 2000,
    most: int = 16_000,
    seed: int = 0,
) -> Sampled:
    """Ensembles from `start` (ENSEMBLES, walkers, d), as long as it takes for `forecast` of (s, d) to mix.

    The first half of each is dropped; the steps double until R-hat < 1.01 or `most` are done.
    """
    import emcee

    begin = time.perf_counter()
    moves = [(emcee.moves.StretchMove(), 0.4), (emcee.moves.DEMove(), 0.5), (emcee.moves.DESnookerMove(), 0.1)]
    samplers = []
    for i, walkers in enumerate(start):
        sampler = emcee.EnsembleSampler(*walkers.shape, log_density, vectorize=True, moves=moves)
        sampler.random_state = np.random.RandomState(seed + i).get_state()  # emcee takes no Generator
        samplers.append(sampler)
    done = 0
    while True:
        for sampler, walkers in zip(samplers, start, strict=True):
            sampler.run_mcmc(
                walkers if done == 0 else None, steps if done == 0 else done, skip_initial_state_check=True
            )
        done = steps if done == 0 else 2 * done
        kept = [sampler.get_chain(discard=done // 2, thin=max(1, done // 2000)) for sampler in samplers]
        mixing = rhat(np.stack([forecast(chain.reshape(-1, chain.shape[2])) for chain in kept]))
        if mixing < CONVERGED or done >= most:
            break
    samples = np.concatenate([chain.reshape(-1, chain.shape[2]) for chain in kept])
    return Sampled(samples, mixing, time.perf_counter() - begin)


def rhat(chains: Array) -> float:
    """Split R-hat of `chains` (m, s); 1: they agree."""
    halves = np.concatenate(np.array_split(chains[:, : chains.shape[1] // 2 * 2], 2, axis=1))
    within, between = halves.var(axis=1, ddof=1).mean(), halves.mean(axis=1).var(ddof=1)
    return float(np.sqrt(1.0 + between / within)) if within > 0 else 1.0


def answered(network: PFN, curve: Curve, at: float) -> tuple[Forecasts, float]:
    """The network's forecast, and the seconds it took."""
    begin = time.perf_counter()
    found = network.extrapolate([curve], [at])
    return found, time.perf_counter() - begin


def load(network: PFN) -> None:
    """Read the weights now, so that no curve's time has it."""
    steps = tuple(map(float, range(20)))
    network.extrapolate([Curve(steps, tuple(1 / (1 + step) for step in steps), (0.1,) * 20)], [100.0])
