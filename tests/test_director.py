"""The director: what is stored before what, and that nobody's random numbers move."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import GridSampler, settings_of

from autolrs import director as director_module
from autolrs import engine
from autolrs.director import Director
from autolrs.errors import CheckpointError, DivergedError
from autolrs.records import (
    Curve,
    Decided,
    Forecast,
    Issued,
    Open,
    Opened,
    Probe,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Started,
    Train,
    Trained,
    TrialState,
    to_json,
)
from autolrs.strategies.horizon import Horizon

SETTINGS = settings_of(100, 0.3, every=20)
CURVE = Curve.reduce([2.0, 1.5], [0.1, 0.1])
TREE = {"cause": None, "roll_backs": 0}


@dataclass
class FakeStore:
    """A store in memory that writes what happens, in order, to `said`."""

    said: list[Any] = field(default_factory=list)
    saved: dict[int, Any] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    full: bool = False

    @property
    def checkpoints(self):
        return self

    def append(self, event):
        if self.full:
            raise CheckpointError("the disk is full")
        self.said.append(event)

    def heartbeat(self, payload):
        self.said.append(payload)

    def save(self, step, tree, *, tag="", keep=None):
        if self.full:
            raise CheckpointError("the disk is full")
        self.said.append(("save", tag or step, *([] if keep is None else [keep])))
        self.saved[tag or step] = tree

    def load(self, key):
        if key not in self.saved:
            raise CheckpointError(f"no checkpoint {key}")
        return self.saved[key]

    @property
    def steps(self):
        return tuple(sorted(step for step in self.saved if isinstance(step, int)))

    def forget_after(self, step):
        self.saved = {key: tree for key, tree in self.saved.items() if isinstance(key, str) or key <= step}

    def remove(self, tag):
        self.said.append(("remove", tag))

    def tag(self, step, tag):
        self.said.append(("tag", step, tag))

    def latest(self, at_most=None):
        step = max(step for step in self.saved if step <= at_most)
        return step, self.saved[step], self.damaged


@dataclass
class Listener:
    heard: list[Any] = field(default_factory=list)

    def on_event(self, record, event):
        self.heard.append((record, event))

    def on_progress(self, record, instruction, done, loss):
        self.heard.append((instruction, done, loss))


class Noisy:
    """A strategy and a callback that draw from every global generator."""

    name, search_budget = "noisy", 0.3

    def decide(self, record):
        draw()
        return Horizon(sampler=GridSampler()).decide(record)

    def judge(self, record, probed):
        draw()
        return Forecast(10, 1.0, 0.1)

    def prune(self, record, probe, curve):
        draw()
        return "bored"

    def on_event(self, record, event):
        draw()

    def on_progress(self, record, instruction, done, loss):
        draw()


def draw():
    return torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002


def started(strategy=None, *callbacks, events=(), deadline=0.0):
    store = FakeStore()
    strategy = strategy or Horizon(sampler=GridSampler())
    record = engine.replay(SETTINGS, (Started(0.1, (1.0,), False), *events))
    return Director(record, strategy, store, callbacks=callbacks, deadline=deadline), store


def probed(probe, **changes):
    values = {"state": TrialState.COMPLETE, "steps": probe.length, "curve": CURVE, "first_loss": 2.0, "objective": 1.5}
    return Probed(probe.stage, probe.number, **(values | changes))


def search(director):
    """All probes of the first stage; the first `Train`."""
    director.tell(Opened(0, 0))
    while isinstance(probe := director.next(), Probe):
        director.tell(Issued(probe.stage, probe.number, probe.rate, probe.length))
        director.tell(probed(probe))
    return probe


def test_decisions_are_stored_on_the_way():
    listener = Listener()
    director, store = started(None, listener)
    assert director.next() == Open(0, 0, evaluate=True)
    train = search(director)
    assert isinstance(train, Train)
    assert isinstance(store.said[-1], Decided)
    assert [event for _, event in listener.heard] == store.said
    assert engine.replay(SETTINGS, (Started(0.1, (1.0,), False), *store.said)) == director.record
    assert listener.heard[-1][0] is director.record


def test_a_probe_is_judged_before_it_is_stored():
    director, store = started(Noisy())
    search(director)
    assert {event.forecast for event in store.said if isinstance(event, Probed)} == {Forecast(10, 1.0, 0.1)}


def test_a_diverged_probe_is_not_judged():
    director, store = started(Noisy())
    director.tell(Opened(0, 0))
    probe = director.next()
    director.tell(Issued(0, 0, probe.rate, probe.length))
    director.tell(probed(probe, state=TrialState.DIVERGED, objective=None))
    assert store.said[-1].forecast is None


def test_what_cannot_be_stored_did_not_happen():
    listener = Listener()
    director, store = started(None, listener)
    before = director.record
    store.full = True
    with pytest.raises(CheckpointError, match="full"):
        director.tell(Opened(0, 0))
    assert director.record is before
    assert listener.heard == []


def test_what_cannot_happen_is_not_stored():
    director, store = started()
    with pytest.raises(ValueError, match="out of order"):
        director.tell(Trained(50, 60, CURVE))
    assert store.said == []


class OwnError(Exception):
    pass


def test_a_callback_that_raises_leaves_the_event_stored():
    class Fussy(Listener):
        def on_event(self, record, event):
            raise OwnError

    director, store = started(None, Fussy())
    with pytest.raises(OwnError):
        director.tell(Opened(0, 0))
    assert store.said == [Opened(0, 0)]
    assert len(director.record.stages) == 1
    director.mute()
    director.tell(Issued(0, 0, 0.1, 10))
    assert len(store.said) == 2


def test_nobody_draws_from_the_global_generators():
    noisy = Noisy()
    director, _ = started(noisy, noisy)

    def everything():
        train = search(director)
        director.progress(train, 16, 1.0)
        assert director.prune(Probe(0, 0, 0.1, 10, ()), CURVE) == "bored"

    expected = seeded(lambda: None)
    assert seeded(everything) == expected


def seeded(function):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    function()
    return draw()


def test_progress_beats_about_once_a_second_and_tells_every_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(director_module.time, "monotonic", lambda: now)
    listener = Listener()
    director, store = started(None, listener)
    director.tell(Opened(0, 0))
    probe = director.next()
    for step in range(1, 31):
        now = 100.0 + 0.1 * step
        assert director.progress(probe, 16 * step, 0.5) == ""
    beats = [entry for entry in store.said if isinstance(entry, dict)]
    assert len(beats) == 2
    assert beats[0] == {"events": 1, "running": 16 * 11, "seconds": pytest.approx(1.1)}
    assert [entry for entry in listener.heard if entry[0] is probe] == [(probe, 16 * n, 0.5) for n in range(1, 31)]


def test_the_deadline_stops_the_run(monkeypatch):
    now = 0.0
    monkeypatch.setattr(director_module.time, "monotonic", lambda: now)
    director, _ = started(deadline=10.0)
    probe = Probe(0, 0, 0.1, 10, ())
    now = 9.0
    assert director.progress(probe, 16, 0.5) == ""
    now = 10.5
    assert director.progress(probe, 32, 0.5) == "max_seconds is over"


def test_a_checkpoint_leaves_the_one_before_it():
    director, store = started()
    director.save(20, TREE)
    director.keep_final()
    assert store.said == [("save", 20, 2), ("remove", "probe"), ("tag", 0, "final")]


def whole(director, loss, **changes):
    """The next probe, whose state at the end, and then its result, is told."""
    probe = director.next()
    director.tell(Issued.of(probe))
    director.save_probe(probe, loss, {"probe": to_json(probe), "loss": loss})
    end = Curve((float(probe.length),), (loss,), (probe.rate,))
    director.tell(probed(probe, objective=loss, validation=end, **changes))
    return probe


def searching():
    director, store = started(Horizon())
    director.tell(Started(0.1, (1.0,), True))
    opened = director.next()
    director.tell(Opened(opened.stage, opened.start, 3.0))
    return director, store


def test_the_lowest_end_of_a_whole_probe_is_kept_and_found_if_the_run_ends_higher(caplog):
    director, store = searching()
    assert director.load_probe(math.nan) is None
    for loss in (2.0, 2.5):
        whole(director, loss)
    assert store.said.count(("save", "probe")) == 1  # the other is not lower
    for loss in (2.1, math.inf, math.nan):
        assert director.load_probe(loss)["probe"]["number"] == 0
    for loss in (2.0, 1.9, -math.inf):
        assert director.load_probe(loss) is None
    whole(director, 1.0)
    assert director.load_probe(1.5)["probe"]["number"] == 2
    assert not caplog.messages


def test_of_equal_ends_the_first_by_number_is_kept_whichever_is_told_first():
    kept = []
    for order in ((0, 1), (1, 0)):
        director, _ = searching()
        probes = [director.next()]
        director.tell(Issued.of(probes[0]))
        probes.append(director.next(in_flight={0}))
        director.tell(Issued.of(probes[1]))
        for number in order:
            probe = probes[number]
            director.save_probe(probe, 2.0, {"probe": to_json(probe), "loss": 2.0})
            end = Curve((float(probe.length),), (2.0,), (probe.rate,))
            director.tell(probed(probe, objective=2.0, validation=end))
        kept.append(director.load_probe(3.0)["probe"]["number"])
    assert kept == [0, 0]


def test_a_state_that_is_gone_or_anothers_is_said_and_not_taken(caplog):
    director, store = searching()
    probe = whole(director, 2.0)
    store.saved["probe"] = {"probe": to_json(probe), "loss": 2.5}  # from before a crash
    assert director.load_probe(3.0) is None
    assert "its state is gone: what was stored is that of probe 0.0, which ended at 2.5" in caplog.text
    del store.saved["probe"]
    assert director.load_probe(3.0) is None
    assert "its state is gone: no checkpoint probe" in caplog.text


def test_a_full_disk_costs_the_probes_state_and_no_more(caplog):
    director, store = searching()
    store.full = True
    director.save_probe(director.next(), 2.0, {})
    assert "the state at the end of a probe is not kept: the disk is full" in caplog.text


@pytest.mark.parametrize("restore_best", [True, False])
def test_nothing_is_kept_without_validation_or_if_it_is_not_wanted(restore_best):
    director, store = started(Horizon())
    director.record = replace(director.record, settings=replace(SETTINGS, restore_best=restore_best))
    director.tell(Started(0.1, (1.0,), not restore_best))
    director.tell(Opened(0, 0, 3.0))
    whole(director, 2.0)
    assert ("save", "probe") not in store.said
    assert director.load_probe(math.nan) is None


def test_before_the_last_checkpoint_is_the_one_before():
    director, store = started()
    _trained(director)
    store.saved = {step: TREE | {"step": step} for step in (0, 20, 40, 60)}
    told = len(store.said)
    assert director.load(before=True)["step"] == 20
    del store.saved[20]["step"]  # an older version's
    assert director.load(before=True)["step"] == 0
    del store.saved[0]
    assert director.load(before=True)["step"] == 40  # there is none
    assert len(store.said) == told
    director.forget_later()
    assert sorted(store.saved) == [20, 40]


def _trained(director):
    train = search(director)
    director.tell(Trained(train.start, 20, CURVE))
    director.tell(Trained(20, 40, CURVE))


def test_loading_a_good_checkpoint_says_nothing():
    director, store = started()
    _trained(director)
    store.saved = {20: TREE | {"at": 20}, 40: TREE | {"at": 40}}
    told = len(store.said)
    assert director.load()["at"] == 40
    assert len(store.said) == told


def test_behind_a_damaged_checkpoint_the_record_goes_back(caplog):
    director, store = started()
    _trained(director)
    store.saved, store.damaged = {20: TREE}, ["checkpoint 40 is damaged."]
    assert director.load() is TREE
    assert store.said[-1] == Reverted(20, "the checkpoint of the last kept step is damaged")
    assert director.record.kept_steps == 20
    assert "checkpoint 40 is damaged. Going on from step 20." in caplog.text


def test_a_roll_back_that_a_kill_cut_short_is_told_once():
    director, store = started()
    _trained(director)
    event = director.diverged(50, "loss nan at step 50")
    assert event == RolledBack(50, 40, 0.5, "loss nan at step 50")
    store.saved = {40: {"cause": to_json(event), "roll_backs": 0}}
    rate = director.record.schedule(60)
    director.load()
    assert store.said[-1] == event
    assert director.record.schedule(60) == 0.5 * rate
    told = len(store.said)
    director.load()
    assert len(store.said) == told


def test_after_three_roll_backs_it_gives_up():
    director, _ = started()
    _trained(director)
    for _ in range(3):
        director.tell(director.diverged(50, "loss inf"))
    with pytest.raises(DivergedError, match="after 3 roll-backs"):
        director.diverged(50, "loss inf")


def test_a_new_record_is_the_given_one():
    record = Record(SETTINGS)
    assert Director(record, Horizon(), FakeStore()).record is record
