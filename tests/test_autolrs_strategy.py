"""The paper's strategy: Jin et al., ICLR 2021, arXiv 2105.10762 (sections below are the paper's)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from synthetic import SPACE, GridSampler, LastLoss, Problem, SyntheticTrainer, replayed, settings_of

from autolrs import engine
from autolrs.curves.exponential import Exponential, PublishedExponential
from autolrs.errors import SettingError
from autolrs.protocols import Forecasts
from autolrs.records import Curve, Issued, Open, Opened, Probe, Probed, Settings, Started, TrialState
from autolrs.samplers import GPSampler
from autolrs.schedules import Piece, Schedule
from autolrs.strategies.autolrs import AutoLRS

NO_CLIFF = Problem(cliff=1e9)


def quick(**options):
    return AutoLRS(**{"sampler": GridSampler(), "curves": LastLoss()} | options)


def run(strategy, steps=1000, budget=1.0, problem=NO_CLIFF, space=SPACE, **options):
    trainer = SyntheticTrainer(settings_of(steps, budget, space=space), strategy, problem, **options)
    trainer.run()
    return trainer


def probes_of(trainer):
    """The probes as they were issued, found by asking again before each `Issued`."""
    record, probes = engine.replay(trainer.record.settings, ()), []
    for event in trainer.events:
        if isinstance(event, Issued):
            probes.append(engine.decide(record, trainer.strategy))
        record = engine.apply(record, event)
    return probes


# Stages (section 4.1)


def test_a_stage_is_twice_as_long_as_the_one_before_up_to_the_longest():
    record = run(quick(tau=10, tau_max=80, k=2), steps=600).record
    lengths = [stage.stop - stage.start for stage in record.stages]
    assert lengths == [10, 20, 40, 80, 80, 80, 80, 80, 80, 50]


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        (1600, [100, 200, 400, 800, 100]),
        (16, [1, 2, 4, 8, 1]),
        (7, [1, 2, 3, 1]),
        (1, [1]),
        (100_000, [1000, 2000, 4000, 8000, *[8000] * 10, 5000]),
    ],
)
def test_without_settings_the_stages_fit_the_run(steps, lengths):
    """tau = min(1000, steps / 16), doubling to min(8000, steps / 2)."""
    starts = [planned.start for planned in quick().plan(settings_of(steps, 1.0))]
    assert [stop - start for start, stop in pairwise([*starts, steps])] == lengths


def test_a_first_stage_longer_than_the_default_longest_is_as_long_as_asked():
    starts = [planned.start for planned in quick(tau=300).plan(settings_of(400, 1.0))]
    assert starts == [0, 300]


def test_a_probe_is_a_tenth_of_its_stage_and_there_are_k_of_them():
    trainer = run(quick(tau=100, tau_max=400, k=3), steps=1500)
    for stage in trainer.record.stages:
        assert len(stage.trials) == 3
        assert {trial.length for trial in stage.trials} == {min(40, 10 << stage.index)}
        assert {trial.state for trial in stage.trials} == {TrialState.COMPLETE}  # to its end, always


def test_a_probe_has_a_constant_rate_and_only_the_first_stage_warms_up():
    space = replace(SPACE, warmup=0.002)
    trainer = run(quick(tau=100, tau_max=200, k=2), space=space)
    for probe in probes_of(trainer):
        rates = Schedule(probe.pieces).over(0, probe.length)
        assert len(rates) == probe.length
        if probe.stage == 0:
            assert rates[:2] == pytest.approx([probe.rate / 3, probe.rate * 2 / 3])
            rates = rates[2:]
        assert set(rates) == {probe.rate}
        assert (probe.keep, probe.incumbent) == (0, None)


def test_a_long_warm_up_leaves_half_a_probe_to_try_the_rate():
    trainer = run(quick(tau=100, tau_max=200, k=1), space=replace(SPACE, warmup=0.5))
    probe = probes_of(trainer)[0]
    assert [piece.stop for piece in probe.pieces] == [5, 10]
    kept = trainer.record.schedule
    assert kept.over(0, 10) == Schedule(probe.pieces).over(0, 10)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 600),
    st.floats(0.01, 2),
    st.none() | st.integers(1, 100),
    st.integers(0, 200),
    st.floats(0.01, 1),
    st.integers(1, 12),
)
def test_the_plan_is_what_happens(steps, budget, tau, more, probe, k):
    assume(tau is None or steps <= 80 * tau)  # hundreds of stages take minutes and show no more
    strategy = quick(tau=tau, tau_max=None if tau is None else tau + more, probe=probe, k=k)
    trainer = run(strategy, steps, budget)
    if trainer.record.settings.budget == 0:
        assert len(trainer.record.stages) == 1
        return
    planned = strategy.plan(trainer.record.settings)
    for plan, stage in zip(planned, trainer.record.stages, strict=True):
        assert (plan.stage, plan.start, plan.probes) == (stage.index, stage.start, len(stage.trials))
        assert {trial.length for trial in stage.trials} <= {plan.length}


def test_once_the_budget_is_spent_the_last_rate_is_kept():
    record = run(quick(tau=100, tau_max=100, k=5, decay=0.0), budget=0.125).record
    assert [len(stage.trials) for stage in record.stages] == [5, 5, 2, *[0] * 7]
    searched = record.stages[2].rate
    assert {stage.rate for stage in record.stages[3:]} == {searched}
    assert {stage.winner for stage in record.stages[3:]} == {None}
    assert all("kept" in stage.reason for stage in record.stages[3:])
    assert set(record.schedule.over(300, 1000)) == {searched}


# Forecasts (section 3.2) and what is forecast (section 4.3)


@dataclass(frozen=True)
class Spy:
    """Remembers what it was asked."""

    asked: list

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        self.asked.append((curves[0], at[0]))
        return Forecasts(np.array(at), np.array([0.25]), np.array([0.5]))


def judged(strategy, *, validates, stage_tau, objective=1.5, validation=None):
    """The forecast of a probe in the first stage."""
    settings = settings_of(1000, 1.0)
    record = engine.replay(
        settings, (Started(0.1, (1.0,), validates), Opened(0, 0), Issued(0, 0, 0.1, stage_tau // 10))
    )
    curve = Curve.reduce([3.0, 2.0, 1.5], [0.1] * 3)
    return strategy.judge(record, Probed(0, 0, TrialState.COMPLETE, 3, curve, validation, 3.0, objective))


def test_the_training_loss_is_forecast_at_the_end_of_the_stage():
    spy = Spy([])
    forecast = judged(quick(tau=100, tau_max=200, curves=spy), validates=True, stage_tau=100)
    assert (forecast.at, forecast.mean, forecast.std) == (100, 0.25, 0.5)
    ((curve, at),) = spy.asked
    assert (curve.losses, at) == ((3.0, 2.0, 1.5), 100.0)


VALIDATION = Curve((5.0, 10.0), (2.5, 2.25), (0.1, 0.1))


def test_the_validation_loss_is_forecast_once_the_stage_is_as_long_as_it_gets():
    spy = Spy([])
    judged(quick(tau=100, tau_max=100, curves=spy), validates=True, stage_tau=100, validation=VALIDATION)
    assert spy.asked == [(VALIDATION, 100.0)]


def test_where_nothing_is_validated_the_training_loss_is_forecast_to_the_end():
    spy = Spy([])
    judged(quick(tau=100, tau_max=100, curves=spy), validates=False, stage_tau=100)
    assert spy.asked[0][0].losses == (3.0, 2.0, 1.5)


def test_a_probe_without_a_loss_has_no_forecast():
    assert judged(quick(tau=100), validates=False, stage_tau=100, objective=None) is None


def test_the_default_forecast_is_the_papers_exponential():
    assert AutoLRS()._model == Exponential()
    t = np.arange(50)
    curve = Curve(tuple(map(float, t)), tuple((2 * np.exp(-t / 60) + 1).tolist()), (0.1,) * 50)
    record = engine.replay(settings_of(10_000, 1.0), (Started(0.1, (1.0,), False), Opened(0, 0), Issued(0, 0, 0.1, 50)))
    probed = Probed(0, 0, TrialState.COMPLETE, 50, curve, None, 3.0, 2.0)
    forecast = AutoLRS(tau=500, tau_max=500).judge(record, probed)
    assert forecast.mean == pytest.approx(2 * math.exp(-500 / 60) + 1, rel=0.15)
    last = AutoLRS(tau=500, tau_max=500, curves=LastLoss()).judge(record, probed)
    assert last.mean == curve.losses[-1]


def test_validation_is_asked_for_only_at_the_longest_stages():
    trainer = run(quick(tau=100, tau_max=400, k=2), steps=2000, validates=True)
    for probe in probes_of(trainer):
        assert probe.validations == (16 if probe.stage >= 2 else 0)
    for stage in trainer.record.stages:
        for trial in stage.trials:
            points = None if trial.validation is None else len(trial.validation)
            assert points == (16 if stage.index >= 2 else None)
    opened = [event for event in trainer.events if isinstance(event, Opened)]
    assert [event.validations for event in opened] == [int(event.stage >= 2) for event in opened]
    assert not any(probe.validations for probe in probes_of(run(quick(tau=100, tau_max=100), validates=False)))
    assert not any(
        probe.validations for probe in probes_of(run(quick(tau_max=100, tau=100, validations=0), validates=True))
    )


# The choice


def chosen(pick, means, stds):
    """Rate of the winner among probes with these forecasts, by the real surrogate."""

    @dataclass(frozen=True)
    class Told:
        def extrapolate(self, curves, at, *, schedule=None, history=()):
            number = int(curves[0].rates[0])
            return Forecasts(np.array(at), np.array([means[number]]), np.array([stds[number]]))

    strategy = AutoLRS(tau=100, tau_max=100, k=len(means), pick=pick, sampler=GPSampler(), curves=Told())
    record = engine.replay(settings_of(1000, 1.0), (Started(0.1, (1.0,), False), Opened(0, 0, 3.0)))
    rates = [10**exponent for exponent in np.linspace(-3, 0, len(means))]
    for number, rate in enumerate(rates):
        record = engine.apply(record, Issued(0, number, rate, 10))
        curve = Curve((0.0,), (2.0,), (float(number),))  # the rate tells them apart
        probed = Probed(0, number, TrialState.COMPLETE, 10, curve, None, 3.0, 2.0)
        record = engine.apply(record, replace(probed, forecast=strategy.judge(record, probed)))
    return strategy.decide(record).winner


def test_the_paper_takes_the_smallest_forecast_and_we_the_smallest_posterior_mean():
    """A forecast that is good by luck does not win, if its neighbours and its own deviation speak against it."""
    means, stds = [1.5, 1.2, 1.3, 2.0, 0.9], [0.02, 0.02, 0.02, 0.02, 2.0]
    assert chosen("forecast", means, stds) == 4
    assert chosen("posterior", means, stds) == 1


def test_the_first_probe_of_the_run_is_at_the_initial_rate():
    trainer = run(quick(tau=100, tau_max=100, k=2), space=replace(SPACE, initial=0.02))
    assert trainer.record.stages[0].trials[0].rate == 0.02
    assert trainer.record.stages[1].trials[0].rate != 0.02


# The kept schedule


def same_rate(rate):
    class Same(GridSampler):
        def propose(self, observations, **_):
            return rate

    return Same()


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 300), st.integers(5, 90), st.floats(0.01, 0.99))
def test_the_decay_is_one_line_across_all_stages(steps, tau, decay):
    strategy = quick(tau=tau, tau_max=tau, k=1, decay=decay, sampler=same_rate(0.5))
    record = run(strategy, steps, budget=2.0).record
    turn = steps - round(decay * steps)
    expected = [0.5] * turn
    if turn < steps:
        expected += Piece(turn, steps, "linear", 0.5, 0.0).over(turn, steps)
        assert record.schedule(steps) == 0
    assert record.schedule.over(0, steps) == expected


def test_without_a_decay_each_stage_is_constant_as_in_the_paper():
    record = run(quick(tau=100, tau_max=200, k=4, decay=0.0)).record
    for stage in record.stages:
        assert set(record.schedule.over(stage.start, stage.stop)) == {stage.rate}


# Settings


def test_the_published_settings():
    """Section 4.1, and the released code: kappa of 1e6, its own unbounded fit, the smallest forecast wins."""
    published = AutoLRS.published()
    assert (published.tau, published.tau_max, published.probe, published.k) == (1000, 8000, 0.1, 10)
    assert published.validations == 16
    assert published.decay == 0
    assert published.pick == "forecast"
    assert published.sampler == GPSampler(acquisition="lcb", kappa=1e6)
    assert published.curves == PublishedExponential()
    settings = Settings(60_000, 60_000, 0, SPACE, "autolrs")
    starts = [planned.start for planned in published.plan(settings)]
    assert starts == [0, 1000, 3000, 7000, 15_000, 23_000, 31_000, 39_000, 47_000, 55_000]
    assert [planned.length for planned in published.plan(settings)] == [100, 200, 400, *[800] * 7]
    assert {planned.probes for planned in published.plan(settings)} <= set(range(11))
    assert sum(planned.probes * planned.length for planned in published.plan(settings)) <= 60_000


def test_our_settings():
    ours = AutoLRS()
    assert (ours.name, ours.search_budget) == ("autolrs", 1.0)
    assert ours.sampler == GPSampler(acquisition="lcb", kappa=2.0)
    assert (ours.probe, ours.k, ours.pick) == (0.1, 10, "posterior")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tau": 0}, "1 <= tau"),
        ({"tau_max": 0}, "1 <= tau_max"),
        ({"tau": 20, "tau_max": 10}, "tau <= tau_max"),
        ({"probe": 0.0}, "0 < probe <= 1"),
        ({"probe": 1.1}, "0 < probe <= 1"),
        ({"probe": math.nan}, "0 < probe <= 1"),
        ({"k": 0}, "1 <= k"),
        ({"validations": -1}, "0 <= validations"),
        ({"decay": 1.0}, "0 <= decay < 1"),
        ({"decay": -0.1}, "0 <= decay < 1"),
        ({"pick": "lucky"}, "pick is 'posterior' or 'forecast'"),
    ],
)
def test_bad_settings(options, rule):
    with pytest.raises(SettingError, match=f"`{rule}` must hold in strategy 'autolrs', but got AutoLRS\\("):
        AutoLRS(**options)


# Whole runs with the real sampler and curve model


def test_a_whole_run():
    trainer = run(AutoLRS(tau=100, tau_max=400, k=5), steps=1000, problem=Problem(), validates=True)
    record = trainer.record
    assert record.finished
    assert record.probe_steps <= 1000
    assert replayed(record.schedule, Problem())[:2] == trainer.state[:2]
    untrained = Problem().validation(SyntheticTrainer(settings_of(1, 0), AutoLRS()).state)
    assert record.final_loss < 0.6 * untrained


@settings(max_examples=4, deadline=None)
@given(st.floats(1e-3, 1e3))
@example(995.0)  # a lone forecast of variance 0 had a deviation of -3e-16, which counted as unknown
def test_the_unit_of_the_loss_does_not_matter(size):
    strategy = AutoLRS(tau=100, tau_max=400, k=5)
    ours, theirs = (run(strategy, problem=Problem(size=each), validates=True).record for each in (1.0, size))
    assert [stage.rate for stage in theirs.stages] == pytest.approx([stage.rate for stage in ours.stages], rel=1e-6)


def test_it_opens_the_next_stage_when_one_is_trained():
    record = run(quick(tau=100, tau_max=100, k=1), steps=200).record
    last = record.stages[-1]
    before = replace(record, stages=record.stages[:-1], kept_steps=last.start, finished=False)
    assert engine.decide(before, quick(tau=100, tau_max=100, k=1)) == Open(1, 100, evaluate=False)
    opened = engine.apply(before, Opened(1, 100, 1.0))
    assert isinstance(engine.decide(opened, quick(tau=100, tau_max=100, k=1)), Probe)
