"""Hyperparameter searches as users run them: Optuna over the peak rate of a cosine, at the same total of updates."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import optuna
import torch

from benchmarks.families import cosine
from benchmarks.plain import PlainSession, train
from benchmarks.rows import Row, settings_key
from benchmarks.tasks import Task

TOTAL: Final = 1.3
"""Updates that a search may take, winner included, over those of one run: `horizon`'s at its default budget."""

RUNGS: Final = 8
"""Validations of a trial, after each of which it may be pruned."""


class Trial(PlainSession):
    """One trial: a cosine over `steps` updates, reported and maybe pruned at `RUNGS` validations."""

    def __init__(self, trial: optuna.Trial, rate: float, steps: int) -> None:
        super().__init__(steps, cosine(rate, steps, round(0.05 * steps)).__getitem__)
        self.trial, self.every, self.done = trial, max(1, steps // RUNGS), 0

    def after(self, loss: torch.Tensor) -> None:
        self.done += 1
        if self.done % self.every == 0:
            value = self.validation_loss()
            if not math.isfinite(value):
                raise optuna.TrialPruned
            self.trial.report(value, self.done)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def run_optuna(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    """`trials` trials at most, as long as updates are left; the best one's weights are the result.

    Each trial is a whole schedule of total / trials updates, or more where others were pruned: at a total of 1.3 runs
    a search can only compare runs that are shorter than the one it replaces.
    """
    task.load()
    trials, total = settings["trials"], round(TOTAL * task.steps)
    steps = total // trials
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {
        "optuna-tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(4, trials)),
        "optuna-gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=min(4, trials)),
    }
    study = optuna.create_study(sampler=samplers[name](), pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    began, spent, evaluations = time.perf_counter(), 0, 0
    best: tuple[float, float, float] = (math.inf, math.nan, math.nan)  # validation and test loss, rate
    while spent + steps <= total:
        trial = study.ask()
        rate = trial.suggest_float("rate", task.rates[0], task.rates[-1], log=True)
        session = Trial(trial, rate, steps)
        try:
            validation, test = train(task, session, seed)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            finite = math.isfinite(validation)
            study.tell(trial, validation if finite else None, None if finite else optuna.trial.TrialState.FAIL)
            if validation < best[0]:
                best = (validation, test, rate)
        spent, evaluations = spent + session.done, evaluations + session.evaluations
    wall = round(time.perf_counter() - began, 2)
    validation, test, rate = best
    validation = validation if math.isfinite(validation) else math.nan
    return Row(
        task.name, name, settings_key(settings), seed, rate, validation, test,
        steps, spent - steps, evaluations, wall,
    )  # fmt: skip
