"""What workers without a probe could do while the kept run trains -> a section of docs/workers.md.

    (a) adopt       the winner's plateau counts as training, so the kept run is shorter
    (b) race        the next best candidates train whole runs, too; the lowest real loss is kept
    (c) next stage  probes of a second stage, as good as if they had cost no time

On closed-form problems, and for (b) on whole runs that `python -m benchmarks lengths` recorded.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from autolrs.protocols import Observation
from autolrs.samplers import GPSampler
from autolrs.space import SearchSpace
from autolrs.strategies.horizon import Horizon
from benchmarks.lengths import CENTRES, read
from benchmarks.tasks import TASKS

WORKERS: Final = 4
BUDGET: Final = 0.3
MORE: Final = 0.6
"""Budget with a second stage: the first search's is the same."""
SHARE: Final = 0.08
"""Of the recorded miniatures; `horizon`'s own are a little shorter."""
GAMMA: Final = 0.25
RACERS: Final = (2, 4)
PROBES: Final = 5
WHY: Final = """

Idle workers are given back. Adopting is `horizon`'s own option (`adopt`), off because it lost on real networks what it
wins here ([choices.md](choices.md)). Racing pays a whole run's steps for each further candidate and gains less than two
runs of one rate differ from seed to seed ([choices.md](choices.md)). A second stage's probes start from a state that
exists only when the kept run has come there, so that they cannot run earlier; the table lets them cost no time at all.
"""


def table(problems: int = 60) -> str:
    lines = [
        "| instead of giving them back | problems | final loss over that, median | mean | extra steps a kept step |",
        "| --- | --- | --- | --- | --- |",
    ]
    plain, tried = _simulated(problems, Horizon())
    rows: list[tuple[str, list[float], list[float], float]] = []
    adopted, _ = _simulated(problems, Horizon(adopt=True))
    rows.append(("(a) the winner's plateau adopted", adopted, plain, -0.03))
    for racers in RACERS:
        raced = [
            min([own, *(_whole(seed, rate) for rate in rates[: racers - 1])])
            for seed, (own, rates) in enumerate(zip(plain, tried, strict=True))
        ]
        rows.append((f"(b) the best {racers} race", raced, plain, racers - 1.0))
    later, _ = _simulated(problems, Horizon(later=(0.3,), first_share=BUDGET / MORE), MORE)
    rows.append(("(c) five probes of a second stage at 30 %", later, plain, MORE - BUDGET))
    for name, losses, base, extra in rows:
        lines.append(_row(name, "closed-form", losses, base, extra))
    base, fields = _recorded()
    for racers in RACERS:
        raced = [min(losses[:racers]) for losses in fields]
        lines.append(_row(f"(b) the best {racers} race", f"{len(base)} recorded", raced, base, racers - 1.0))
    return "\n".join(lines) + WHY


def _row(name: str, where: str, losses: Sequence[float], base: Sequence[float], extra: float) -> str:
    change = [a / b - 1 for a, b in zip(losses, base, strict=True)]
    return f"| {name} | {where} | {statistics.median(change):+.2%} | {statistics.fmean(change):+.2%} | {extra:+.2f} |"


def _simulated(problems: int, strategy: Horizon, budget: float = BUDGET) -> tuple[list[float], list[list[float]]]:
    """Final losses on four workers; the rates tried, those of the lowest miniatures first."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the trainer without torch, and its crew, are
    from synthetic import settings_of
    from test_in_flight import Crew

    losses, tried = [], []
    for seed in range(problems):
        crew = Crew(settings_of(steps=1000, budget=budget, seed=seed), strategy, WORKERS, min, batch=WORKERS)
        crew.problem = _problem(seed)
        record = crew.run()
        losses.append(math.inf if record.final_loss is None else record.final_loss)
        ended = [trial for trial in record.stages[0].trials if trial.objective is not None]
        tried.append([trial.rate for trial in sorted(ended, key=lambda trial: trial.objective or math.inf)])
    return losses, tried


def _problem(seed: int) -> Any:
    from synthetic import Problem

    return Problem(rate_unit=10 ** random.Random(seed).uniform(-2, 2))


def _whole(seed: int, rate: float) -> float:
    """Final loss of a whole run at `rate`; inf: it diverged."""
    from synthetic import SyntheticTrainer, settings_of

    from autolrs.errors import DivergedError

    try:
        trainer = SyntheticTrainer(
            settings_of(steps=1000, budget=0, seed=seed), Horizon(), _problem(seed), own_rate=rate
        )
        record = trainer.run()
    except DivergedError:
        return math.inf
    return math.inf if record.final_loss is None or record.roll_backs else record.final_loss


def _recorded() -> tuple[list[float], list[list[float]]]:
    """Whole-run losses at the rate that a search on recorded miniatures chose; and those of it and its rivals."""
    base, fields, responses = [], [], read()
    for task in CENTRES:
        space = SearchSpace.load(TASKS[task].space)
        for seed in (10, 11):
            if (task, seed, 1.0) not in responses:
                continue
            mini, whole = _curve(responses[task, seed, SHARE]), _curve(responses[task, seed, 1.0])
            chosen, rivals = _search(lambda rate: mini(rate / SHARE**GAMMA), space.bounds, space.initial)  # noqa: B023
            losses = [whole(rate) for rate in (chosen, *rivals)]
            base.append(losses[0])
            fields.append(losses)
    return base, fields


def _search(
    loss: Callable[[float], float], bounds: tuple[float, float], first: float | None
) -> tuple[float, list[float]]:
    """The chosen rate of a miniature, and the others tried, lowest loss first."""
    sampler, seen = GPSampler(), list[Observation]()
    while len(seen) < PROBES:
        arguments: dict[str, Any] = {"bounds": bounds, "stage": 0}
        rate = sampler.propose(seen, number=len(seen), seed=0, first=first, **arguments)
        seen.append(Observation(rate, loss(rate), 0.01 * loss(rate), 0, 2 * loss(bounds[0])))
    ranked = sorted(seen, key=lambda each: each.value)
    return sampler.optimum(seen, bounds=bounds, stage=0), [each.rate for each in ranked]


def _curve(response: Mapping[float, float]) -> Callable[[float], float]:
    """Recorded losses, their logarithms joined by lines over the logarithm of the rate."""
    rates = sorted(rate for rate, loss in response.items() if math.isfinite(loss))
    x, y = np.log(rates), np.log([response[rate] for rate in rates])
    return lambda rate: float(np.exp(np.interp(math.log(rate), x, y)))
