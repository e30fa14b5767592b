"""The benchmark on sibling curves: its numbers on hand-made groups, and its stand-ins for Ray's rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autolrs.forecasts import Forecasts
from benchmarks.siblings import DOZENS, Choice, by_heart, choice, dozens, levels, summary
from benchmarks.stopping import ASHA, MedianStopping, pruners, run
from benchmarks.windows import Window, bins


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


def window(rate, losses, truth):
    y = np.asarray(losses, dtype=float)
    steps, rates = np.arange(len(y), dtype=float), np.full(len(y), rate)
    last = float(y[np.isfinite(y)][-1])
    about = ("task", "group", f"at {rate}", rate, 0.1, bins(steps, y, rates), 10.0 * len(y), truth, last)
    return Window(*about, False, "run", 0, 10 * len(y), steps, y, rates)


GROUP = [
    window(1e-3, [4.0] * 20, 3.0),
    window(1e-2, [3.0] * 20, 1.0),
    window(1e-1, [2.0] * 20, 1.5),
    window(1e0, [9.0] * 19 + [math.nan], math.nan),
]


@dataclass(frozen=True)
class Told:
    """Foretells the level of each curve by its last loss."""

    answers: dict[float, float]

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        found = np.array([self.answers[curve.losses[-1]] for curve in curves])
        return Forecasts(np.asarray(at, float), found, np.full(len(found), 0.01))


def test_the_chosen_rate_is_judged_by_its_truth():
    expected = levels(GROUP, None, pool=False)
    assert expected.tolist() == [4.0, 3.0, 2.0, math.inf]
    made = choice(GROUP, expected)
    assert (made.regret, made.bias, made.source) == (pytest.approx(0.5), pytest.approx(1.0), "task")
    assert made.correlation == pytest.approx(0.8)  # ranks 3 2 1 4 against 3 1 2 4
    told = Told({4.0: 3.0, 3.0: 1.0, 2.0: 1.5})
    assert choice(GROUP, levels(GROUP, told, pool=False)) == Choice("task", 0.0, 0.0, pytest.approx(1.0))
    assert levels(GROUP, told, pool=True).argmin() == 1


def test_groups_that_learn_by_heart_are_told():
    assert not by_heart(GROUP)
    assert by_heart([*GROUP, window(1e-2, [3.0] * 20, 1e-4)])


def test_dozens_are_of_larger_groups_only_ascending_and_the_same_every_time():
    large = [
        window(rate, [1.0] * 20, truth) for rate, truth in zip(np.geomspace(1e-4, 1, 20), range(1, 21), strict=True)
    ]
    drawn = dozens([GROUP, large])
    assert [[w.rate for w in group] for group in drawn] == [[w.rate for w in group] for group in dozens([GROUP, large])]
    assert len(drawn) == DOZENS
    assert len({tuple(w.rate for w in group) for group in drawn}) == DOZENS
    for group in drawn:
        rates = [w.rate for w in group]
        assert len(rates) == 12
        assert rates == sorted(set(rates))
    assert dozens([GROUP, [window(w.rate, w.losses, math.nan) for w in large]]) == []


def test_a_choice_that_blows_up_is_an_infinite_regret():
    late = [*GROUP[:3], window(1.0, [0.5] * 20, math.inf)]
    made = choice(late, levels(late, None, pool=False))
    assert made.regret == math.inf
    assert summary([made, made]).startswith("2.000 | inf | 100% | +2.00")


def test_a_pruner_is_judged_by_steps_and_by_what_it_lost():
    falling = np.linspace(3, 1, 50)
    group = [window(rate, falling + off, 1.0 + off) for rate, off in ((1e-3, 0.0), (1e-2, 0.5), (1e-1, 1.0))]
    group.append(window(1.0, [5.0] * 9 + [math.nan] * 41, math.nan))
    done = run(group, optuna.pruners.NopPruner(), 0)
    assert (done.share, done.regret) == (1.0, 0.0)
    eager = run(group, pruners()["Ray ASHA"](), 0)
    assert eager.share < 1
    assert run(group, optuna.pruners.ThresholdPruner(upper=0.1), 0).regret == math.inf
    assert run([group[3]] * 2, optuna.pruners.NopPruner(), 0) is None


def study(pruner, *told):
    of = optuna.create_study(pruner=pruner)
    for values in told:
        of.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, value=values[-1], intermediate_values=dict(enumerate(values, start=1))
            )
        )
    return of


def asked(of, values):
    """Whether each report would stop the trial."""
    trial = of.ask()
    found = []
    for step, value in enumerate(values, start=1):
        trial.report(value, step)
        found.append(trial.should_prune())
    return found


def test_the_median_rule_compares_the_best_so_far_with_running_means():
    others = ([4.0, 2.0], [3.0, 1.0], [5.0, 5.0])  # running means: 4 3 5, then 3 2 5
    assert asked(study(MedianStopping(grace=1), *others), [3.9, 3.1]) == [False, True]
    assert asked(study(MedianStopping(grace=1), *others), [2.0, 9.0]) == [False, False]
    assert asked(study(MedianStopping(grace=2), *others), [9.0, 9.0]) == [False, True]
    assert asked(study(MedianStopping(grace=1), *others[:2]), [9.0, 9.0]) == [False, False]


def test_asha_keeps_the_best_quarter_at_each_rung():
    others = [[float(k)] * 5 for k in range(1, 8)]
    assert asked(study(ASHA(grace=1), *others), [2.0] * 5) == [False] * 5
    assert asked(study(ASHA(grace=1), *others), [5.0] * 5) == [True, False, False, True, False]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_rival_can_be_made():
    for make in pruners().values():
        assert isinstance(make(), optuna.pruners.BasePruner)
