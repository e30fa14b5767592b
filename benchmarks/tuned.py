"""The same tasks tuned by autolrs in one run."""

from __future__ import annotations

import math
import time
from tempfile import TemporaryDirectory

import autolrs
from autolrs.space import SearchSpace
from benchmarks.rows import Row, settings_key
from benchmarks.tasks import Task


def run(
    task: Task,
    strategy: str,
    seed: int,
    *,
    label: str = "",
    space: str | SearchSpace = "",
    share: float = 1.0,
    average: bool = False,
    lookahead: bool = False,
    budget: float | None = None,
    curve_model: str = "auto",
    **options: object,
) -> Row:
    """Tune the task once; `autolrs.tune` seeds as `seed_all` does. A run that no rate trains has the losses NaN.

    Args:
        label: the row's method; "": the strategy's name.
        space: instead of the task's own.
        share: steps to keep, over the task's.
        average: let averaged weights be the final ones where they validate better.
        lookahead: let slow weights follow the optimizer's.
        budget: probe steps a kept step at most; None: the strategy's own.
        curve_model: forecasts the probes' losses.
        options: of the strategy.
    """
    task.load()
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        study = autolrs.tune(
            task.train,
            steps=round(share * task.steps),
            space=space or task.space,
            strategy=strategy,
            options=options,
            average=average,
            lookahead=lookahead,
            search_budget=budget,
            curve_model=curve_model,
            seed=seed,
            storage=folder,
        )
        wall = time.perf_counter() - start
    schedule = study.record.schedule
    assert schedule is not None
    rate = max(schedule(step) for step in range(study.steps))
    cost = study.cost
    # As design has it: what the search cost is what was probed and not adopted, and what was rolled back.
    probes = cost.probe_steps - cost.adopted_steps + cost.discarded_steps
    assert isinstance(study.result, dict)
    test = study.result["test_loss"]
    validation = math.nan if study.final_loss is None else study.final_loss
    return Row(
        task.name, label or strategy, settings_key(options), seed, rate, validation, test, cost.kept_steps, probes,
        cost.validation_calls, round(wall, 2),
    )  # fmt: skip
