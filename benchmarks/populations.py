"""Ray Tune's searches over the rate, at the same total of updates: PB2 and ASHA, as its own schedulers run them.

A population trains side by side, each member for its share of the total, at a constant rate that is copied and
changed as the run goes (Parker-Holder et al. 2020, arXiv 2002.02518). ASHA
(Li et al. 2020, arXiv 1810.05934) begins more runs than it ends; each is a whole cosine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from benchmarks.families import cosine
from benchmarks.plain import PlainSession, train
from benchmarks.rows import Row, settings_key
from benchmarks.searches import TOTAL
from benchmarks.tasks import Task

MEMBERS: Final = 4
"""Size of a population."""
ROUNDS: Final = {"pb2": 6, "asha": 9}
"""Validations of a run, after each of which the scheduler decides; ASHA's rungs are 1, 3 and 9 of them."""
TRIALS: Final = 9
"""Runs that ASHA begins. With a reduction of 3 a synchronous search takes the updates of two and a third whole ones;
this one, with `MEMBERS` at once, takes up to `WHOLE`."""
WHOLE: Final = 4
"""See `TRIALS`."""
WORST: Final = 100.0
"""A validation loss that is not finite, or beyond it, counts as this: PB2's regression takes no infinities."""


class Member(PlainSession):
    """A run that validates now and then, reports to Tune, and begins at the checkpoint that Tune gives it."""

    def __init__(self, steps: int, config: dict[str, Any]) -> None:
        rate = config["rate"] if "rate" in config else 10 ** config["log10_rate"]
        warmup = round(0.05 * steps)
        if config["anneal"]:
            rates = cosine(rate, steps, warmup)
        else:
            rates = [rate * min(1.0, (step + 1) / (warmup + 1)) for step in range(steps)]
        super().__init__(steps, rates.__getitem__)
        self.every, self.done = math.ceil(steps / config["rounds"]), 0

    def batches(self, loader: Any) -> Iterator[Any]:
        self._load()
        yield from super().batches(loader)

    def after(self, loss: torch.Tensor) -> None:
        self.done += 1
        done = self.step + 1
        if done % self.every == 0 and done < self.steps:
            self.tell(self.validation_loss(), {})

    def tell(self, validation: float, more: dict[str, float]) -> None:
        """Report, with a checkpoint to be copied."""
        from ray import tune

        loss = min(validation, WORST) if math.isfinite(validation) else WORST
        told = {"validation": loss, "updates": self.done, "evaluations": self.evaluations, "rate": self.highest}
        self.done = self.evaluations = 0
        with TemporaryDirectory() as folder:
            state = {"step": self.step + 1, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, Path(folder) / "state.pt")
            tune.report({**told, **more}, checkpoint=tune.Checkpoint.from_directory(folder))

    def _load(self) -> None:
        from ray import tune

        if (checkpoint := tune.get_checkpoint()) is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt")
        self.began = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def member(config: dict[str, Any]) -> None:
    """A trial, in a process of Ray's."""
    torch.set_num_threads(1)
    session = Member(config["steps"], config)
    validation, test = train(config["task"], session, config["seed"])
    session.step = session.steps - 1
    session.tell(validation, {"test": test})


def run_population(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    """One search; the weights of the run that ends with the lowest validation loss are the result."""
    from ray import tune

    task.load()
    total = TOTAL * task.steps
    low, high = task.rates[0], task.rates[-1]
    halving = name == "asha"
    steps = round(total / (WHOLE if halving else MEMBERS))
    space: dict[str, Any] = {"task": task, "steps": steps, "seed": seed, "anneal": halving, "rounds": ROUNDS[name]}
    if name == "pb2":
        space["log10_rate"] = tune.uniform(math.log10(low), math.log10(high))
    else:
        space["rate"] = tune.loguniform(low, high)
    spent = _Spent()
    began = time.perf_counter()
    with _ray(), TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(member, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="validation",
                mode="min",
                scheduler=_scheduler(name, low, high),
                reuse_actors=True,
                num_samples=TRIALS if halving else MEMBERS,
                search_alg=tune.search.BasicVariantGenerator(random_state=seed),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[spent.callback()]),
        )
        ended = [result.metrics for result in tuner.fit() if result.metrics and "test" in result.metrics]
    wall = round(time.perf_counter() - began, 2)
    best = min(ended, key=lambda metrics: metrics["validation"], default={})
    validation = best.get("validation", WORST)
    known = validation < WORST
    return Row(
        task.name, name, settings_key(settings), seed, best.get("rate", math.nan), validation if known else math.nan,
        best["test"] if known else math.nan, steps, spent.updates - steps, spent.evaluations, wall,
    )  # fmt: skip


def _scheduler(name: str, low: float, high: float) -> Any:
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.schedulers.pb2 import PB2

    if name == "asha":
        return ASHAScheduler(max_t=ROUNDS[name], grace_period=1, reduction_factor=3)
    return PB2(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_bounds={"log10_rate": [math.log10(low), math.log10(high)]},
    )


class _Spent:
    """Counts updates and validations of all trials, those that were stopped or overwritten too."""

    def __init__(self) -> None:
        self.updates = self.evaluations = 0

    def callback(self) -> Any:
        from ray.tune import Callback

        spent = self

        class Count(Callback):
            def on_trial_result(
                self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
            ) -> None:
                spent.updates += result["updates"]
                spent.evaluations += result["evaluations"]

        return Count()


@contextmanager
def _ray() -> Iterator[None]:
    """A Ray of its own on this machine, with room for the whole population."""
    import ray

    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    here = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    ray.init(
        address="local",
        num_cpus=MEMBERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}},
    )
    try:
        yield
    finally:
        ray.shutdown()
