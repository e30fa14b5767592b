"""Strategies by name and with parameters; what they share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GridSampler, Problem, SyntheticTrainer, settings_of

from autolrs.curves.auto import Auto
from autolrs.curves.exponential import Exponential, PublishedExponential
from autolrs.errors import AutoLRSError, DivergedError, SettingError, UnknownNameError
from autolrs.protocols import Strategy
from autolrs.records import Curve, Probed, Record, Stage, Trial, TrialState
from autolrs.samplers import GPSampler
from autolrs.strategies import STRATEGIES, strategy
from autolrs.strategies.autolrs import AutoLRS
from autolrs.strategies.common import (
    all_diverged,
    bounds_of,
    gave_up,
    objective_std,
    observations,
    of_stage,
    recent,
)
from autolrs.strategies.horizon import Horizon

# By name


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_is_a_strategy(name):
    made = strategy(name)
    assert isinstance(made, Strategy)
    assert made.name in STRATEGIES
    assert made.search_budget > 0


def test_names():
    assert strategy("horizon") == Horizon(curves=Auto())
    assert strategy("autolrs") == AutoLRS(curves=Auto())
    assert strategy("autolrs-published") == AutoLRS.published()
    assert strategy("autolrs-published").curves == PublishedExponential()


def test_parameters():
    assert strategy("horizon", {"length": 0.1, "later": [0.3, 0.5]}) == Horizon(
        length=0.1, later=(0.3, 0.5), curves=Auto()
    )
    assert strategy("autolrs", {"k": 4, "tau": None}) == AutoLRS(k=4, curves=Auto())
    made = strategy("autolrs", {"sampler.kappa": 3, "sampler.surrogate": "single-task"})
    assert made.sampler == GPSampler(acquisition="lcb", kappa=3, surrogate="single-task")
    assert strategy("autolrs-published", {"tau": 10}) == replace(AutoLRS.published(), tau=10)
    assert strategy("horizon", {"length": 0.5, "decay": 1, "warmup": 0}).decay == 1  # an integer is a number, too


def test_options_are_left_alone():
    options = {"sampler.kappa": 3.0, "k": 4}
    strategy("autolrs", options)
    assert options == {"sampler.kappa": 3.0, "k": 4}


def test_curve_models():
    model = Exponential(reach=1.0)
    assert strategy("autolrs", curves=model).curves is model
    with pytest.raises(UnknownNameError, match="unknown curve model 'linear'; known: "):
        strategy("horizon", curves="linear")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("horizont", {}, "unknown strategy 'horizont'; known: autolrs, autolrs-published, horizon"),
        ("horizon", {"lenght": 0.1}, "strategy 'horizon' has no parameter 'lenght', did you mean 'length'\\?; it has "),
        ("horizon", {"xyz": 0.1}, "has no parameter 'xyz'; it has adopt, beat, clear, decay, "),
        ("autolrs", {"sampler": "gp"}, "strategy 'autolrs' has no parameter 'sampler'"),
        ("autolrs", {"curves": "pfn"}, "strategy 'autolrs' has no parameter 'curves'"),
        ("autolrs", {"sampler.kapa": 1.0}, "autolrs's sampler has no parameter 'kapa', did you mean 'kappa'\\?"),
        ("autolrs", {"sampler.acquisition": "luck"}, "unknown acquisition 'luck'"),
        ("autolrs", {"sampler.kappa": -1.0}, "0 <= kappa"),
        ("horizon", {"length": "long"}, "`length` of strategy 'horizon' must be float, but got 'long'"),
        ("horizon", {"length": True}, "must be float, but got True"),
        ("horizon", {"shortest": 10.5}, "`shortest` of strategy 'horizon' must be int, but got 10.5"),
        ("horizon", {"adopt": "maybe"}, "must be bool, but got 'maybe'"),
        ("horizon", {"later": 0.3}, r"must be tuple\[float, \.\.\.\], but got 0.3"),
        ("horizon", {"later": [0.3, "x"]}, r"must be tuple\[float, \.\.\.\], but got \(0.3, 'x'\)"),
        ("autolrs", {"tau": 0.5}, r"must be int \| None, but got 0.5"),
        ("autolrs", {"pick": 3}, "must be str, but got 3"),
        ("horizon", {"length": 7.0}, "`0 < length <= 0.5` must hold in strategy 'horizon'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(AutoLRSError, match=message) as error:
        strategy(name, options)
    assert isinstance(error.value, SettingError | UnknownNameError)


# What they share


SETTINGS = settings_of(100, 1.0)
LOW, HIGH = SETTINGS.space.bounds


def stage_of(*trials, index=0):
    numbered = tuple(replace(trial, number=number, stage=index) for number, trial in enumerate(trials))
    return Stage(index, 0, trials=numbered)


def trial(rate, state=TrialState.COMPLETE, **more):
    return Trial(0, 0, rate, 10, state, **more)


def bounds(*trials):
    stage = stage_of(*trials)
    return bounds_of(Record(SETTINGS, stages=(stage,)), stage)


DIVERGED, RUNNING = TrialState.DIVERGED, TrialState.RUNNING


def test_bounds_come_down_only_while_all_diverge():
    assert bounds() == (LOW, HIGH)
    assert bounds(trial(0.1)) == (LOW, HIGH)
    assert bounds(trial(0.1), trial(1.0, DIVERGED)) == (LOW, HIGH)
    assert bounds(trial(0.1, DIVERGED)) == (LOW, 0.1)
    assert bounds(trial(0.1, DIVERGED), trial(0.01, DIVERGED), trial(0.05, DIVERGED)) == (LOW, 0.01)
    assert bounds(trial(0.1, DIVERGED), trial(0.01, RUNNING)) == (LOW, 0.1)
    assert bounds(trial(0.01, RUNNING)) == (LOW, HIGH)
    assert bounds(trial(100 * HIGH, DIVERGED)) == (LOW, HIGH)


def test_at_the_end_no_rate_is_left():
    assert bounds(trial(LOW, DIVERGED)) is None
    assert bounds(trial(0.1, DIVERGED, first_loss=math.nan)) is None
    assert bounds(trial(0.1, DIVERGED, first_loss=3.0)) is not None


def test_giving_up_says_why():
    error = gave_up(stage_of(trial(0.1, DIVERGED, first_loss=2.0), trial(0.012345, DIVERGED, first_loss=2.0)))
    assert isinstance(error, DivergedError)
    assert "all 2 probes of stage 0 diverged (rates 0.1, 0.0123)" in str(error)
    error = gave_up(stage_of(trial(0.1, DIVERGED, first_loss=math.inf)))
    assert str(error).startswith("the loss is inf at step 0, before any update: the model or the data is at fault")


def test_all_diverged():
    assert not all_diverged(stage_of())
    assert not all_diverged(stage_of(trial(0.1, DIVERGED), trial(0.1)))
    assert all_diverged(stage_of(trial(0.1, DIVERGED), trial(0.01, DIVERGED)))
    assert all_diverged(stage_of(trial(0.1, DIVERGED), trial(0.01, RUNNING)))
    assert not all_diverged(stage_of(trial(0.01, RUNNING)))


def test_observations_are_the_trials_in_order():
    trainer = SyntheticTrainer(settings_of(400, 0.5), Horizon(later=(0.4,), sampler=GridSampler()), Problem(cliff=0.3))
    record = trainer.run()
    found = observations(record)
    trials = [trial for stage in record.stages for trial in stage.trials]
    assert [o.rate for o in found] == [trial.rate for trial in trials]
    assert [o.stage for o in found] == [trial.stage for trial in trials]
    for o, each in zip(found, trials, strict=True):
        assert math.isnan(o.value) == (each.state is DIVERGED)
        assert each.forecast is None or (o.value, o.std) == (each.forecast.mean, each.forecast.std)
        assert o.start_loss == record.stages[o.stage].start_loss
        assert not o.pending
    assert any(trial.state is DIVERGED for trial in trials)
    second = of_stage(found, 1)
    assert second == [o for o in found if o.stage == 1]
    waiting = observations(Record(SETTINGS, stages=(stage_of(trial(0.1, RUNNING)),)))
    assert waiting[0].pending
    assert of_stage(waiting, 0) == []


@given(st.integers(17, 2000), st.floats(0.01, 10))
def test_the_error_of_an_objective_is_that_of_a_mean(steps, noise):
    """Losses with deviation `noise` about their trend; the last max(16, 10 %) are averaged."""
    curve = Curve.reduce([0.0] * steps, [0.1] * steps)
    curve = replace(curve, noise=noise / math.sqrt(steps / len(curve)))  # of a bin's mean
    probed = Probed(0, 0, TrialState.COMPLETE, steps, curve)
    assert objective_std(probed) == pytest.approx(noise / math.sqrt(max(16, steps // 10)))


def test_the_error_of_a_short_objective():
    curve = replace(Curve.reduce([0.0] * 4, [0.1] * 4), noise=1.0)
    assert objective_std(Probed(0, 0, TrialState.PRUNED, 4, curve)) == 0.5
    assert objective_std(Probed(0, 0, TrialState.PRUNED, 0, Curve((), (), ()))) == math.inf


def test_recent():
    curve = Curve.reduce([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [0.1] * 8)
    assert recent(curve) == 7.5
    assert recent(curve, 1.0) == 4.5
    assert recent(Curve.reduce([3.0], [0.1])) == 3.0
