"""`CurvePruner` in real Optuna studies."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autolrs.curves.bayes import Bayes
from autolrs.errors import SettingError, UnknownNameError
from autolrs.integrations.optuna import CurvePruner


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


def pruner(**settings):
    return CurvePruner(**({"model": Bayes()} | settings))


def study(direction="minimize", storage=None, **settings):
    return optuna.create_study(
        study_name="curves", direction=direction, pruner=pruner(**settings), storage=storage, load_if_exists=True
    )


def run(of, values, steps=None):
    """One trial that reports `values`; its number of reports, and whether it was pruned."""
    trial = of.ask()
    steps = range(len(values)) if steps is None else steps
    for count, (step, value) in enumerate(zip(steps, values, strict=True), start=1):
        trial.report(float(value), step)
        if trial.should_prune():
            of.tell(trial, state=TrialState.PRUNED)
            return count, True
    of.tell(trial, float(values[-1]))
    return len(values), False


def falling(end, n=40, seed=0):
    noise = 0.01 * np.random.default_rng(seed).standard_normal(n)
    return (end + np.exp(-np.arange(n) / 6)) * (1 + noise)


BOTH = pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])


@BOTH
def test_the_hopeless_are_pruned_early_and_the_better_ones_run(direction, sign):
    of = study(direction)
    assert run(of, sign * falling(1.0)) == (40, False)
    count, stopped = run(of, sign * falling(3.0, seed=1))
    assert stopped
    assert count <= 20
    assert run(of, sign * falling(0.5, seed=2)) == (40, False)
    assert run(of, sign * falling(1.0, seed=3))[1]  # no longer the best


@BOTH
@pytest.mark.parametrize(("k", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, -100.0), (1e3, 1e6)])
def test_any_scale_and_sign_of_values_will_do(direction, sign, k, shift):
    of = study(direction)
    assert not run(of, sign * (k * falling(1.0) + shift))[1]
    assert run(of, sign * (k * falling(4.0, seed=1) + shift))[1]
    assert not run(of, sign * (k * falling(0.2, seed=2) + shift))[1]


def test_a_trial_that_starts_slow_but_falls_steadily_is_not_pruned():
    of = study(level=0.05)
    run(of, 1 + np.exp(-np.arange(40) / 3))
    assert not run(of, np.linspace(2.5, 0.2, 40))[1]


def test_nothing_is_pruned_before_a_trial_has_finished():
    of = study()
    first, second = of.ask(), of.ask()  # in parallel
    for step in range(30):
        first.report(1.0, step)
        assert not first.should_prune()
        if step < 20:
            second.report(50.0, step)
            assert not second.should_prune()
    of.tell(first, 1.0)
    assert second.should_prune()


def test_few_reports_are_judged_by_what_the_finished_trials_did():
    of = study()
    for seed in range(3):
        run(of, np.array([3.0, 2.0, 1.5, 1.2, 1.0]) + 0.01 * seed)
    trial = of.ask()
    assert not trial.should_prune()  # nothing reported yet
    found = []
    for step in range(4):
        trial.report(8.0, step)
        found.append(trial.should_prune())
    assert not found[0]
    assert found[-1]


def test_the_latest_value_must_be_finite_and_earlier_ones_are_ignored():
    of = study()
    trial = of.ask()
    trial.report(math.nan, 0)
    assert not trial.should_prune()
    of.tell(trial, state=TrialState.FAIL)
    run(of, falling(1.0))
    assert run(of, [math.nan]) == (1, True)
    assert run(of, [1.0, math.inf]) == (2, True)
    holes = falling(0.5)
    trial = of.ask()
    for step, value in enumerate(holes):
        trial.report(math.nan if step == 10 else value, step)
        assert step == 10 or not trial.should_prune()


@BOTH
@pytest.mark.parametrize("end", [math.nan, math.inf, -math.inf])
def test_a_finished_trial_that_ended_diverged_is_no_rival(direction, sign, end):
    of = study(direction)
    trial = of.ask()
    for step, value in enumerate([*falling(0.1)[:-2], end, end]):
        trial.report(sign * value, step)
    of.tell(trial, sign * 0.1)
    assert of.trials[0].state is TrialState.COMPLETE
    assert not run(of, sign * falling(1.0, seed=1))[1]  # nobody else has finished
    assert not run(of, sign * falling(0.9, seed=2))[1]  # it beats the one that did
    assert run(of, sign * falling(3.0, seed=3))[1]


def test_sparse_and_late_steps_will_do():
    of = study()
    steps = [1000 + 250 * i for i in range(40)]
    assert not run(of, falling(1.0), steps)[1]
    assert run(of, falling(3.0, seed=1), steps)[1]
    assert not run(of, falling(0.5, seed=2), steps)[1]


def test_trials_that_ended_early_by_themselves_are_no_rivals():
    of = study()
    run(of, falling(1.0))
    run(of, [0.01, 0.01])  # a lucky one that stopped at once
    assert not run(of, falling(0.5, seed=1))[1]


def test_the_horizon_may_be_given_and_is_where_pruning_ends():
    of = study(steps=20)
    run(of, falling(1.0, n=21))
    trial = of.ask()
    for step in range(20, 25):
        trial.report(50.0, step)
        assert not trial.should_prune()


def test_startup_trials_and_warm_up_steps_are_left_alone():
    of = study(startup_trials=2, warmup_steps=30)
    run(of, falling(1.0))
    assert not run(of, falling(9.0))[1]
    assert run(of, falling(9.0, seed=1)) == (31, True)


def test_a_resumed_study_goes_on(tmp_path):
    def opened():
        file = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        return study(storage=optuna.storages.JournalStorage(file))

    assert not run(opened(), falling(1.0))[1]
    assert run(opened(), falling(3.0, seed=1))[1]


def test_many_trials_at_once_lose_little_and_save_much():
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.5, 3.0, 40)
    of = study()
    steps = 0

    def objective(trial):
        nonlocal steps
        losses = falling(ends[trial.number], seed=trial.number)
        for step, loss in enumerate(losses):
            steps += 1
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return losses[-1]

    of.optimize(objective, n_trials=40, n_jobs=2)
    assert steps < 40 * 40 / 2
    assert of.best_value <= 1.02 * min(falling(end, seed=i)[-1] for i, end in enumerate(ends))


def test_can_be_pickled_and_settings_are_checked():
    again = pickle.loads(pickle.dumps(pruner()))
    of = optuna.create_study(pruner=again)
    run(of, falling(1.0))
    assert run(of, falling(3.0))[1]
    for settings in ({"level": 0.0}, {"level": 1.0}, {"steps": -1}, {"startup_trials": -1}, {"warmup_steps": -1}):
        with pytest.raises(SettingError, match="must hold"):
            CurvePruner(**settings)
    with pytest.raises(UnknownNameError, match="curve model"):
        CurvePruner(model="crystal ball")
