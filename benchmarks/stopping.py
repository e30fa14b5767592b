"""Stopping probes early: Optuna's and Ray's pruners and ours, on groups of real sibling curves.

Each group's probes run one after the other in random order, as the trials of one Optuna study, and report 50 bin
means; what is not stopped runs to the end. Ray Tune's schedulers are Ray's own classes, told of trials and their
results as Ray's controller would.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from autolrs.integrations.optuna import CurvePruner
from autolrs.records import POINTS
from benchmarks.windows import Window

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

SHUFFLES: Final = 2
"""Orders in which each group's probes run."""

PROBES: Final = 12
"""Probes of a group; 36 rates over 7 decades are more than anybody tries."""

NOTE: Final = """\
All rivals are Optuna's and Ray's own classes (`benchmarks/stopping.py`), with their defaults but for what is said;
`max_t` is the whole length. Trials run one after the other. Ray's rules decide the same on trials that run side by side
and report in turn: they compare what was reported up to the same step, by the same trials. The constants of
`CurvePruner` were chosen on some of these groups, so that its row is not one on unseen curves."""

GRACE: Final = 5
"""Reports before which Ray's rules stop nothing, where they are given a grace: 10 % of a probe."""

_CLIP = 2.0  # of a regret in means


def pruners() -> dict[str, Callable[[], BasePruner]]:
    """All rivals, by name; their defaults, but for what depends on the number of reports."""
    own = optuna.pruners
    return {
        "none": own.NopPruner,
        "CurvePruner": CurvePruner,
        "CurvePruner, level .05": lambda: CurvePruner(0.05),
        "CurvePruner, `bayes`": lambda: CurvePruner(model="bayes"),
        "CurvePruner, `exponential`": lambda: CurvePruner(model="exponential"),
        "Optuna MedianPruner": own.MedianPruner,
        "Optuna MedianPruner, 1 startup trial, 10 steps": lambda: own.MedianPruner(1, 10),
        "Optuna PercentilePruner(25)": lambda: own.PercentilePruner(25.0),
        "Optuna PercentilePruner(75)": lambda: own.PercentilePruner(75.0),
        "Optuna SuccessiveHalvingPruner": own.SuccessiveHalvingPruner,
        "Optuna HyperbandPruner": lambda: own.HyperbandPruner(max_resource=POINTS),
        "Optuna WilcoxonPruner": own.WilcoxonPruner,
    }


def schedulers() -> dict[str, Callable[[], TrialScheduler]]:
    """Ray Tune's rules, by name; their defaults, but for what depends on the number of reports."""
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    of_losses: dict[str, Any] = {"time_attr": "training_iteration", "metric": "loss", "mode": "min"}
    return {
        "Ray MedianStoppingRule, grace of 10 %": lambda: MedianStoppingRule(**of_losses, grace_period=GRACE),
        "Ray ASHAScheduler": lambda: ASHAScheduler(**of_losses, max_t=POINTS),
        "Ray ASHAScheduler, grace of 10 %": lambda: ASHAScheduler(**of_losses, max_t=POINTS, grace_period=GRACE),
    }


@dataclass(frozen=True, slots=True)
class Stopped:
    """What came of one study.

    Attributes:
        share: steps run over those of running all to their ends (or to where they diverge).
        regret: of the best probe that ran to its end.
        milliseconds: spent by the pruner, a report.
    """

    source: str
    share: float
    regret: float
    milliseconds: float


def run(group: Sequence[Window], pruner: BasePruner, seed: int, probes: int = PROBES) -> Stopped | None:
    """One study of at most `probes` of the group's whole curves; None if none of these ends finite."""
    chosen = _chosen(group, seed, probes)
    whole = max(len(w.curve) for w in chosen)
    # Hyperband draws its brackets by the study's name.
    study = optuna.create_study(
        study_name=f"seed {seed}", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=seed)
    )
    ran, spent, ends = 0, [], [math.inf]
    for window in chosen:
        trial, state = study.ask(), TrialState.PRUNED
        losses = window.curve.losses
        for n, loss in enumerate(losses, start=1):
            ran += 1
            trial.report(loss, n)
            if n == whole:
                state = TrialState.COMPLETE
                ends.append(window.truth)
                break
            begin = time.perf_counter()
            stop = trial.should_prune()
            spent.append(time.perf_counter() - begin)
            if stop:
                break
        study.tell(trial, losses[-1] if state is TrialState.COMPLETE else None, state)
    return _stopped(chosen, ran, ends, spent)


@dataclass(eq=False, slots=True)
class _RayTrial:
    """What Ray's rules read of a trial."""

    trial_id: str
    window: Window
    status: str = "RUNNING"
    reports: int = 0


@dataclass(slots=True)
class _Controller:
    """What Ray's rules read of their controller: the trials that have not ended."""

    live: list[_RayTrial]

    def get_live_trials(self) -> list[_RayTrial]:
        return self.live


def run_ray(
    group: Sequence[Window], scheduler: TrialScheduler, seed: int, probes: int = PROBES, *, at_once: int = 1
) -> Stopped | None:
    """As `run`, under a scheduler of Ray Tune, with `at_once` trials side by side that report in turn.

    As in Ray's own loop, a trial that ends by itself is told as complete, and one that was stopped is not. A trial is
    added when it starts, as by a searcher that is limited to so many at a time, so that none ever waits.
    """
    chosen = _chosen(group, seed, probes)
    whole = max(len(w.curve) for w in chosen)
    waiting = deque(_RayTrial(str(n), window) for n, window in enumerate(chosen))
    controller: Any = _Controller([])
    live: list[Any] = controller.live
    ran, spent, ends = 0, [], [math.inf]
    while waiting or live:
        while waiting and len(live) < at_once:
            live.append(waiting.popleft())
            scheduler.on_trial_add(controller, live[-1])
        for trial in tuple(live):
            losses = trial.window.curve.losses
            trial.reports += 1
            ran += 1
            result = {"training_iteration": trial.reports, "loss": losses[trial.reports - 1]}
            if trial.reports == whole:
                scheduler.on_trial_complete(controller, trial, result)
                trial.status = "TERMINATED"
                ends.append(trial.window.truth)
            else:
                begin = time.perf_counter()
                decision = scheduler.on_trial_result(controller, trial, result)
                spent.append(time.perf_counter() - begin)
                if decision == scheduler.STOP:
                    trial.status = "TERMINATED"
                elif trial.reports == len(losses):  # from here on not finite
                    scheduler.on_trial_error(controller, trial)
                    trial.status = "ERROR"
            if trial.status != "RUNNING":
                live.remove(trial)
    return _stopped(chosen, ran, ends, spent)


def _chosen(group: Sequence[Window], seed: int, probes: int) -> list[Window]:
    """At most `probes` of a group, in random order."""
    return [group[i] for i in np.random.default_rng(seed).permutation(len(group))[:probes]]


def _stopped(chosen: Sequence[Window], ran: int, ends: Sequence[float], spent: Sequence[float]) -> Stopped | None:
    """What came of it, given all reports, the losses at the ends and the seconds of each decision."""
    finite = [w.truth for w in chosen if math.isfinite(w.truth)]
    if not finite:
        return None
    full = sum(len(w.curve) for w in chosen)
    regret = (min(ends) - min(finite)) / abs(min(finite))
    return Stopped(chosen[0].source, ran / full, regret, 1e3 * sum(spent) / max(len(spent), 1))


def rivals() -> dict[str, Callable[[Sequence[Window], int], Stopped | None]]:
    """What each way of stopping makes of a group and a seed, by name."""
    of_optuna = {name: partial(_with_pruner, make) for name, make in pruners().items()}
    of_ray = {name: partial(_with_scheduler, make) for name, make in schedulers().items()}
    return {**of_optuna, **of_ray}


def _with_pruner(make: Callable[[], BasePruner], group: Sequence[Window], seed: int) -> Stopped | None:
    return run(group, make(), seed)


def _with_scheduler(make: Callable[[], TrialScheduler], group: Sequence[Window], seed: int) -> Stopped | None:
    return run_ray(group, make(), seed)


def table(groups: Sequence[Sequence[Window]], shuffles: int = SHUFFLES) -> Iterator[str]:
    """A row a pruner, for groups of whole curves (windows of share 1); savings are 1 over the mean share that ran."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.logging.disable_default_handler()
    yield "| pruner | steps saved | regret, mean | median | above .5 % | ms a report |"
    yield "|---|---|---|---|---|---|"
    for name, of_one in rivals().items():
        done = [of_one(group, seed) for group in groups for seed in range(shuffles)]
        kept = [stopped for stopped in done if stopped is not None]
        regret = np.array([stopped.regret for stopped in kept])
        saved = 1.0 / np.mean([stopped.share for stopped in kept])
        spent = np.mean([stopped.milliseconds for stopped in kept])
        yield (
            f"| {name} | {saved:.2f}x | {np.minimum(regret, _CLIP).mean():.2%} | {np.median(regret):.2%} | "
            f"{(regret > 0.005).mean():.0%} | {spent:.2f} |"
        )
