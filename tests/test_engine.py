"""The engine's laws, on whole runs of the synthetic trainer, and its transitions one by one."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic import SPACE, Disk, GridSampler, Killed, LastLoss, Problem, SyntheticTrainer, replayed, settings_of

from autolrs import engine
from autolrs.errors import DivergedError, SettingError
from autolrs.protocols import Strategy
from autolrs.records import (
    Curve,
    Decide,
    Decided,
    Elapsed,
    Finish,
    Finished,
    Issued,
    Lost,
    Open,
    Opened,
    Probe,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Settings,
    Stage,
    Started,
    Train,
    Trained,
    TrialState,
    from_json,
    to_json,
)
from autolrs.schedules import BASES, Schedule, base_pieces
from autolrs.space import SearchSpace
from autolrs.strategies.autolrs import AutoLRS
from autolrs.strategies.horizon import Horizon

LAW = settings(max_examples=60, deadline=None)

# Whole runs


@st.composite
def horizons(draw):
    decay = draw(st.sampled_from((0.05, 0.3, 0.5, 1.0)))
    return Horizon(
        length=draw(st.sampled_from((0.01, 0.04, 0.1, 0.3, 0.5))),
        shortest=draw(st.integers(4, 40)),
        gamma=draw(st.sampled_from((0.0, 0.3))),
        warmup=draw(st.sampled_from((0.0, 0.1, 0.99))) * (1 - decay),
        decay=decay,
        first_share=draw(st.floats(0.05, 1)),
        adopt=draw(st.sampled_from((True, True, False))),
        prune_losers=draw(st.booleans()),
        later=tuple(sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3)))),
        clear=draw(st.floats(0, 3)),
        sampler=GridSampler(),
    )


@st.composite
def papers(draw):
    tau = draw(st.none() | st.integers(1, 250))
    return AutoLRS(
        tau=tau,
        tau_max=draw(st.none() | st.integers(tau or 1, 300)),
        probe=draw(st.floats(0.01, 1)),
        k=draw(st.integers(1, 6)),
        validations=draw(st.integers(0, 20)),
        decay=draw(st.floats(0, 0.99)),
        pick=draw(st.sampled_from(("posterior", "forecast"))),
        sampler=GridSampler(),
        curves=LastLoss(),
    )


@dataclass(frozen=True)
class Run:
    settings: Settings
    strategy: Strategy
    problem: Problem
    options: dict[str, Any]

    def trainer(self, disk: Disk | None = None, kill_after: int | None = None) -> SyntheticTrainer:
        options = self.options | {"disk": disk, "kill_after": kill_after}
        return SyntheticTrainer(self.settings, self.strategy, self.problem, **options)

    def go(self, *kills: int) -> SyntheticTrainer:
        """The trainer after its run, which may have ended with a `DivergedError`; killed on the way after so many
        events."""
        disk = Disk()
        for kill in (*sorted(kills), None):
            trainer = self.trainer(disk, kill)
            with suppress(DivergedError, Killed):
                trainer.run()
        return trainer


@st.composite
def runs(draw):
    steps = draw(st.sampled_from((1, 2, 5, 10)) | st.integers(11, 160) | st.integers(80, 160))
    space = replace(
        SPACE,
        schedule=draw(st.sampled_from(BASES)),
        warmup=draw(st.sampled_from((0.0, 0.05, 0.6))),
        decay=draw(st.sampled_from((0.1, 0.4, 1.0))),
        initial=draw(st.sampled_from((None, 0.02))),
    )
    budget = draw(st.sampled_from((0.3, 1.0)) | st.floats(0, 2))
    spikes = draw(st.just(frozenset()) | st.frozensets(st.integers(0, 300), max_size=2))
    return Run(
        settings_of(steps, budget, space=space, every=draw(st.integers(1, 100))),
        draw(horizons() | papers()),
        Problem(cliff=draw(st.sampled_from((1.0, 1e-3, 1e3))), spikes=spikes),
        {
            "validates": draw(st.booleans()),
            "epoch": draw(st.none() | st.none() | st.integers(1, 60)),
            "known": draw(st.booleans()),
        },
    )


def after_each(trainer):
    """The records of a run, from none of its events to all of them."""
    record = Record(trainer.record.settings)
    yield record
    for event in trainer.events:
        record = engine.apply(record, event)
        yield record


def sayings(record, strategy):
    """What is decided, or the error in its place."""
    try:
        return engine.decide(record, strategy)
    except DivergedError as error:
        return str(error)


@LAW
@given(runs())
def test_probe_steps_never_exceed_the_budget(run):
    trainer = run.go()
    for record in after_each(trainer):
        assert engine.remaining(record) >= 0
        assert record.probe_steps <= run.settings.budget
    for event in trainer.events:
        if isinstance(event, Probed):
            assert event.steps <= trainer.record.stages[event.stage].trials[event.number].length


@LAW
@given(runs())
def test_a_run_ends_with_all_its_steps(run):
    """Kept stretches follow each other to the end, and the schedule covers exactly the steps."""
    trainer = run.go()
    record = trainer.record
    if not record.finished:  # no rate trains, and trying again says the same
        with pytest.raises(DivergedError):
            run.trainer(trainer.disk).run()
        return
    assert [part.start for part in record.kept] == [0, *(part.stop for part in record.kept[:-1])]
    assert record.kept[-1].stop == record.kept_steps == run.settings.steps
    assert record.schedule is not None
    assert record.schedule.steps == run.settings.steps
    assert [stage.start for stage in record.stages] == [0, *(stage.stop for stage in record.stages[:-1])]
    assert sayings(record, run.strategy) == Finish()


@LAW
@given(runs())
def test_what_is_decided_is_the_schedule_from_there_on(run):
    """And what was planned up to there stays."""
    trainer = run.go()
    before = None
    for event, record in zip(trainer.events, list(after_each(trainer))[1:], strict=True):
        if isinstance(event, Decided):
            start = record.stages[event.decision.stage].start
            ours = [rate for piece in event.decision.pieces for rate in piece.over(piece.start, piece.stop)]
            assert record.schedule.over(start, run.settings.steps) == ours
            assert before is None or record.schedule.over(0, start) == before.over(0, start)
        before = record.schedule


@LAW
@given(runs())
def test_the_plain_replay_of_the_schedule_is_exact(run):
    """The adopted prefix included: the kept run is what plain training on its schedule is."""
    trainer = run.go()
    assume(trainer.record.finished and not trainer.record.roll_backs)
    assert replayed(trainer.record.schedule, run.problem)[:2] == trainer.state[:2]
    kept = [rate for part in trainer.record.kept for rate in _spread(part.curve, part.stop - part.start)]
    assert kept == pytest.approx(trainer.record.schedule.over(0, run.settings.steps), rel=1e-9, abs=1e-12)


def _spread(curve, steps):
    """Rates of every step, where bins hold one each; else of none."""
    assume(len(curve) == steps)
    return curve.rates


@LAW
@given(runs())
def test_events_replayed_through_json_are_the_record(run):
    trainer = run.go()
    events = [from_json(json.loads(json.dumps(to_json(event), allow_nan=False))) for event in trainer.events]
    assert repr(engine.replay(run.settings, events)) == repr(trainer.record)


@LAW
@given(runs(), st.integers(0, 1000))
def test_the_same_record_gives_the_same_decision(run, n):
    trainer = run.go()
    events = trainer.events[: n % (len(trainer.events) + 1)]
    assume(events)  # a session says first what it found
    again = engine.replay(run.settings, [from_json(to_json(event)) for event in events])
    assert repr(sayings(engine.replay(run.settings, events), run.strategy)) == repr(sayings(again, run.strategy))


@LAW
@given(runs(), st.lists(st.integers(1, 1000), min_size=1, max_size=2))
def test_killed_after_any_event_a_run_goes_on_as_if_nothing_had_happened(run, kills):
    whole = run.go()
    broken = run.go(*(kill % len(whole.events) + 1 for kill in kills))
    assert repr(_essence(broken.record)) == repr(_essence(whole.record))
    assert broken.state == whole.state or not whole.record.finished


def _essence(record):
    """A record but for whether a winner's plateau was trained twice: a kill loses what is only in memory."""
    return replace(record, kept=tuple(replace(part, adopted=False) for part in record.kept), lost_steps=0)


@LAW
@given(runs(), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_the_unit_of_the_loss_does_not_matter(run, a, b):
    there = replace(run, problem=replace(run.problem, size=a, offset=b))
    assert _rates(there.go()) == pytest.approx(_rates(run.go()), rel=1e-9)


@LAW
@given(runs(), st.sampled_from((2.0**-20, 0.125, 4.0, 2.0**30)))
def test_the_unit_of_the_rate_does_not_matter(run, unit):
    space = run.settings.space
    low, high = space.bounds
    initial = None if space.initial is None else space.initial * unit
    there = Run(
        replace(run.settings, space=replace(space, bounds=(low * unit, high * unit), initial=initial)),
        run.strategy,
        replace(run.problem, rate_unit=unit),
        run.options | {"own_rate": 0.1 * unit},
    )
    assert [rate / unit for rate in _rates(there.go())] == pytest.approx(_rates(run.go()), rel=1e-6)


def _rates(trainer):
    return [stage.rate or 0.0 for stage in trainer.record.stages]


@LAW
@given(runs(), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_the_order_of_finished_trials_does_not_matter(run, random, n):
    trainer = run.go()
    records = [r for r in after_each(trainer) if r.stage and r.stage.trials and _searching(r)]
    assume(records)
    record = records[n % len(records)]
    trials = list(record.stage.trials)
    random.shuffle(trials)
    trials = tuple(replace(trial, number=number) for number, trial in enumerate(trials))
    shuffled = replace(record, stages=(*record.stages[:-1], replace(record.stage, trials=trials)))
    ours, theirs = sayings(record, run.strategy), sayings(shuffled, run.strategy)
    assert type(ours) is type(theirs)
    if isinstance(ours, Probe | Decide):
        assert (theirs.rate, theirs.pieces) == (ours.rate, ours.pieces)


def _searching(record):
    return not record.stage.decided and all(t.state is not TrialState.RUNNING for t in record.stage.trials)


@LAW
@given(runs())
def test_without_a_budget_it_is_the_base_schedule_at_the_own_rate(run):
    run = replace(run, settings=replace(run.settings, budget=0))
    trainer = run.go()
    assume(not trainer.record.roll_backs)
    space, steps = run.settings.space, run.settings.steps
    base = Schedule.build(space.schedule, rate=0.1, steps=steps, warmup=round(space.warmup * steps), decay=space.decay)
    assert trainer.record.schedule == base
    assert trainer.record.probe_steps == 0
    assert {type(event) for event in trainer.events} == {Started, Opened, Decided, Trained, Finished}


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("strategy", [Horizon(sampler=GridSampler()), AutoLRS(sampler=GridSampler())])
def test_tiny_runs(steps, strategy):
    for budget in (0.0, 0.3, 1.0, 2.0):
        record = SyntheticTrainer(settings_of(steps, budget), strategy, Problem(cliff=1e3)).run()
        assert record.finished
        assert record.schedule is not None
        assert record.schedule.steps == steps


# Divergence of the kept run


def _plain(**options: Any) -> SyntheticTrainer:
    """200 steps without a search, checkpoints every 50."""
    return SyntheticTrainer(settings_of(200, 0, every=50), Horizon(), **options)


def test_a_roll_back_halves_the_rate_from_the_checkpoint_on():
    trainer = _plain(problem=Problem(spikes=frozenset({70})))
    record = trainer.run()
    (event,) = (event for event in trainer.events if isinstance(event, RolledBack))
    assert (event.to, event.at, event.factor) == (50, 80, 0.5)  # read at a multiple of 16
    assert record.roll_backs == ("loss nan at step 80, back to 50, rate x 0.5",)
    assert record.discarded_steps == 30
    base = Schedule.build("wsd", rate=0.1, steps=200)
    assert record.schedule is not None
    assert record.schedule.over(0, 50) == base.over(0, 50)
    assert record.schedule.over(50, 200) == pytest.approx([0.5 * rate for rate in base.over(50, 200)])
    assert record.stages[0].rate == 0.05
    assert record.finished


def test_after_three_roll_backs_the_run_stops_and_keeps_everything():
    trainer = _plain(problem=Problem(spikes=frozenset({70, 110, 150, 190})))
    with pytest.raises(DivergedError, match=r"diverged again \(loss nan at step .*\) after 3 roll-backs") as error:
        trainer.run()
    record = trainer.record
    assert f"All is kept up to step {record.kept_steps}" in str(error.value)
    assert len(record.roll_backs) == 3
    assert record.schedule(record.kept_steps) == pytest.approx(0.1 / 8)
    assert max(trainer.disk.checkpoints) == record.kept_steps == record.kept[-1].stop


def test_what_was_rolled_back_is_what_a_later_search_starts_from():
    """A stage without a budget of its own keeps the rate in force, not the one that had diverged."""
    strategy = AutoLRS(tau=100, tau_max=100, k=2, decay=0, sampler=GridSampler(), curves=LastLoss())
    problem = Problem(spikes=frozenset({60}))
    record = SyntheticTrainer(settings_of(300, 0.07, every=50), strategy, problem).run()
    first, second, third = record.stages
    assert len(record.roll_backs) == 1
    assert first.trials
    assert not second.trials
    assert first.rate == 0.5 * first.trials[first.winner].rate
    assert second.rate == third.rate == first.rate


@LAW
@given(runs(), st.integers(0, 1000))
def test_a_damaged_checkpoint_costs_only_steps(run, n):
    """The last checkpoint is gone: training goes on from the one before, on the same schedule to the same end."""
    run = replace(run, problem=replace(run.problem, spikes=frozenset()))
    whole = run.go()
    assume(whole.record.finished)
    disk = Disk()
    trainer = run.trainer(disk, n % len(whole.events) + 1)
    with pytest.raises(Killed):
        trainer.run()
    step = trainer.record.kept_steps
    assume(step > 0)
    del disk.checkpoints[step]
    record = run.trainer(disk).run()
    assert any(isinstance(event, Reverted) for event in disk.events)
    assert record.lost_steps > 0
    assert record.schedule == whole.record.schedule
    assert record.final_loss == whole.record.final_loss


# Divergence of probes


@pytest.mark.parametrize("strategy", [Horizon(sampler=GridSampler()), AutoLRS(tau=160, sampler=GridSampler())])
def test_when_all_probes_diverge_the_rates_come_down_and_then_it_says_so(strategy):
    trainer = SyntheticTrainer(settings_of(400, 0.5), strategy, Problem(cliff=1e-9))
    with pytest.raises(DivergedError, match=r"all \d+ probes of stage 0 diverged \(rates .*bounds") as error:
        trainer.run()
    rates = [trial.rate for trial in trainer.record.stages[0].trials]
    assert len(rates) > 3
    lowest = math.inf
    for rate in rates:
        assert rate < lowest
        lowest = rate
        assert f"{rate:.3g}" in str(error.value)


@pytest.mark.parametrize("make", [Horizon, AutoLRS])
def test_a_first_loss_that_is_not_finite_is_nobodys_rate(make):
    trainer = SyntheticTrainer(settings_of(400, 0.5), make(sampler=GridSampler()), Problem(spikes=frozenset({0})))
    with pytest.raises(DivergedError, match=r"the loss is nan at step 0, before any update: the model or the data"):
        trainer.run()
    assert len(trainer.record.stages[0].trials) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        Horizon(length=0.04, later=(0.5,), sampler=GridSampler()),
        AutoLRS(tau=200, tau_max=200, k=3, sampler=GridSampler(), curves=LastLoss()),
    ],
)
def test_a_later_stage_whose_probes_diverge_keeps_the_rate(strategy):
    problem = Problem(spikes=frozenset({200, 201}))  # every probe of the second stage begins so
    trainer = SyntheticTrainer(settings_of(400, 0.5), strategy, problem)
    first, second = trainer.run().stages
    assert [trial.state for trial in second.trials] == [TrialState.DIVERGED]
    assert "no probe" in second.reason
    assert second.rate == first.rate * 0.5  # the kept run meets the same batch and rolls back


# Room


def test_a_probe_is_no_longer_than_the_epoch_has_room():
    for strategy in (
        Horizon(length=0.2, sampler=GridSampler()),
        AutoLRS(tau=300, sampler=GridSampler(), curves=LastLoss()),
    ):
        trainer = SyntheticTrainer(settings_of(400, 1.0), strategy, epoch=25)
        record = trainer.run()
        assert record.stages[0].room == 25
        assert {trial.length for trial in record.stages[0].trials} == {25}
        assert "the epoch ended" not in {trial.reason for trial in record.stages[0].trials}


def test_a_probe_that_the_epoch_cuts_is_judged_by_what_it_did():
    trainer = SyntheticTrainer(settings_of(400, 1.0), Horizon(length=0.2, sampler=GridSampler()), epoch=25, known=False)
    record = trainer.run()
    cut = [trial for trial in record.stages[0].trials if trial.reason == "the epoch ended"]
    assert cut
    assert all(trial.steps == 25 and trial.forecast is not None for trial in cut)


def test_too_little_room_is_no_search():
    record = SyntheticTrainer(settings_of(400, 1.0), Horizon(shortest=30, sampler=GridSampler()), epoch=25).run()
    assert record.probe_steps == 0
    assert record.finished


# One by one

CURVE = Curve.reduce([1.0, 2.0], [0.1, 0.1])
STARTED = Started(0.1, (1.0,), False)
OPENED = Opened(0, 0)
ISSUED = Issued(0, 0, 0.2, 10)
PROBED = Probed(0, 0, TrialState.COMPLETE, 10, CURVE, first_loss=2.5, objective=1.5, validations=2)
DECISION = Decide(0, 0.2, 60, base_pieces("wsd", rate=0.2, start=0, stop=100), winner=0, adopt=6, reason="why")
DECIDED = Decided(DECISION)
SETTINGS = settings_of(100, 0.2, every=40)


def made(*events):
    return engine.replay(SETTINGS, events)


def test_each_event_leaves_its_mark():
    record = made(STARTED)
    assert (record.own_rate, record.ratios, record.validates) == (0.1, (1.0,), False)
    record = made(STARTED, Opened(0, 0, start_loss=None, room=70, validations=1))
    assert record.stages == (Stage(0, 0, None, 70),)
    assert record.validation_calls == 1
    record = made(STARTED, OPENED, ISSUED)
    assert record.stages[0].trials[0].state is TrialState.RUNNING
    assert engine.remaining(record) == 10
    record = made(STARTED, OPENED, ISSUED, PROBED)
    trial = record.stages[0].trials[0]
    assert (trial.state, trial.steps, trial.objective, trial.rate) == (TrialState.COMPLETE, 10, 1.5, 0.2)
    assert record.stages[0].start_loss == 2.5  # of the first probe, where nothing else is known
    assert record.validation_calls == 2
    assert engine.remaining(record) == 10
    record = made(STARTED, OPENED, ISSUED, PROBED, DECIDED)
    stage = record.stages[0]
    assert (stage.rate, stage.stop, stage.winner, stage.adopt, stage.reason) == (0.2, 60, 0, 6, "why")
    assert record.pieces == DECISION.pieces
    record = engine.apply(record, Trained(0, 6, CURVE, adopted=True))
    assert (record.kept_steps, record.adopted_steps) == (6, 6)
    record = engine.apply(engine.apply(record, Lost(5)), Elapsed(2.5))
    record = engine.apply(engine.apply(record, Lost(2)), Elapsed(0.5))
    assert (record.lost_steps, record.wall_seconds) == (7, 3.0)
    record = engine.apply(record, Trained(6, 100, CURVE))
    early = Probe(0, 0, 0.2, 8, base_pieces("linear", rate=0.3, start=0, stop=8), whole=True)
    record = engine.apply(record, Finished(0.5, 1, plain_loss=0.6, early=early))
    assert (record.finished, record.final_loss, record.validation_calls) == (True, 0.5, 3)
    assert record.final_schedule == Schedule(early.pieces, record.ratios)
    record = engine.apply(record, Reverted(6, "damaged"))
    assert (record.early, record.plain_loss, record.final_schedule) == (None, None, record.schedule)
    assert (record.finished, record.final_loss, record.kept_steps, record.lost_steps) == (False, None, 6, 101)


def test_a_known_start_loss_stays():
    assert made(STARTED, Opened(0, 0, 9.0), ISSUED, PROBED).stages[0].start_loss == 9.0


def test_a_probe_that_an_older_version_issued_may_be_issued_again():
    record = made(STARTED, OPENED, ISSUED, replace(ISSUED, whole=True))
    assert [trial.whole for trial in record.stages[0].trials] == [True]
    with pytest.raises(ValueError, match="out of order"):
        engine.apply(record, ISSUED)


def test_a_probe_issued_again_is_the_same_trial():
    assert made(STARTED, OPENED, ISSUED, ISSUED) == made(STARTED, OPENED, ISSUED)


SEARCHING = (STARTED, OPENED, ISSUED, PROBED)
TRAINED = (*SEARCHING, DECIDED, Trained(0, 6, CURVE), Trained(6, 40, CURVE))


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ((STARTED,), Opened(1, 0)),
        ((STARTED,), Opened(0, 5)),
        ((STARTED, OPENED), Opened(1, 0)),
        (TRAINED, Opened(1, 40)),
        ((STARTED,), ISSUED),
        ((STARTED, OPENED), Issued(0, 1, 0.2, 10)),
        ((STARTED, OPENED), Issued(1, 0, 0.2, 10)),
        ((STARTED, OPENED, ISSUED), Issued(0, 0, 0.3, 10)),
        (SEARCHING, ISSUED),
        (TRAINED, Issued(0, 1, 0.2, 10)),
        ((STARTED, OPENED), PROBED),
        (SEARCHING, PROBED),
        ((STARTED, OPENED, ISSUED), replace(PROBED, steps=11)),
        ((STARTED, OPENED, ISSUED), replace(PROBED, stage=-1)),
        ((STARTED, OPENED, ISSUED), replace(PROBED, number=-1)),
        ((STARTED,), DECIDED),
        (TRAINED, DECIDED),
        (SEARCHING, Decided(replace(DECISION, stop=0))),
        (SEARCHING, Decided(replace(DECISION, stop=101))),
        (SEARCHING, Decided(replace(DECISION, pieces=()))),
        (SEARCHING, Decided(replace(DECISION, adopt=61))),
        (SEARCHING, Decided(replace(DECISION, pieces=base_pieces("wsd", rate=0.2, start=1, stop=100)))),
        (SEARCHING, Decided(replace(DECISION, pieces=base_pieces("wsd", rate=0.2, start=0, stop=101)))),
        (TRAINED, Trained(39, 50, CURVE)),
        (TRAINED, Trained(40, 40, CURVE)),
        (TRAINED, Trained(40, 101, CURVE)),
        (TRAINED, RolledBack(50, 7, 0.5, "")),
        (TRAINED, RolledBack(39, 40, 0.5, "")),
        ((STARTED, OPENED), RolledBack(0, 0, 0.5, "")),
        (TRAINED, Reverted(40, "")),
        (TRAINED, Reverted(20, "")),
        (TRAINED, Reverted(50, "")),
        (TRAINED, Finished(1.0)),
        ((*TRAINED, Trained(40, 100, CURVE), Finished(1.0)), Finished(1.0)),
    ],
)
def test_what_cannot_follow_is_an_error(before, event):
    record = made(*before)
    with pytest.raises(ValueError, match=r"cannot follow in a record with .*the study's events are out of order"):
        engine.apply(record, event)


def test_training_goes_from_checkpoint_to_checkpoint_after_the_adopted_steps():
    record = made(*SEARCHING, DECIDED)
    strategy = Horizon(sampler=GridSampler())
    seen = []
    while isinstance(instruction := engine.decide(record, strategy), Train):
        seen.append((instruction.start, instruction.stop, instruction.adopt))
        record = engine.apply(record, Trained(instruction.start, instruction.stop, CURVE))
    assert seen == [(0, 6, 0), (6, 40, None), (40, 60, None)]
    assert instruction == Open(1, 60, evaluate=True)


def test_back_before_an_open_stage_it_trains_up_to_it():
    record = made(*TRAINED, Trained(40, 60, CURVE), Opened(1, 60), Reverted(6, "damaged"))
    instruction = engine.decide(record, Horizon(sampler=GridSampler()))
    assert instruction == Train(6, 40, record.pieces, 1)
    assert record.lost_steps == 54
    assert [part.stop for part in record.kept] == [6]


@dataclass(frozen=True)
class Greedy:
    """Asks for one probe of a length, whatever the budget."""

    length: int
    name = "greedy"
    search_budget = 1.0

    def decide(self, record):
        if record.stage is None:
            return Open(0, 0, evaluate=False)
        return Probe(0, 0, 0.2, self.length, base_pieces("constant", rate=0.2, start=0, stop=self.length))

    def judge(self, record, probed):
        return None

    def prune(self, record, probe, curve):
        return ""


def test_a_strategy_that_overdraws_is_told_so():
    with pytest.raises(SettingError, match=r"'greedy' asked for a probe of 21 steps in stage 0, but 20 of the budget"):
        engine.decide(made(STARTED, OPENED), Greedy(21))
    assert isinstance(engine.decide(made(STARTED, OPENED), Greedy(20)), Probe)


def test_a_probe_lost_in_a_crash_is_issued_again_though_it_takes_the_last_of_the_budget():
    record = made(STARTED, OPENED, Issued(0, 0, 0.2, 20))
    assert engine.remaining(record) == 0
    for strategy in (Greedy(20), Horizon(sampler=GridSampler()), AutoLRS(sampler=GridSampler())):
        instruction = engine.decide(record, strategy)
        assert isinstance(instruction, Probe)
        assert (instruction.number, instruction.rate, instruction.length) == (0, 0.2, 20)


def test_a_budget_too_small_for_a_probe_trains_at_the_initial_rate():
    for initial, rate in ((None, 0.1), (0.02, 0.02)):
        space = SearchSpace("s", (1e-4, 10.0), initial=initial)
        record = SyntheticTrainer(settings_of(1000, 0.002, space=space), Horizon(sampler=GridSampler())).run()
        assert record.probe_steps == 0
        assert record.stages[0].rate == rate
        assert "no probe fits" in record.stages[0].reason
