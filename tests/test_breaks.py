"""When a kept run counts as broken, and that it is then rolled back, wherever it was interrupted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import MemoryStore, Scripted, record_of, schedule_of, session_of, simple
from tuned_loops import loop, run

from autolrs.breaks import FEWEST, KeptLosses, broken
from autolrs.errors import DivergedError, StoppedError
from autolrs.records import RolledBack
from autolrs.session import Session

FALLING = [10.0, 3.0, 2.0, 1.6, 1.4, 1.3, 1.25]
LOSSES = st.floats(1e-3, 1e3)


def test_a_run_that_falls_back_to_where_it_was_long_ago_is_broken() -> None:
    assert broken(FALLING, 4.0)
    assert broken([loss - 1.25 for loss in FALLING], 4.0)  # not all positive


@pytest.mark.parametrize("now", [0.0, 1.2, 1.5, 2.0, -1.0])
def test_a_spike_that_has_nearly_gone_is_not(now: float) -> None:
    assert not broken(FALLING, now)


def test_what_varies_much_must_vary_more() -> None:
    assert broken([2.3, 0.4, 0.3, 0.2, 0.3, 0.2], 2.0)
    assert not broken([2.3, 0.4, 0.8, 0.2, 0.9, 0.2], 2.0)


def test_a_loss_near_zero_may_vary_by_orders_of_magnitude() -> None:
    levels = [3.6, 0.5, 1e-3, 1.2e-4, 1e-4, 1.1e-4, 0.9e-4]
    assert not broken(levels, 0.01)
    assert broken(levels, 1.5)


def test_without_progress_or_a_past_nothing_is_broken() -> None:
    assert not broken(FALLING[: FEWEST - 1], 10.0)
    assert not broken([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 100.0)
    assert not broken([], 1.0)


@given(st.lists(LOSSES, min_size=1, max_size=30))
def test_law_a_new_low_is_never_a_break(levels: list[float]) -> None:
    assert not broken(levels, min(levels))


@given(st.lists(LOSSES, min_size=1, max_size=30), LOSSES, st.floats(1, 100))
def test_law_what_is_higher_is_broken_all_the_more(levels: list[float], now: float, factor: float) -> None:
    assert broken(levels, now) <= broken(levels, factor * now)


@given(st.lists(LOSSES, min_size=1, max_size=30), LOSSES, st.integers(-20, 20))
def test_law_the_unit_of_the_loss_does_not_matter(levels: list[float], now: float, power: int) -> None:
    unit = 2.0**power  # exact
    assert broken(levels, now) == broken([unit * level for level in levels], unit * now)


@given(st.integers(0, 1000))
def test_law_a_noisy_run_that_gets_on_is_whole(seed: int) -> None:
    draws = random.Random(seed)
    levels = [0.2 + 2 * math.exp(-k / 4) + draws.gauss(0, 0.03) for k in range(51)]
    assert not any(broken(levels[:k], levels[k]) for k in range(51))


# In a run

EVERY, BREAKS_AT = 40, 290


def breaking(
    session: Session, at: float = 0.06, stop: int = 0, first: int = BREAKS_AT, bad: int = 10**6
) -> list[tuple[int, float]]:
    """A loop that breaks at item `first`, for as long as the rate is above `at`; what it saw: steps and rates."""
    simple(session)
    session.state["broken"] = session.state.get("broken", False)
    seen = []
    for number, item in enumerate(session.batches(items())):
        seen.append((session.step, session.lr))
        session.state["broken"] |= int(item) >= first and session.lr > at
        loss = 0.9 if session.state["broken"] else 0.05 + math.exp(-session.step / 10)
        session.report(math.nan if session.step >= bad else loss)
        if number == stop > 0:
            session.halt("test")
    return seen


def items() -> Iterable[torch.Tensor]:
    return [torch.tensor(float(number)) for number in range(1000)]


def test_a_broken_run_goes_back_to_before_it_broke_with_half_the_rate() -> None:
    store = MemoryStore()
    session = session_of(600, store=store, every=EVERY)
    seen = breaking(session)
    assert store.of(RolledBack) == [
        RolledBack(320, 280, 0.5, "mean loss 0.9 before step 320, 0.05 earlier", finite=True)
    ]
    assert [step for step, _ in seen] == [*range(320), *range(280, 600)]
    assert [rate for _, rate in seen] == [0.1] * 320 + [0.05] * 320
    assert not session.state["broken"]
    assert record_of(session).discarded_steps == 40
    assert record_of(session).finished


def test_the_second_time_it_goes_further_back_and_then_it_is_let_be() -> None:
    store = MemoryStore()
    session = session_of(600, store=store, every=EVERY)
    breaking(session, at=0.0)
    first, second = store.of(RolledBack)
    assert (first.at, first.to, first.finite) == (320, 280, True)
    assert (second.at, second.to, second.finite) == (320, 240, True)
    record = record_of(session)
    assert record.finished
    assert (record.breaks, record.discarded_steps) == (2, 40 + 80)
    assert [part.start for part in record.kept] == list(range(0, 600, EVERY))
    assert schedule_of(session).over(239, 241) == [0.1, 0.05]
    assert schedule_of(session).over(279, 281) == [0.05, 0.025]
    assert schedule_of(session)(599) == 0.1 / 4


def test_a_break_just_before_a_checkpoint_is_left_behind_the_second_time() -> None:
    """The checkpoint of step 280 is of a broken run, though its level does not yet say so."""
    store = MemoryStore()
    session = session_of(600, store=store, every=EVERY)
    breaking(session, first=279)
    assert [(event.at, event.to) for event in store.of(RolledBack)] == [(320, 280), (320, 240)]
    assert not session.state["broken"]


def test_losses_that_are_not_finite_have_a_count_of_their_own() -> None:
    store = MemoryStore()
    session = session_of(600, store=store, every=EVERY)
    with pytest.raises(DivergedError, match="after 3 roll-backs"):
        breaking(session, at=0.0, bad=500)
    assert [event.finite for event in store.of(RolledBack)] == [True, True, False, False, False]


def test_without_rescue_only_what_is_not_finite_is_rolled_back() -> None:
    store = MemoryStore()
    director = session_of(600, store=store, every=EVERY)._director
    director.record = replace(director.record, settings=replace(director.record.settings, rescue=False))
    breaking(Session(director))
    assert not store.of(RolledBack)


def test_a_run_that_is_stopped_again_and_again_gets_on_though_it_is_broken() -> None:
    store = MemoryStore()
    for _ in range(40):
        try:
            breaking(session_of(600, store=store, every=EVERY), at=0.0, stop=25)
            break
        except StoppedError:
            pass
    else:
        raise AssertionError("it never came to the end")
    assert len(store.of(RolledBack)) == 2


def test_losses_near_the_largest_number_are_no_error() -> None:
    losses = KeptLosses(1000, 100)
    for step in (16, 100, 200, 300, 400):
        losses.extend([2.0 if step < 100 else 1e-3] * 100)
        assert losses.watch([], step) == ""
    assert "mean loss 1.5e+308" in losses.watch([1.5e308] * 100, 500)
    assert "mean loss 1.5e+308" in losses.judge([1.5e308] * 60, 460)
    losses.extend([1.5e308] * 100)
    assert losses.mean == pytest.approx(1.5e308)


def test_a_spike_before_a_stop_is_no_break() -> None:
    losses = KeptLosses(1000, 100)
    losses.extend([2.0] * 16)
    assert losses.watch([], 16) == ""
    for step in range(100, 800, 100):
        losses.extend([0.01] * 100)
        assert losses.watch([], step) == ""
    assert losses.judge([0.01] * 3 + [9.0] * 3, 706) == ""
    assert losses.judge([0.01] * 20 + [9.0] * 20, 740) == ""
    assert losses.judge([0.01] * 20 + [1.0] * 50, 770) != ""


def test_a_damaged_checkpoint_is_passed_over_the_second_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(session: Session, loss: torch.Tensor) -> None:
        step, seen = session.step, session.state.setdefault("seen", 0)
        if step == 239 and not seen:
            (tmp_path / "run" / "checkpoints" / "step-00000160.safetensors").write_bytes(b"gone")
        loss.data.fill_(0.9 if step >= 210 and session.lr > 6e-4 else 0.05 + 2.0 ** (-step / 10))

    study = run(tmp_path, loop(each=breaks), search_budget=0, steps=400, checkpoint_every=40)
    assert study.finished
    assert study.record.breaks == 2
    assert "step-00000160" in caplog.text
    kept = [part.stop for part in study.record.kept]
    assert kept == list(range(40, 401, 40))


def test_without_a_beginning_there_are_no_levels() -> None:
    losses = KeptLosses(1000, 100)
    losses.load({"tail": torch.ones(3, dtype=torch.float64)})  # a checkpoint of an older version
    for step in range(100, 1000, 100):
        losses.extend([1.0 / step] * 100)
        assert losses.watch([], step) == ""
    assert losses.watch([1.0] * 100, 1000) == ""
    assert losses.judge([9.0] * 100, 1000) == ""


@pytest.mark.parametrize("stop", [3, 15, 16, 90, 279, 285, 300, 319, 320, 330, 400])
def test_where_it_was_stopped_does_not_matter(stop: int) -> None:
    store = MemoryStore()
    with pytest.raises(StoppedError):
        breaking(session_of(600, store=store, every=EVERY), stop=stop)
    session = session_of(600, store=store, every=EVERY)
    breaking(session)
    record = record_of(session)
    assert len(record.roll_backs) == 1
    assert not session.state["broken"]  # what has broken is not saved when it stops
    whole = session_of(600, store=MemoryStore(), every=EVERY)
    breaking(whole)
    assert record.final_loss == record_of(whole).final_loss
    if not 280 < stop < BREAKS_AT:  # else there is a checkpoint nearer to the break
        assert record.pieces == record_of(whole).pieces


def test_checkpoints_close_together_make_no_levels() -> None:
    store = MemoryStore()
    breaking(session_of(600, store=store, every=31))
    assert not store.of(RolledBack)


def test_probes_may_be_as_bad_as_they_like() -> None:
    store = MemoryStore()
    session = session_of(600, Scripted(rates=(0.02, 0.05), length=40), store=store, every=EVERY)
    simple(session)
    for _ in session.batches(items()):
        session.report(9.0 if session.is_probe else 0.05 + math.exp(-session.step / 10))
    assert not store.of(RolledBack)
