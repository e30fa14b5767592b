"""The fitted network against Markov chain Monte Carlo: how much is lost by one forward pass, and what it saves.

python -m benchmarks.mcmc fit [OUT]        the shipped architecture, fitted to the part of the prior that chains can do
python -m benchmarks.mcmc own [WEIGHTS]    draws from that part: nats that the network loses against converged chains
python -m benchmarks.mcmc lcpfn            real windows: chains on LC-PFN's three-family prior against the network
python -m benchmarks.mcmc report           their rows, by `benchmarks.mcmc_report` -> that part of docs/curves.md

`own` and `lcpfn` store a row when a curve is done, and go on where they were stopped.

That part: one shape of the prior, independent Gaussian noise of known size, nothing else. The chains know so. The
shipped network takes into account all else that its prior holds, so that what it loses is mostly the price of that;
what one forward pass costs, only a network fitted to the same draws can show. Chains run until R-hat < 1.01 for the
forecast.

Chains are those of `benchmarks.mcmc_chains`, LC-PFN's prior that of `benchmarks.mcmc_lcpfn`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from scipy.special import logsumexp, ndtr

from autolrs.curves.pfn.model import PFN
from autolrs.curves.pfn.prior import Batch
from autolrs.curves.pfn.training import CHECKPOINT, WEIGHTS, Config, train
from autolrs.errors import CheckpointError
from autolrs.records import POINTS, Curve
from benchmarks.csvrows import append, read
from benchmarks.mcmc_chains import ENSEMBLES, Array, Sampled, answered, load, run_chains
from benchmarks.mcmc_lcpfn import lcpfn
from benchmarks.mcmc_report import OWN, SHIPPED, Own, digest, write

FITTED: Final = Path("pfn-chains")
"""Where `fit` writes, by default."""
AT: Final = 0.975  # of the run: the middle of its last twentieth


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


def fit(out: Path, *, steps: int, batch: int, warmup: int) -> None:
    """The shipped architecture on `draw_batch`; writes `out`/weights.safetensors, and goes on after a kill."""
    torch.set_num_threads(1)
    config = replace(Config.load(Path("small.yaml")), steps=steps, batch=batch, warmup=warmup, queries=4)
    try:
        train(config, out, resume=(out / CHECKPOINT).exists(), draw=draw_batch)
    except CheckpointError as error:
        raise SystemExit(f"{error} Here: delete {out}, or name another folder.") from error


def own(curves: int, weights: Path, path: Path = OWN) -> None:
    """Judge the network of these weights, and the shipped one, on the first `curves` draws; append what is missing."""
    names = digest(hashlib.sha256(weights.read_bytes()).hexdigest()), SHIPPED
    done = {row.curve for row in read(Own, path) if (row.weights, row.shipped) == names}
    networks = PFN(weights, widening=1.0), PFN(widening=1.0)
    for network in networks:
        load(network)
    for number in range(curves):
        if number not in done:
            append(judged(number, *networks, names), path)
            print(f"draw {number + 1} of {curves}", flush=True)


def judged(number: int, fitted: PFN, shipped: PFN, names: tuple[str, str]) -> Own:
    """Nats that the networks lose against the chains: on the truth, and in expectation over what the chains expect.

    Chains that all missed a mode agree with each other and are too sure; the first number then favours the network,
    the second one does not.
    """
    rng = np.random.default_rng([0, number])
    share = float(rng.choice([0.1, 0.2, 0.4]))
    curve = draw(rng, share)
    sampled = posterior(curve, seed=1000 * number)
    means = predict(sampled.samples, curve.t, curve.y, AT)[1]
    # The level is known to sigma / sqrt(b), the truth to `blur`.
    spread = math.hypot(curve.blur, curve.sigma / math.sqrt(len(curve.t)))
    truths = np.append(curve.truth, rng.choice(means, 400) + spread * rng.standard_normal(400))
    exact = logsumexp(-0.5 * ((truths[:, None] - means[None, ::7]) / spread) ** 2, axis=1)
    exact -= math.log(len(means[::7])) + math.log(spread * math.sqrt(2 * math.pi))
    seen = Curve(tuple(curve.t), tuple(np.exp(curve.y)), (0.1,) * len(curve.t), curve.sigma * math.exp(curve.y[-1]))
    found, seconds = answered(fitted, seen, AT)
    lost, lost_shipped = (
        exact - [forecast.log_prob([math.exp(y)])[0] + y for y in truths]
        for forecast in (found, answered(shipped, seen, AT)[0])
    )
    return Own(
        number,
        *names,
        share=share,
        nats=float(np.mean(lost[1:])),
        nats_on_truth=float(lost[0]),
        shipped_nats=float(np.mean(lost_shipped[1:])),
        shipped_nats_on_truth=float(lost_shipped[0]),
        entropy=-float(np.mean(exact[1:])),
        rhat=sampled.rhat,
        chains_s=sampled.seconds,
        network_s=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mcmc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fit", "own", "lcpfn", "report"))
    parser.add_argument("path", type=Path, nargs="?", help=f"OUT or WEIGHTS; default: {FITTED}, and those in it")
    parser.add_argument("--curves", type=int, default=40, help="draws, or windows; those on file count")
    parser.add_argument("--steps", type=int, default=40_000, help="of the fit")
    parser.add_argument("--batch", type=int, default=256, help="curves of each")
    parser.add_argument("--warmup", type=int, default=1000, help="how many of them warm up")
    given = parser.parse_args()
    match given.what:
        case "fit":
            fit(given.path or FITTED, steps=given.steps, batch=given.batch, warmup=given.warmup)
        case "own":
            own(given.curves, given.path or FITTED / WEIGHTS)
        case "lcpfn":
            lcpfn(given.curves)
        case "report":
            write()


if __name__ == "__main__":
    main()
