"""Stopping probes early: Optuna's and Ray's pruners and ours, on groups of real sibling curves.

Each group's probes run one after the other in random order, as the trials of one Optuna study, and report 50 bin
means; what is not stopped runs to the end. Ray is not needed: its two rules are written out here as Optuna pruners.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autolrs.integrations.optuna import CurvePruner
from autolrs.records import POINTS
from benchmarks.windows import Window

SHUFFLES: Final = 2
"""Orders in which each group's probes run."""

PROBES: Final = 12
"""Probes of a group; 36 rates over 7 decades are more than anybody tries."""

NOTE: Final = """\
Ray's two rules are not Ray's own code: they are written out as Optuna pruners after its documentation and the papers
(`benchmarks/stopping.py`), so that all rivals see the same reports one after the other. A scheduler of Ray Tune runs
trials side by side, where its rules see more of them at once. The constants of `CurvePruner` were chosen on some of
these groups, so that its row is not one on unseen curves."""

_CLIP = 2.0  # of a regret in means


class MedianStopping(BasePruner):
    """Ray Tune's `MedianStoppingRule`: stop if the best value so far is worse than the median of the other trials'
    running means (Golovin et al. 2017, Google Vizier, section 3.1)."""

    def __init__(self, grace: int, least: int = 3) -> None:
        self.grace, self.least = grace, least

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self.grace:
            return False
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        means = [np.mean([v for s, v in t.intermediate_values.items() if s <= step]) for t in others if t.last_step]
        return len(means) >= self.least and min(trial.intermediate_values.values()) > float(np.median(means))


class ASHA(BasePruner):
    """Ray Tune's `AsyncHyperBandScheduler` with one bracket: at the rungs grace * factor^k a trial stops unless its
    value is among the best 1/factor of those recorded there (Li et al. 2020, arXiv 1810.05934)."""

    def __init__(self, grace: int, factor: int = 4) -> None:
        self.grace, self.factor = grace, factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        rungs = {self.grace * self.factor**k for k in range(20)}
        if step not in rungs:
            return False
        there = [t.intermediate_values for t in study.get_trials(deepcopy=False)]
        recorded = [values[step] for values in there if step in values]
        return trial.intermediate_values[step] > float(np.percentile(recorded, 100 / self.factor))


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
        "Ray median stopping rule": lambda: MedianStopping(grace=5),
        "Ray ASHA": lambda: ASHA(grace=1),
        "Ray ASHA, grace of 10 %": lambda: ASHA(grace=5),
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
    order = np.random.default_rng(seed).permutation(len(group))[:probes]
    curves = [group[i].curve.losses for i in order]
    whole = max(map(len, curves))
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=seed))
    ran = full = reports = 0
    seconds, ends = 0.0, [math.inf]
    for i, losses in zip(order, curves, strict=True):
        trial, state = study.ask(), TrialState.PRUNED
        bad = next((n for n, loss in enumerate(losses) if not math.isfinite(loss)), None)
        full += len(losses) if bad is None else bad + 1
        for n, loss in enumerate(losses, start=1):
            ran += 1
            if not math.isfinite(loss):
                break
            trial.report(loss, n)
            if n == whole:
                state = TrialState.COMPLETE
                ends.append(group[i].truth)
                break
            begin = time.perf_counter()
            stop = trial.should_prune()
            seconds, reports = seconds + time.perf_counter() - begin, reports + 1
            if stop:
                break
        study.tell(trial, losses[-1] if state is TrialState.COMPLETE else None, state)
    finite = [truth for truth in (group[i].truth for i in order) if math.isfinite(truth)]
    if not finite:
        return None
    regret = (min(ends) - min(finite)) / abs(min(finite))
    return Stopped(group[0].source, ran / full, regret, 1e3 * seconds / max(reports, 1))


def table(groups: Sequence[Sequence[Window]], shuffles: int = SHUFFLES) -> Iterator[str]:
    """A row a pruner, for groups of whole curves (windows of share 1); savings are 1 over the mean share that ran."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.logging.disable_default_handler()
    yield "| pruner | steps saved | regret, mean | median | above .5 % | ms a report |"
    yield "|---|---|---|---|---|---|"
    for name, make in pruners().items():
        done = [run(group, make(), seed) for group in groups for seed in range(shuffles)]
        kept = [stopped for stopped in done if stopped is not None]
        regret = np.array([stopped.regret for stopped in kept])
        saved = 1.0 / np.mean([stopped.share for stopped in kept])
        spent = np.mean([stopped.milliseconds for stopped in kept])
        yield (
            f"| {name} | {saved:.2f}x | {np.minimum(regret, _CLIP).mean():.2%} | {np.median(regret):.2%} | "
            f"{(regret > 0.005).mean():.0%} | {spent:.2f} |"
        )
