"""The fitted network against Markov chain Monte Carlo: how much is lost by one forward pass, and what it saves.

python -m benchmarks.mcmc fit OUT          the shipped architecture, fitted to the part of the prior that chains can do
python -m benchmarks.mcmc own [WEIGHTS]    draws from that part: nats that the network loses against converged chains
python -m benchmarks.mcmc lcpfn            real windows: chains on LC-PFN's three-family prior against the network

That part: one shape of the prior, independent Gaussian noise of known size, nothing else. The chains know so. The
shipped network takes into account all else that its prior holds, so that what it loses is mostly the price of that;
what one forward pass costs, only a network fitted to the same draws can show. Chains run until R-hat < 1.01 for the
forecast.

References:
    Foreman-Mackey et al., "emcee", PASP 125, 2013: affine-invariant ensembles.
    Adriaensen et al., "LC-PFN", NeurIPS 2023, arXiv 2310.20447: the three-family prior, after Domhan et al. (2015).
    Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis 16, 2021.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

from autolrs.curves.pfn.model import PFN
from autolrs.curves.pfn.prior import Batch
from autolrs.curves.pfn.training import CHECKPOINT, Config, train
from autolrs.records import POINTS, Curve
from benchmarks.windows import Window, errors, windows

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]  # (walkers, d) -> (walkers,)

ENSEMBLES: Final = 4
CONVERGED: Final = 1.01
AT: Final = 0.975  # of the run: the middle of its last twentieth


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


# Draws whose likelihood can be written down


@dataclass(frozen=True)
class Drawn:
    """One curve: log losses y at times t with noise `sigma`, and the truth at `AT` with noise `blur`."""

    t: Array
    y: Array
    sigma: float
    truth: float
    blur: float


def shape(v: Array, t: Array) -> Array:
    """Shapes g (n, m) of the prior at times t (m,); v: (n, 4) = log drop, log10 time scale, family in (0, 1), bend."""
    x, end = t / 10.0 ** v[:, 1:2], 1.0 / 10.0 ** v[:, 1:2]
    bend = v[:, 3:4]
    power = np.exp(math.log(0.5) + 0.7 * bend)
    stretch = np.where(ndtr(bend) < 0.5, 1.0, 0.3 + 0.9 * (2.0 * ndtr(bend) - 1.0))
    by_family = (
        np.log1p(x) / np.log1p(end),
        np.expm1(-power * np.log1p(x)) / np.expm1(-power * np.log1p(end)),
        np.expm1(-(x**stretch)) / np.expm1(-(end**stretch)),
        t ** np.exp(0.3 * bend),
    )
    family = np.searchsorted([0.40, 0.60, 0.92], v[:, 2])
    return np.choose(family[:, None], by_family)


def log_prior(v: Array) -> Array:
    """Of `draw`'s parameters (n, 4), up to a constant."""
    drop, scale = v[:, 0], v[:, 1]
    low, peak, high = -5.0, -2.5, -0.2
    rising, falling = (scale - low) / (peak - low), (high - scale) / (high - peak)
    triangle = 2.0 / (high - low) * np.clip(np.minimum(rising, falling), 1e-300, None)
    uniform = np.where((scale > -2.5) & (scale < 1.0), 1.0 / 3.5, 1e-300)

    def normal(mean: float, std: float) -> Array:
        return -0.5 * ((drop - math.log(mean)) / std) ** 2 - math.log(std)

    young, old = np.log(0.55 * triangle), np.log(0.45 * uniform)
    flat = math.log(0.12) + normal(0.01, 1.3)
    usual = math.log(0.88)
    parts = [young + flat, old + flat, young + usual + normal(1.5, 0.8), old + usual + normal(0.18, 1.1)]
    inside = (v[:, 2] > 0) & (v[:, 2] < 1) & (np.abs(v[:, 1]) < 6)
    return np.where(inside, logsumexp(parts, axis=0) - 0.5 * v[:, 3] ** 2, -np.inf)


def draw_parameters(rng: np.random.Generator, n: int) -> Array:
    """(n, 4) from the prior that `log_prior` is the density of."""
    young, flat = rng.random(n) < 0.55, rng.random(n) < 0.12
    drop = np.where(young, rng.normal(math.log(1.5), 0.8, n), rng.normal(math.log(0.18), 1.1, n))
    drop = np.where(flat, rng.normal(math.log(0.01), 1.3, n), drop)
    scale = np.where(young, rng.triangular(-5.0, -2.5, -0.2, n), rng.uniform(-2.5, 1.0, n))
    return np.stack([drop, scale, rng.random(n), rng.standard_normal(n)], axis=1)


def draw(rng: np.random.Generator, share: float, bins: int = POINTS) -> Drawn:
    t = share * (np.arange(bins) + 0.5) / bins
    v = draw_parameters(rng, 1)
    sigma = float(np.exp(rng.normal(-4.1, 1.1)))
    blur = sigma * min(1.0, math.sqrt(20.0 * share / bins))
    y = -np.exp(v[0, 0]) * shape(v, np.append(t, AT))[0]
    truth = float(y[-1] + blur * rng.standard_normal())
    return Drawn(t, y[:-1] + sigma * rng.standard_normal(bins), sigma, truth, blur)


def draw_batch(rng: np.random.Generator, n: int, bins: int, queries: int) -> Batch:
    """Such draws as the network is trained on; one share for all of them."""
    share = float(np.exp(rng.uniform(math.log(0.08), math.log(0.5))))
    t = share * (np.arange(bins) + 0.5) / bins
    at = np.append(rng.uniform(share, 1.0, queries - 1), AT)
    v = draw_parameters(rng, n)
    sigma = np.exp(rng.normal(-4.1, 1.1, (n, 1)))
    y = -np.exp(v[:, :1]) * shape(v, np.concatenate([t, at]))
    y[:, :bins] += sigma * rng.standard_normal((n, bins))
    y[:, bins:] += sigma * min(1.0, math.sqrt(20.0 * share / bins)) * rng.standard_normal((n, queries))
    times, questions = (np.broadcast_to(x, (n, len(x))) for x in (t, at))
    return Batch(times, y[:, :bins], sigma[:, 0], questions, y[:, bins:])


def predict(v: Array, t: Array, y: Array, at: float) -> tuple[Array, Array, Array]:
    """For each v: squared misfit about the best level, log loss at `at`, given that level.   all (n,)"""
    g = shape(v, np.append(t, at))
    fall = -np.exp(v[:, :1]) * g
    level = (y - fall[:, :-1]).mean(axis=1, keepdims=True)  # flat prior: in closed form
    misfit = ((y - fall[:, :-1] - level) ** 2).sum(axis=1)
    return misfit, (fall[:, -1:] + level)[:, 0], fall


def posterior(curve: Drawn, seed: int) -> Sampled:
    """Chains of one draw; the level is integrated out."""
    rng = np.random.default_rng(seed)

    def log_density(v: Array) -> Array:
        prior = log_prior(v)
        ok = np.isfinite(prior)
        prior[ok] -= 0.5 * predict(v[ok], curve.t, curve.y, AT)[0] / curve.sigma**2
        return np.where(np.isnan(prior), -np.inf, prior)

    many = draw_parameters(rng, 20_000)
    weights = log_density(many)
    chosen = np.argsort(weights + rng.gumbel(size=len(weights)))[-ENSEMBLES * 24 :]  # in proportion, none twice
    start = many[rng.permutation(chosen)].reshape(ENSEMBLES, 24, 4)
    return run_chains(log_density, start, lambda v: predict(v, curve.t, curve.y, AT)[1], seed=seed)


def fit(out: Path, steps: int) -> None:
    """The shipped architecture on `draw_batch`; writes `out`/weights.safetensors."""
    torch.set_num_threads(1)
    config = replace(Config.load(Path("small.yaml")), steps=steps, queries=4)
    train(config, out, resume=(out / CHECKPOINT).exists(), draw=draw_batch)


def own(curves: int, weights: Path | None = None, seed: int = 0) -> list[dict[str, float]]:
    """Nats that the network loses against the chains: on the truth, and in expectation over what the chains expect.

    Chains that all missed a mode agree with each other and are too sure; the first number then favours the network,
    the second one does not. The shipped network is asked the same, and loses `shipped_...`.
    """
    rows = []
    model, shipped = PFN(weights, widening=1.0), PFN(widening=1.0)
    for each in (model, shipped):
        each.extrapolate([Curve((0.0,) * 9, (1.0,) * 9, (0.1,) * 9)], [1.0])  # reads the weights
    for i in range(curves):
        rng = np.random.default_rng([seed, i])
        share = float(rng.choice([0.1, 0.2, 0.4]))
        curve = draw(rng, share)
        sampled = posterior(curve, seed=1000 * i)
        means = predict(sampled.samples, curve.t, curve.y, AT)[1]
        # The level is known to sigma / sqrt(b), the truth to `blur`.
        spread = math.hypot(curve.blur, curve.sigma / math.sqrt(len(curve.t)))
        truths = np.append(curve.truth, rng.choice(means, 400) + spread * rng.standard_normal(400))
        exact = logsumexp(-0.5 * ((truths[:, None] - means[None, ::7]) / spread) ** 2, axis=1)
        exact -= math.log(len(means[::7])) + math.log(spread * math.sqrt(2 * math.pi))
        seen = Curve(tuple(curve.t), tuple(np.exp(curve.y)), (0.1,) * len(curve.t), curve.sigma * math.exp(curve.y[-1]))
        begin = time.perf_counter()
        found = model.extrapolate([seen], [AT])
        seconds = time.perf_counter() - begin
        lost, lost_shipped = (
            exact - [forecast.log_prob([math.exp(y)])[0] + y for y in truths]
            for forecast in (found, shipped.extrapolate([seen], [AT]))
        )
        rows.append(
            {
                "share": share,
                "nats": float(np.mean(lost[1:])),
                "nats_on_truth": float(lost[0]),
                "shipped_nats": float(np.mean(lost_shipped[1:])),
                "shipped_nats_on_truth": float(lost_shipped[0]),
                "entropy": -float(np.mean(exact[1:])),
                "rhat": sampled.rhat,
                "chains_s": sampled.seconds,
                "network_s": seconds,
            }
        )
        print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    return rows


# LC-PFN's prior on real windows

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


def lcpfn(count: int, seed: int = 0) -> list[dict[str, float]]:
    """Both on real windows: relative error and log score of y/last."""
    found = chosen_windows(count, seed)
    forecasts = PFN().extrapolate([w.curve for w in found], [w.at for w in found])
    scores = forecasts.log_prob([w.truth for w in found]) + np.log([w.last for w in found])
    ours = errors(forecasts, found)
    rows = []
    for i, window in enumerate(found):
        losses, steps = np.array(window.curve.losses), np.array(window.curve.offsets)
        # Losses become accuracies: 1 is a loss of 0, 0 the first one; time goes from 1 to 100, as where it comes from.
        x, y, first = 1.0 + 99.0 * steps / window.at, 1.0 - losses / losses[0], losses[0]
        sampled = lcpfn_posterior(x, y, 100.0, seed + 1000 * i)
        means = first * (1.0 - accuracies(sampled.samples, np.array([100.0]))[:, 0])
        noise = np.maximum(first * np.exp(sampled.samples[:, 12]), 1e-12)
        density = logsumexp(-0.5 * ((window.truth - means) / noise) ** 2 - np.log(noise * math.sqrt(2 * math.pi)))
        rows.append(
            {
                "share": window.share,
                "error_chains": abs(float(np.median(means)) - window.truth) / window.truth,
                "error_network": float(ours[i]),
                "score_chains": -float(np.clip(density - math.log(len(means)) + math.log(window.last), -8, 8)),
                "score_network": -float(np.clip(scores[i], -8, 8)),
                "rhat": sampled.rhat,
                "chains_s": sampled.seconds,
            }
        )
        print(window.source, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    return rows


def chosen_windows(count: int, seed: int) -> Sequence[Window]:
    """Runs and pieces with positive, finite losses, the same number of every source as far as there are any."""
    rng = np.random.default_rng(seed)
    usable = [
        w
        for w in windows(kinds=("run", "piece"))
        if not w.blow_up and w.truth > 0 and len(w.curve) >= 8 and w.curve.finite and min(w.curve.losses) > 0
    ]
    by_source: dict[str, list[Window]] = {}
    for i in rng.permutation(len(usable)):
        by_source.setdefault(usable[i].source, []).append(usable[i])
    turns = [group[turn] for turn in range(count) for group in by_source.values() if turn < len(group)]
    return turns[:count]


def summary(rows: Sequence[dict[str, float]]) -> str:
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    lines = [
        f"{name}: mean {values.mean():.4g} (se {values.std() / math.sqrt(len(values)):.2g}), "
        f"median {np.median(values):.4g}, 90 % {np.quantile(values, 0.9):.4g}"
        for name, values in columns.items()
    ]
    return "\n".join([f"{len(rows)} curves, {np.mean(columns['rhat'] < CONVERGED):.0%} converged", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mcmc")
    parser.add_argument("what", choices=("fit", "own", "lcpfn"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--curves", type=int, default=40)
    parser.add_argument("--steps", type=int, default=6000)
    given = parser.parse_args()
    if given.what == "fit":
        fit(given.path or Path("pfn-chains"), given.steps)
    else:
        print(summary(own(given.curves, given.path) if given.what == "own" else lcpfn(given.curves)))


if __name__ == "__main__":
    main()
