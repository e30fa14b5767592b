"""The default strategy: miniatures as probes, the base schedule for the rest."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SPACE, GridSampler, Problem, SyntheticTrainer, replayed, settings_of

from autolrs import engine
from autolrs.curves.exponential import Exponential
from autolrs.errors import DivergedError, SettingError
from autolrs.forecasts import Forecasts
from autolrs.records import Curve, Decide, Decided, Issued, Open, Opened, Probe, Probed, Started, Trained, TrialState
from autolrs.samplers import GPSampler
from autolrs.schedules import BASES, Schedule, base_pieces
from autolrs.strategies.common import PlannedStage, observations, of_rates
from autolrs.strategies.horizon import Horizon

GRID = GridSampler()
NO_CLIFF = Problem(cliff=1e9)


def quiet(**options):
    """A strategy that stops no probe early, with a quick sampler."""
    fixed = {"length": 0.04, "gamma": 0.3, "adopt": True, "later": (), "first_share": 0.8, "clear": 2.0}
    return Horizon(**fixed | {"sampler": GRID, "prune_losers": False} | options)


def started(run_settings, *, validates=False):
    return engine.replay(run_settings, (Started(0.1, (1.0,), validates),))


def probed(probe, objective, *, noise=0.0, state=TrialState.COMPLETE, steps=None, first_loss=3.0):
    steps = probe.length if steps is None else steps
    rates = Schedule(probe.pieces).over(0, steps)
    fall = [first_loss + (objective - first_loss) * (step + 1) / steps for step in range(steps)]
    curve = replace(Curve.reduce(fall, rates), noise=noise)
    return Probed(probe.stage, probe.number, state, steps, curve, first_loss=first_loss, objective=objective)


def search(record, strategy, loss_of, *, noise=0.0):
    """The record after a stage's search in which a rate gave `loss_of(rate)`, and all that was said."""
    opening = engine.decide(record, strategy)
    assert isinstance(opening, Open)
    record, said = engine.apply(record, Opened(opening.stage, opening.start, 3.0)), []
    while isinstance(instruction := engine.decide(record, strategy), Probe):
        said.append(instruction)
        number = instruction.number
        record = engine.apply(record, Issued(instruction.stage, number, instruction.rate, instruction.length))
        event = probed(instruction, loss_of(instruction.rate), noise=noise)
        record = engine.apply(record, replace(event, forecast=strategy.judge(record, event)))
    assert isinstance(instruction, Decide)
    return engine.apply(record, Decided(instruction)), [*said, instruction]


def trained(record, stop):
    return engine.apply(record, Trained(record.kept_steps, stop, Curve.reduce([1.0], [0.1])))


def bowl(best):
    """A loss with its lowest value, 1, at rate `best`."""
    return lambda rate: 1 + 0.2 * math.log10(rate / best) ** 2


# Probes


@given(
    st.integers(20, 3000),
    st.sampled_from((0.01, 0.04, 0.2, 0.5)),
    st.sampled_from((0.0, 0.1, 0.5)),
    st.sampled_from((0.05, 0.4, 0.5)),
    st.sampled_from((0.0, 0.32)),
    st.sampled_from((0.0, 0.01, 0.05, 0.6)),
)
def test_a_probe_is_the_run_in_small(steps, length, warmup, decay, gamma, own):
    strategy = quiet(length=length, warmup=warmup, decay=decay, gamma=gamma, adopt=True)
    run = settings_of(steps, 1.0, space=replace(SPACE, warmup=own))
    record = engine.apply(started(run), Opened(0, 0))
    probe = engine.decide(record, strategy)
    assert isinstance(probe, Probe)
    assert probe.length == min(steps, max(10, round(length * steps)))
    small = Schedule(probe.pieces)
    assert small.steps == probe.length
    peak = probe.rate * (steps / probe.length) ** gamma
    plateau = probe.length - max(1, round(decay * probe.length))
    # As many steps as the run has, but at least a tenth of the probe and at most the share that is given.
    warm = round(min(warmup * probe.length, max(round(own * steps), 0.1 * probe.length)))
    warm = min(warm, plateau)
    assert probe.keep == plateau
    for step in range(probe.length):
        if step < warm:
            expected = peak * (step + 1) / (warm + 1)
        elif step < plateau:
            expected = peak
        else:
            expected = peak * (probe.length - step) / (probe.length - plateau)
        assert small(step) == pytest.approx(expected, rel=1e-9)
    assert small(probe.length) == 0


def test_only_a_run_from_the_start_warms_up():
    strategy = quiet(later=(0.5,), warmup=0.3)
    run = settings_of(400, 0.6, space=replace(SPACE, warmup=0.2))
    record, _ = search(started(run), strategy, bowl(0.1))
    _, said = search(trained(record, 200), strategy, bowl(0.1))
    assert Schedule(said[0].pieces)(0) == said[0].rate * (200 / said[0].length) ** strategy.gamma


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 600),
    st.floats(0.01, 2),
    st.sampled_from((0.02, 0.04, 0.3)),
    st.integers(4, 30),
    st.floats(0.1, 1),
    st.sets(st.floats(0.01, 0.99), max_size=3),
    st.booleans(),
)
def test_the_plan_is_what_happens(steps, budget, length, shortest, share, later, adopt):
    strategy = quiet(length=length, shortest=shortest, first_share=share, later=tuple(sorted(later)), adopt=adopt)
    run = settings_of(steps, budget)
    record = SyntheticTrainer(run, strategy, NO_CLIFF).run()
    if run.budget == 0:
        assert len(record.stages) == 1
        return
    for planned, stage in zip(strategy.plan(run), record.stages, strict=True):
        assert (planned.stage, planned.start, planned.probes) == (stage.index, stage.start, len(stage.trials))
        assert {trial.length for trial in stage.trials} <= {planned.length}


def test_a_plan_by_hand():
    assert quiet(length=0.04).plan(settings_of(1000, 0.3)) == (PlannedStage(0, 0, 7, 40),)
    assert Horizon().plan(settings_of(1000, 0.3)) == (PlannedStage(0, 0, 5, 60),)
    planned = quiet(length=0.04, later=(0.3, 0.5), first_share=0.5).plan(settings_of(1000, 0.5))
    assert planned == (PlannedStage(0, 0, 6, 40), PlannedStage(1, 300, 3, 40), PlannedStage(2, 500, 3, 40))


@given(st.integers(50, 2000), st.floats(0.05, 2), st.floats(0.1, 0.9))
def test_the_first_search_leaves_later_ones_their_share(steps, budget, share):
    strategy = quiet(later=(0.3,), first_share=share)
    run = settings_of(steps, budget)
    record, _ = search(started(run), strategy, bowl(0.1))
    assert record.probe_steps <= share * run.budget
    assert record.probe_steps > share * run.budget - strategy.plan(run)[0].length - 1
    record, _ = search(trained(record, record.stages[0].stop), strategy, bowl(0.1))
    assert record.probe_steps <= run.budget


def test_the_only_search_may_spend_all_and_the_first_of_several_80_percent():
    for later, spent in (((), 480), ((0.5,), 400)):
        record, _ = search(started(settings_of(1000, 0.5)), quiet(length=0.04, later=later), bowl(0.1))
        assert record.probe_steps == spent


# Early stopping


def _during(curve_losses, best_losses, *, length=100, noise=0.0, **options):
    """What `prune` says of a probe whose losses so far are these, beside a finished one with those."""
    strategy = Horizon(**{"sampler": GRID} | options)
    record = engine.apply(started(settings_of(1000, 1.0)), Opened(0, 0))
    rates = [0.1] * length
    if best_losses:
        record = engine.apply(record, Issued(0, 0, 0.1, length))
        best = Curve.reduce(best_losses, rates)
        end = Probed(0, 0, TrialState.COMPLETE, length, best, first_loss=best_losses[0], objective=best_losses[-1])
        record = engine.apply(record, replace(end, forecast=strategy.judge(record, end)))
    record = engine.apply(record, Issued(0, len(record.stages[0].trials), 0.2, length))
    probe = Probe(0, 1, 0.2, length, base_pieces("constant", rate=0.2, start=0, stop=length))
    curve = replace(Curve.reduce(curve_losses, rates), noise=noise)
    return strategy.prune(record, probe, curve)


def falling(share, steps):
    """`share` of the progress from 3 towards 1."""
    return [3 - 2 * share * step / 99 for step in range(steps)]


def test_a_loser_is_stopped():
    reason = _during(falling(0.3, 80), falling(1, 100))
    assert reason == "30% of the best probe's progress at step 79"
    assert _during([3.0 + 0.1 * step for step in range(80)], falling(1, 100))


def test_what_may_still_win_is_not():
    assert _during(falling(0.6, 80), falling(1, 100)) == ""
    assert _during(falling(1.5, 80), falling(1, 100)) == ""


def test_nothing_is_stopped_too_soon_or_without_a_measure():
    assert _during(falling(0.3, 74), falling(1, 100)) == ""
    assert _during(falling(0.3, 75), falling(1, 100)) != ""
    assert _during(falling(0.3, 80), []) == ""
    assert _during([], falling(1, 100)) == ""
    assert _during(falling(0.3, 80), falling(1, 100), prune_losers=False) == ""
    assert _during(falling(0.3, 80), falling(1, 100), noise=2.0) == ""
    assert _during(falling(0.3, 80), [3.0 + 0.01 * step for step in range(100)]) == ""  # the rival got nowhere


def test_with_a_curve_model_what_will_hardly_win_is_stopped():
    """A rival that falls to 1 by the end, and a probe that is still at 2.9 near its end."""
    reason = _during(falling(0.1, 80), falling(1, 100), curves=Exponential(), stop="chance")
    assert re.fullmatch(r"a chance of [\d.]+% to beat the best probe at step 79", reason)
    assert _during(falling(1.2, 80), falling(1, 100), curves=Exponential(), stop="chance") == ""
    assert _during(falling(0.1, 80), falling(1, 100), curves=Exponential(), stop="chance", beat=0.0) == ""
    assert _during(falling(0.1, 74), falling(1, 100), curves=Exponential(), stop="chance") == ""
    assert _during(falling(0.1, 80), [], curves=Exponential(), stop="chance") == ""


def test_a_curve_model_is_told_the_rates_to_come():
    asked = []

    @dataclass(frozen=True)
    class Spy:
        def extrapolate(self, curves, at, *, schedule=None, history=()):
            asked.append((at, schedule, history))
            return Forecasts(np.array(at), np.array([2.0]), np.array([1.0]))

    _during(falling(0.1, 80), falling(1, 100), curves=Spy(), stop="chance")
    ((at, schedule, history),) = asked
    assert (at, list(history)) == ([100.0], [])
    assert schedule.over(0, 100) == [0.2] * 100


def test_losers_are_stopped_in_a_whole_run():
    problem = Problem(noise=0.001)
    with_pruning = SyntheticTrainer(settings_of(2000, 0.3), Horizon(sampler=GRID), problem).run()
    pruned = [trial for trial in with_pruning.stages[0].trials if trial.state is TrialState.PRUNED]
    assert pruned
    assert all(trial.steps < trial.length and "progress" in trial.reason for trial in pruned)
    without = SyntheticTrainer(settings_of(2000, 0.3), Horizon(sampler=GRID, prune_losers=False), problem).run()
    assert len(with_pruning.stages[0].trials) > len(without.stages[0].trials)
    assert with_pruning.stages[0].winner not in {trial.number for trial in pruned}


def test_a_stopped_probe_is_judged_with_more_doubt():
    strategy = quiet()
    record = engine.apply(started(settings_of(1000, 1.0)), Opened(0, 0, 3.0))
    probe = engine.decide(record, strategy)
    record = engine.apply(record, Issued(0, 0, probe.rate, probe.length))
    whole = strategy.judge(record, probed(probe, 2.0, noise=0.1))
    part = strategy.judge(record, probed(probe, 2.0, noise=0.1, state=TrialState.PRUNED, steps=20))
    assert (whole.at, whole.mean) == (part.at, part.mean) == (probe.length, 2.0)
    assert whole.std == pytest.approx(0.1 / math.sqrt(16))  # a bin holds one loss here; the last 16 count
    assert part.std == pytest.approx(whole.std + 0.25)
    assert strategy.judge(record, replace(probed(probe, 2.0), objective=None)) is None


# The winner


def test_the_incumbent_is_the_best_so_far():
    _, said = search(started(settings_of(1000, 0.4)), quiet(), bowl(0.02))
    best = None
    for probe in said[:-1]:
        assert probe.incumbent == best
        rates = [p.rate for p in said[: probe.number + 1]]
        best = min(range(len(rates)), key=lambda n: bowl(0.02)(rates[n]))
    assert said[-1].winner == best


def test_what_the_winner_trained_is_kept():
    strategy = quiet(adopt=True, length=0.1, warmup=0.1, decay=0.3)
    trainer = SyntheticTrainer(settings_of(500, 0.5), strategy)
    record = trainer.run()
    stage = record.stages[0]
    assert stage.adopt == 35
    assert record.kept[0].adopted
    assert (record.kept[0].start, record.kept[0].stop) == (0, 35)
    assert record.adopted_steps == 35
    winner = stage.trials[stage.winner]
    probe = next(e for e in trainer.events if isinstance(e, Probed) and e.number == winner.number)
    assert record.schedule.over(0, 35) == list(probe.curve.rates[:35])
    peak = winner.rate * (500 / 50) ** strategy.gamma
    assert record.schedule(34) == pytest.approx(peak)
    assert record.schedule(35) == winner.rate
    assert replayed(record.schedule, Problem())[:2] == trainer.state[:2]


def test_starting_again_leaves_the_base_schedule():
    space = replace(SPACE, warmup=0.05)
    record = SyntheticTrainer(settings_of(500, 0.5, space=space), quiet(adopt=False, length=0.1)).run()
    assert record.adopted_steps == 0
    assert record.schedule == Schedule.build("wsd", rate=record.stages[0].rate, steps=500, warmup=25, decay=0.2)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(50, 600),
    st.sampled_from(BASES[1:]),
    st.sampled_from((0.1, 0.2, 1.0)),
    st.booleans(),
    st.sampled_from(((), (0.3,), (0.2, 0.9))),
)
def test_the_schedule_decays_to_zero(steps, base, decay, adopt, later):
    space = replace(SPACE, schedule=base, decay=decay, warmup=0.05)
    record = SyntheticTrainer(settings_of(steps, 0.5, space=space), quiet(adopt=adopt, later=later), NO_CLIFF).run()
    rates = record.schedule.over(0, steps)
    assert len(rates) == steps
    assert min(rates) > 0
    started = [stage.start for stage in record.stages if stage.winner is not None][-1]
    span = min(decay * steps, steps - started) if base.startswith("wsd") else steps - started
    assert rates[-1] <= 2 / (0.5 * span) * record.stages[-1].rate
    assert record.schedule(steps) == 0


# Momentum


def with_momentum(own, sums, *momenta, steps=1000, budget=0.4):
    """A record of an optimizer with momentum `own`, in a space that names others."""
    run = settings_of(steps, budget, space=replace(SPACE, momentum=momenta))
    return engine.replay(run, (Started(0.1, (1.0,), False, own, sums),))


def momentum_search(record, strategy, loss_of):
    """As `search`, with a loss of (rate, momentum)."""
    opening = engine.decide(record, strategy)
    record, said = engine.apply(record, Opened(opening.stage, opening.start, 3.0)), []
    while isinstance(probe := engine.decide(record, strategy), Probe):
        said.append(probe)
        record = engine.apply(record, Issued(probe.stage, probe.number, probe.rate, probe.length, probe.momentum))
        event = probed(probe, loss_of(probe.rate, probe.momentum))
        record = engine.apply(record, replace(event, forecast=strategy.judge(record, event)))
    return engine.apply(record, Decided(probe)), said, probe


def valley(better):
    """A bowl around rate 0.1 for the own momentum; for another one lower by `better` wherever it is tried."""
    return lambda rate, momentum: 1.5 - better if momentum is not None else 1.5 + 0.2 * math.log10(rate / 0.1) ** 2


@pytest.mark.parametrize(("sums", "factor"), [(True, 2.0), (False, 1.0)])
def test_another_momentum_is_tried_last_at_the_rate_found_and_kept_if_it_wins(sums, factor):
    strategy = quiet(adopt=False, length=0.05)
    record, said, decision = momentum_search(with_momentum(0.9, sums, 0.8), strategy, valley(0.1))
    assert [probe.momentum for probe in said] == [None] * 7 + [0.8]
    assert record.probe_steps == 400
    plain, _, without = momentum_search(with_momentum(0.9, sums, 0.8), strategy, valley(-0.1))
    assert (without.momentum, plain.momentum, plain.schedule.momentum) == (None, None, None)
    assert said[-1].rate == pytest.approx(factor * without.rate)
    assert decision.rate == pytest.approx(factor * without.rate)
    assert (decision.momentum, record.momentum, record.schedule.momentum) == (0.8, 0.8, 0.8)
    assert decision.winner == said[-1].number
    assert "momentum 0.8 for 0.9 ended at 1.4" in decision.reason
    assert engine.decide(record, strategy) == replace(engine.decide(record, strategy), momentum=0.8)


def test_each_named_momentum_is_tried_once_and_the_best_is_kept():
    strategy = quiet(adopt=False, length=0.05)

    def loss(rate, momentum):
        return {None: 1.5, 0.8: 1.4, 0.6: 1.3}[momentum]

    _, said, decision = momentum_search(with_momentum(0.9, False, 0.9, 0.8, 0.6), strategy, loss)
    assert [probe.momentum for probe in said][-3:] == [None, 0.8, 0.6]
    assert decision.momentum == 0.6
    assert len(said) == 8


@pytest.mark.parametrize(
    ("own", "momenta", "options", "budget"),
    [(None, (0.8,), {}, 0.4), (0.9, (), {}, 0.4), (0.9, (0.9,), {}, 0.4), (0.9, (0.8,), {"adopt": True}, 0.4)],
)
def test_no_other_momentum_is_tried_where_there_is_none_to_try(own, momenta, options, budget):
    strategy = quiet(**{"adopt": False, "length": 0.05} | options)
    record = with_momentum(own, True, *momenta, budget=budget)
    record, said, decision = momentum_search(record, strategy, valley(0.1))
    assert {probe.momentum for probe in said} == {None}
    assert (len(said), decision.momentum) == (8, None)


@pytest.mark.parametrize(("budget", "rates"), [(0.07, 1), (0.16, 3), (0.2, 4)])
def test_a_search_of_few_probes_has_them_all_for_rates(budget, rates):
    strategy = quiet(adopt=False, length=0.05)
    _, said, _ = momentum_search(with_momentum(0.9, True, 0.8, budget=budget), strategy, valley(0.1))
    assert [probe.momentum for probe in said] == [None] * rates


def test_without_a_rate_that_trains_no_momentum_is_tried():
    strategy = quiet(adopt=False, length=0.05)
    record, tried = engine.apply(with_momentum(0.9, True, 0.8), Opened(0, 0, 3.0)), []
    gave_up = False
    while not gave_up:
        try:
            probe = engine.decide(record, strategy)
        except DivergedError:
            gave_up = True
            continue
        tried.append(probe.momentum)
        record = engine.apply(record, Issued(0, probe.number, probe.rate, probe.length, probe.momentum))
        event = probed(probe, 3.0, state=TrialState.DIVERGED, steps=50)
        record = engine.apply(record, replace(event, objective=None))
    assert len(tried) >= 5
    assert set(tried) == {None}


def test_a_diverged_momentum_is_nobodys_rate():
    """It tells nothing of rates: neither bounds nor the surrogate see it."""
    strategy = quiet(adopt=False, length=0.05)
    record, said, _ = momentum_search(with_momentum(0.9, False, 0.8), strategy, valley(-0.1))
    assert len(of_rates(record)) == len(said) - 1 == len(observations(record))
    assert record.stages[0].winner in {trial.number for trial in of_rates(record)}


# Later stages


def later_search(gain, noise, clear=2.0):
    """Rates before and after a second search, in which the rate in force is worse than another by `gain`."""
    strategy = quiet(later=(0.3,), clear=clear)
    record, _ = search(started(settings_of(1000, 0.6)), strategy, bowl(0.1))
    before = record.stages[0].rate
    record, said = search(
        trained(record, 300), strategy, lambda rate: 1 + gain if math.isclose(rate, before) else 1.0, noise=noise
    )
    assert said[0].rate == before
    return before, record.stages[1]


def test_a_later_stage_first_tries_the_rate_in_force_and_needs_clear_evidence_to_leave_it():
    before, stage = later_search(gain=0.1, noise=0.01)
    assert stage.rate != before
    assert stage.winner is not None
    for gain, noise in ((0.1, 1.0), (0.0, 0.01), (-0.1, 0.01)):
        before, stage = later_search(gain, noise)
        assert stage.rate == before
        assert stage.winner is None
        assert stage.adopt == 0
        assert "nothing clearly better" in stage.reason


@pytest.mark.parametrize("base", BASES)
def test_what_is_not_changed_goes_on_to_the_float(base):
    """A decay that has begun does not begin anew."""
    strategy = quiet(later=(0.3, 0.9))
    record, said = search(started(settings_of(400, 1.0, space=replace(SPACE, schedule=base))), strategy, bowl(0.1))
    planned = Schedule(said[-1].pieces)
    record, _ = search(trained(record, 120), strategy, bowl(0.1), noise=50.0)
    record, _ = search(trained(record, 360), strategy, lambda rate: math.nan)
    assert record.schedule.over(0, 400) == planned.over(0, 400)
    assert len({stage.rate for stage in record.stages}) == 1


def test_how_clear_is_clear():
    """Every probe's standard deviation is noise / 4, their difference's sqrt(2) times that."""
    deviation = math.sqrt(2) * 0.1 / 4
    for clear in (0.5, 1.0, 2.0):
        before, stage = later_search(1.01 * clear * deviation, 0.1, clear)
        assert stage.rate != before
        before, stage = later_search(0.99 * clear * deviation, 0.1, clear)
        assert stage.rate == before


def test_a_third_stage_starts_from_what_is_in_force_too():
    """Not from what the second stage liked best but did not take."""
    strategy = quiet(later=(0.3, 0.6), first_share=0.3)
    record, _ = search(started(settings_of(1000, 0.9)), strategy, bowl(0.1))
    before = record.stages[0].rate
    record, _ = search(trained(record, 300), strategy, bowl(1.0), noise=50.0)
    assert record.stages[1].rate == before
    _, said = search(trained(record, 600), strategy, bowl(1.0), noise=0.001)
    assert said[0].rate == before
    assert said[-1].rate > before


def test_a_later_probe_is_no_longer_than_what_remains():
    strategy = quiet(later=(0.9,), length=0.2, shortest=4)
    trainer = SyntheticTrainer(settings_of(100, 2.0), strategy, NO_CLIFF)
    record = trainer.run()
    assert record.stages[1].start == 90
    assert {trial.length for trial in record.stages[1].trials} == {10}
    assert not SyntheticTrainer(settings_of(100, 2.0), replace(strategy, shortest=11), NO_CLIFF).run().stages[1].trials


def test_a_stage_is_as_long_as_its_probes():
    strategy = quiet(later=(0.1, 0.2, 0.5), length=0.3)
    assert [planned.start for planned in strategy.plan(settings_of(100, 1.0))] == [0, 50]
    assert [planned.start for planned in strategy.plan(settings_of(3, 1.0))] == [0]


# With the real sampler


def test_it_comes_near_the_best_of_a_grid():
    problem = Problem(noise=0.005)
    record = SyntheticTrainer(settings_of(1000, 0.3), Horizon(gamma=0.0, length=0.04), problem, validates=True).run()
    grid = [10 ** (exponent / 4) for exponent in range(-12, 3)]
    ends = [problem.validation(replayed(Schedule.build("wsd", rate=rate, steps=1000), problem)) for rate in grid]
    floor, untrained = min(ends), problem.validation(replayed(Schedule.build("wsd", rate=1e-9, steps=1), problem))
    assert record.final_loss < floor + 0.05 * (untrained - floor)


@settings(max_examples=4, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-3, 3))
def test_the_unit_of_the_loss_does_not_matter_to_the_real_sampler(a, b):
    ours, theirs = (
        SyntheticTrainer(settings_of(400, 0.3), Horizon(later=(0.4,)), problem).run()
        for problem in (Problem(), Problem(size=a, offset=b))
    )
    assert _tried(theirs) == pytest.approx(_tried(ours), rel=1e-6)


@pytest.mark.parametrize("unit", [2.0**-20, 3.0])
def test_the_unit_of_the_rate_does_not_matter_to_the_real_sampler(unit):
    space = replace(SPACE, bounds=(SPACE.bounds[0] * unit, SPACE.bounds[1] * unit))
    strategy = Horizon(later=(0.4,))
    ours = SyntheticTrainer(settings_of(400, 0.3), strategy).run()
    theirs = SyntheticTrainer(settings_of(400, 0.3, space=space), strategy, Problem(unit), own_rate=0.1 * unit).run()
    assert [rate / unit for rate in _tried(theirs)] == pytest.approx(_tried(ours), rel=1e-6)


def _tried(record):
    return [rate for stage in record.stages for rate in (*(trial.rate for trial in stage.trials), stage.rate)]


def test_the_order_of_finished_trials_does_not_matter_to_the_real_sampler():
    strategy = Horizon()
    record = engine.apply(started(settings_of(1000, 0.5)), Opened(0, 0, 3.0))
    for _ in range(5):
        probe = engine.decide(record, strategy)
        record = engine.apply(record, Issued(0, probe.number, probe.rate, probe.length))
        event = probed(probe, bowl(0.1)(probe.rate), noise=0.01)
        record = engine.apply(record, replace(event, forecast=strategy.judge(record, event)))
    expected = engine.decide(record, strategy)
    trials = record.stages[0].trials[::-1]
    trials = tuple(replace(trial, number=number) for number, trial in enumerate(trials))
    turned = engine.decide(replace(record, stages=(replace(record.stages[0], trials=trials),)), strategy)
    assert turned.rate == expected.rate
    assert turned.incumbent == 4 - expected.incumbent


# Settings


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"length": 0.0}, "0 < length <= 0.5"),
        ({"length": 0.6}, "0 < length <= 0.5"),
        ({"length": math.nan}, "0 < length <= 0.5"),
        ({"shortest": 3}, "shortest >= 4"),
        ({"gamma": -0.1}, "0 <= gamma <= 1"),
        ({"warmup": -0.1}, "warmup >= 0"),
        ({"decay": 0.0}, "decay > 0, warmup . decay <= 1"),
        ({"warmup": 0.7, "decay": 0.4}, "decay > 0, warmup . decay <= 1"),
        ({"first_share": 0.0}, "0 < first_share <= 1"),
        ({"clear": -1.0}, "clear >= 0"),
        ({"later": (0.5, 0.3)}, "0 < later < 1, rising"),
        ({"later": (0.0,)}, "0 < later < 1, rising"),
        ({"later": (1.0,)}, "0 < later < 1, rising"),
    ],
)
def test_bad_settings(options, rule):
    with pytest.raises(SettingError, match=f"`{rule}` must hold in strategy 'horizon', but got Horizon\\("):
        Horizon(**options)


@pytest.mark.parametrize("shares", [(0.1, 0.9), (0.6, 0.4), (0.0, 1.0), (0.7, 0.3)])
def test_warm_up_and_decay_may_fill_a_probe(shares):
    warmup, decay = shares
    record = SyntheticTrainer(settings_of(100, 0.5), quiet(warmup=warmup, decay=decay), NO_CLIFF).run()
    assert record.stages[0].trials


def test_the_default_sampler_is_the_gp():
    assert Horizon().sampler == GPSampler()
    assert Horizon() == Horizon()
