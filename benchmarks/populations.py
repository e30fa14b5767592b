"""Ray Tune's searches over the rate, at the same total of updates: PBT, PB2 and ASHA, as its own schedulers run them.

A population trains in turns, each member for its share of the total, at a constant rate that is copied and changed as
the run goes (Jaderberg et al. 2017, arXiv 1711.09846; Parker-Holder et al. 2020, arXiv 2002.02518). ASHA (Li et al.
2020, arXiv 1810.05934) begins more runs than it ends; each is a whole cosine.

All trials take turns in one process, which Tune resets instead of starting another: imports and data take longer than a
turn. And members wait for each other at the end of a round (`synch=True`, the PBT paper's appendix A.1). Where they do
not, Ray 2.60 can go on without end: it pauses every other member as soon as one is to be copied over, gives the process
that comes free to the first in its list, which may be the same copy each time, and copies members that have ended, too.
Such a copy reports the same loss at once, is again no better than the one it was copied from, and is copied anew
(seen here, and in ray-project/ray, issues 11499 and 11906).
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from benchmarks.families import cosine
from benchmarks.members import State, train_part
from benchmarks.plain import PlainSession, train
from benchmarks.rows import Row, settings_key
from benchmarks.searches import TOTAL
from benchmarks.tasks import Task

MEMBERS: Final = 4
"""Size of a population."""
ENDS: Final = {"pbt": (1, 2, 3, 4, 5, 6), "pb2": (1, 2, 3, 4, 5, 6), "asha": (1, 3, 9)}
"""Where a run is validated and the scheduler decides, in shares of the last number."""
WHOLE: Final = 4
"""Whole runs that ASHA's updates are enough for."""
TRIALS: Final = 20
"""Runs that ASHA may begin, while updates are left; with a reduction of 3 it is about a dozen."""
BEYOND: Final = 10.0
"""A validation loss that is not finite, or more times that of the first weights, counts as this many times it: PB2's
regression takes no infinities."""
LIMIT: Final = 900.0
"""Seconds that a search may take: a campaign is not to stand still, should there be yet another way to."""


class Member(tune.Trainable):  # type: ignore[misc]
    """A trial: one part a step."""

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        config["task"].load()
        self.state: State | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, whose state, if it has one, Tune loads next."""
        self.state = None
        return True

    def step(self) -> dict[str, Any]:
        config = self.config
        names, ends = ENDS[config["method"]], _ends(config["method"], config["steps"])
        begins = self.state["step"] if self.state else 0
        part, end = next((part, end) for part, end in zip(names, ends, strict=True) if end > begins)
        rates = _rates(config).__getitem__
        trained = train_part(config["task"], config["seed"], config["steps"], rates, end, self.state)
        self.state = trained.state
        worst = config["worst"]
        return {
            "validation": min(trained.validation, worst) if math.isfinite(trained.validation) else worst,
            "test": trained.test,
            "rate": trained.rate,
            "updates": trained.updates,
            "evaluations": trained.evaluations,
            "step": end,
            "part": part,
            "done": end == config["steps"],
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        torch.save(self.state, Path(checkpoint_dir) / "state.pt")

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.state = torch.load(Path(checkpoint) / "state.pt")


def _ends(name: str, steps: int) -> list[int]:
    """Updates after which a run of so many is validated."""
    return [math.ceil(end / ENDS[name][-1] * steps) for end in ENDS[name]]


def _rates(config: dict[str, Any]) -> list[float]:
    rate = config["rate"] if "rate" in config else 10 ** config["log10_rate"]
    steps = config["steps"]
    warmup = round(0.05 * steps)
    if config["method"] == "asha":
        return cosine(rate, steps, warmup)
    return [rate * min(1.0, (step + 1) / (warmup + 1)) for step in range(steps)]


def run_population(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    """One search; the weights of the run that ends with the lowest validation loss are the result.

    Raises:
        TimeoutError: Ray stood still; all its processes are gone.
    """
    task.load()
    total = round(TOTAL * task.steps)
    low, high = task.rates[0], task.rates[-1]
    halving = name == "asha"
    steps = total // (WHOLE if halving else MEMBERS)
    began = time.perf_counter()
    worst = BEYOND * train(task, PlainSession(0), seed)[0]
    space: dict[str, Any] = {"task": task, "steps": steps, "seed": seed, "method": name, "worst": worst}
    if name == "pb2":
        space["log10_rate"] = tune.uniform(math.log10(low), math.log10(high))
    else:
        space["rate"] = tune.loguniform(low, high)
    random.seed(seed)  # PBT draws from these
    np.random.seed(seed)  # noqa: NPY002
    account = _Account(total if halving else math.inf, _ends(name, steps))
    with _ray(), _within(LIMIT), TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Member, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="validation",
                mode="min",
                scheduler=_scheduler(name, low, high),
                reuse_actors=True,
                num_samples=TRIALS if halving else MEMBERS,
                search_alg=tune.search.BasicVariantGenerator(random_state=seed) if halving else _Open(seed),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, stop=account),
        )
        results = tuner.fit()
        for error in results.errors:
            raise error
        ended = [result.metrics for result in results if (result.metrics or {}).get("part") == ENDS[name][-1]]
    wall = round(time.perf_counter() - began, 2)
    best = min(ended, key=lambda metrics: metrics["validation"], default={"validation": worst})
    known = best["validation"] < worst
    return Row(
        task.name, name, settings_key(settings), seed, best.get("rate", math.nan),
        best["validation"] if known else math.nan, best["test"] if known else math.nan,
        steps, account.updates - steps, 1 + account.evaluations, wall,
    )  # fmt: skip


def _scheduler(name: str, low: float, high: float) -> Any:
    """Ray's, with its defaults where they matter: a quarter of the population is replaced, a rate is drawn anew once in
    four times, and else changed by a factor of 1.2 or 0.8."""
    if name == "asha":
        return ASHAScheduler(time_attr="part", max_t=ENDS[name][-1], grace_period=1, reduction_factor=3)
    common: dict[str, Any] = {"time_attr": "part", "perturbation_interval": 1, "quantile_fraction": 0.25, "synch": True}
    if name == "pbt":
        return PopulationBasedTraining(
            hyperparam_mutations={"rate": tune.loguniform(low, high)}, resample_probability=0.25, **common
        )
    return PB2(hyperparam_bounds={"log10_rate": [math.log10(low), math.log10(high)]}, **common)


class _Open(tune.search.BasicVariantGenerator):  # type: ignore[misc]
    """Says that there may be more trials until all have ended: else Tune lets the process go when it pauses the last
    member of a round, for it sees nobody who could have it."""

    def __init__(self, seed: int) -> None:
        super().__init__(random_state=seed)
        self.live: set[str] = set()

    def next_trial(self) -> Any:
        if trial := super().next_trial():
            self.live.add(trial.trial_id)
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        self.live.discard(trial_id)

    def is_finished(self) -> bool:
        return super().is_finished() and not self.live


class _Account(tune.Stopper):  # type: ignore[misc]
    """Counts updates and validations of all trials, those that were stopped or overwritten too.

    It stops a trial whose next part would take more updates than are left, and the search where no part fits any more.
    """

    def __init__(self, total: float, ends: list[int]) -> None:
        self.total, self.ends, self.updates, self.evaluations = total, ends, 0, 0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.updates += result["updates"]
        self.evaluations += result["evaluations"]
        done = result["step"]
        return self.updates + min((end for end in self.ends if end > done), default=done) - done > self.total

    def stop_all(self) -> bool:
        return self.updates + self.ends[0] > self.total


@contextmanager
def _ray() -> Iterator[None]:
    """A Ray on this machine with room for one process, which stays for the next search: it takes 5 to 15 s to start.
    Whatever goes wrong ends it."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Added to this process's. Ray's own 15 leaves a worker next to nothing of a busy machine: minutes for its imports.
    os.environ.setdefault("RAY_worker_niceness", "0")
    here = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    try:
        if not ray.is_initialized():
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}},
            )
        yield
    except BaseException:
        ray.shutdown()
        raise


class _Late(BaseException):
    """Not an `Exception`, for Tune catches those, and even has a use for a `TimeoutError`."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise a `TimeoutError` from wherever the program is after so many seconds; in its main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    fired = False

    def late(*_: Any) -> None:
        nonlocal fired
        fired = True
        raise _Late

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10.0)  # again: Ray's compiled parts make a SystemError of it
    try:
        yield
    except BaseException as error:
        if not fired:
            raise
        raise TimeoutError(f"a search stood still for {seconds:g} s") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former)
