"""The same tasks tuned by autolrs in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from tempfile import TemporaryDirectory

import autolrs
from autolrs.space import SearchSpace
from benchmarks.rows import TUNED, Row, append, read
from benchmarks.tasks import Task


def run(
    task: Task, strategy: str, seed: int, *, label: str = "", space: str | SearchSpace = "", **options: object
) -> Row:
    """Tune the task once; `autolrs.tune` seeds as `seed_all` does.

    Args:
        label: the row's method; "": the strategy's name.
        space: instead of the task's own.
        options: of the strategy.
    """
    task.load()
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        study = autolrs.tune(
            task.train,
            steps=task.steps,
            space=space or task.space,
            strategy=strategy,
            options=options,
            seed=seed,
            storage=folder,
        )
        wall = time.perf_counter() - start
    rate = max(study.schedule(step) for step in range(study.steps))
    cost = study.cost
    # As design has it: what the search cost is what was probed and not adopted, and what was rolled back.
    probes = cost.probe_steps - cost.adopted_steps + cost.discarded_steps
    assert study.final_loss is not None  # each task validates
    assert isinstance(study.result, dict)
    return Row(
        task.name, label or strategy, rate, seed, study.final_loss, study.result["test_loss"], cost.kept_steps, probes,
        round(wall, 2),
    )  # fmt: skip


def run_all(tasks: Sequence[Task], strategies: Sequence[str], seeds: Sequence[int]) -> None:
    """Run what is missing and append its rows."""
    done = {row.key for row in read([TUNED])}
    for seed, task, strategy in product(seeds, tasks, strategies):
        if (task.name, strategy, seed) not in done:
            row = run(task, strategy, seed)
            append(row, TUNED)
            print(
                f"{task.name} {strategy} seed {seed}: validation {row.validation_loss:.5f}, test {row.test_loss:.5f}, "
                f"peak rate {row.rate:.3g}, {row.probe_steps} probe steps, {row.wall_seconds} s",
                flush=True,
            )
