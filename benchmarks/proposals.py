"""What a proposal costs, and whether the surrogates ever fail.

    python -m benchmarks.proposals                  # milliseconds a proposal, each acquisition on each surrogate
    python -m benchmarks.proposals --fits 100000    # numerical failures in that many random fits

Times are also given as multiples of a 64 x 64 float64 Cholesky factorisation measured in the same run, so that
machines can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from autolrs.acquisitions import ACQUISITIONS
from autolrs.protocols import Observation
from autolrs.samplers import SURROGATES, GPSampler

BOUNDS = (1e-5, 1e-1)


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 90th percentile of `repeats` calls after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times)), float(np.quantile(times, 0.9))


def bowl(seed: int, count: int = 10) -> list[Observation]:
    """A noisy asymmetric response in log-rate, observed at random rates."""
    rng = np.random.default_rng([1, seed])
    best = rng.uniform(0.2, 0.8)
    observations = []
    for x in rng.uniform(size=count):
        value = 2.0 + (3.0 if x < best else 9.0) * (x - best) ** 2 + 0.05 * rng.standard_normal()
        observations.append(Observation(BOUNDS[0] * (BOUNDS[1] / BOUNDS[0]) ** x, float(value), 0.05, 0, 3.0))
    return observations


def speed(repeats: int) -> None:
    matrix = np.eye(64) + np.full((64, 64), 0.5)
    unit, _ = milliseconds(lambda: np.linalg.cholesky(matrix), 1000)
    print(f"64 x 64 Cholesky: {unit:.4f} ms")
    print(f"{'surrogate':<12} {'acquisition':<12} {'median ms':>10} {'p90 ms':>8} {'Choleskys':>10}")
    for surrogate in SURROGATES:
        for acquisition in ACQUISITIONS:
            sampler = GPSampler(surrogate, acquisition)
            studies = map(bowl, itertools.count())
            middle, high = milliseconds(
                lambda sampler=sampler, studies=studies: sampler.propose(  # type: ignore[misc]
                    next(studies), bounds=BOUNDS, stage=0, number=10, seed=0
                ),
                repeats,
            )
            print(f"{surrogate:<12} {acquisition:<12} {middle:10.2f} {high:8.2f} {middle / unit:10.0f}", flush=True)


def anything(rng: np.random.Generator) -> tuple[list[Observation], tuple[float, float]]:
    """A study's observations as bad as they come: duplicates, constants, infinities, extreme scales."""
    low = 10.0 ** rng.uniform(-12, 3)
    bounds = (low, low * 10.0 ** rng.uniform(0.01, 8))
    count, stages = int(rng.integers(1, 21)), int(rng.integers(1, 4))
    scale = 10.0 ** rng.choice([0.0, -300.0, 300.0, rng.uniform(-20, 20)])
    offset = scale * float(rng.choice([0.0, 1.0, -1.0, 1e8, -1e8])) if scale < 1e290 else 0.0
    x = rng.uniform(size=count)
    if rng.random() < 0.4:  # duplicates, exact or nearly so
        x = rng.choice(x, size=count) + rng.choice([0.0, 1e-15, 1e-9, 1e-4], size=count) * rng.standard_normal(count)
    values = rng.standard_normal(count) * float(rng.choice([0.0, 1e-12, 1.0]))
    outlier = rng.random(count) < rng.choice([0.0, 0.3])
    values[outlier] *= 10.0 ** rng.uniform(0, 6)
    odd = rng.random(count) < rng.choice([0.0, 0.3, 1.0], p=[0.6, 0.3, 0.1])
    losses = np.where(odd, rng.choice([math.inf, -math.inf, math.nan], size=count), scale * values + offset)
    stds = scale * rng.choice([0.0, 1e-12, 0.05, 1e3], size=count)
    stds = np.where(rng.random(count) < 0.05, rng.choice([math.inf, math.nan], size=count), stds)
    starts = np.where(rng.random(stages) < 0.05, math.nan, scale * rng.uniform(-1, 3, stages) + offset)
    pending = rng.random(count) < rng.choice([0.0, 0.3])
    rates = [bounds[0] * (bounds[1] / bounds[0]) ** float(u) for u in x]
    observations = [
        Observation(rate, float(loss), float(std), stage := int(rng.integers(stages)), float(starts[stage]), bool(wait))
        for rate, loss, std, wait in zip(rates, losses, stds, pending, strict=True)
    ]
    return observations, bounds


def failure(sampler: GPSampler, observations: Sequence[Observation], bounds: tuple[float, float], seed: int) -> str:
    """What went wrong with one proposal and the choice of the best, or ""."""
    stage = max(observation.stage for observation in observations)
    here = [o for o in observations if o.stage == stage and not o.pending and math.isfinite(o.value)]
    try:
        rate = sampler.propose(observations, bounds=bounds, stage=stage, number=len(here), seed=seed)
        if not bounds[0] <= rate <= bounds[1]:
            return f"proposed {rate} outside {bounds}"
        if here and observations[sampler.best(observations, bounds=bounds, stage=stage)] not in here:
            return "best is not a finished trial"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fits(count: int, surrogate: str, acquisition: str | None) -> int:
    """Failures, warnings included, in `count` random proposals; most use EI, as all share the fit."""
    import autolrs.surrogates  # noqa: F401  # its import warns, but not of numbers

    warnings.simplefilter("error")
    failures = 0
    start = time.perf_counter()
    for index in range(count):
        rng = np.random.default_rng([2, index])
        name = acquisition or ("ei", "ei", "lcb", "kg", "mes")[index % 100 % 5 if index % 100 < 5 else 0]
        if message := failure(GPSampler(surrogate, name), *anything(rng), index):
            failures += 1
            print(f"failure {failures} in fit {index} ({name}): {message}", flush=True)
    print(f"{surrogate}: {failures} failures in {count} random fits, {time.perf_counter() - start:.0f} s")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=0, help="count failures in that many random fits instead")
    parser.add_argument("--surrogate", choices=SURROGATES, default=SURROGATES[0], help="for --fits")
    parser.add_argument("--acquisition", choices=list(ACQUISITIONS), help="for --fits; default: a mixture")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fits:
        raise SystemExit(fits(options.fits, options.surrogate, options.acquisition) > 0)
    speed(options.repeats)


if __name__ == "__main__":
    main()
