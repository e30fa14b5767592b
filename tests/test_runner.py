"""The runner: what it does with instructions, and what it tells of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import (
    Augmented,
    MemoryStore,
    Run,
    Scripted,
    digest,
    draw,
    finish,
    ones,
    plain_run,
    record_of,
    rng_digest,
    schedule_of,
    seed_all,
    session_of,
    shuffled,
    simple,
    steps_of,
    tuned_run,
    update,
)
from test_batches import EpochSampler, Stream
from torch import nn
from torch.utils.data import DataLoader

from autolrs.errors import DivergedError, LoaderError, RateOverriddenError, StoppedError
from autolrs.records import (
    Decided,
    Finished,
    Issued,
    Opened,
    Probed,
    Record,
    Reverted,
    RolledBack,
    Started,
    Trained,
    TrialState,
)
from autolrs.session import Session

Make = Callable[[], Iterable[Any]]


@dataclass
class On:
    """A callback."""

    event: Callable[[Record, Any], None] = lambda record, event: None
    progress: Callable[..., None] = lambda *args: None

    def on_event(self, record: Record, event: Any) -> None:
        self.event(record, event)

    def on_progress(self, *args: Any) -> None:
        self.progress(*args)


def names(store: MemoryStore) -> list[str]:
    return [type(event).__name__ for event in store.events]


class Indexed(Stream):
    """A stream of what `shuffled` gives, in order."""

    def __iter__(self) -> Iterator[Any]:
        dataset = Augmented(24)
        return (dataset[index] for index in range(24))


LOADERS: dict[str, Make] = {
    "shuffled": shuffled,
    "own generator": lambda: shuffled(own=True),
    "set_epoch": lambda: DataLoader(Augmented(24), 4, sampler=EpochSampler(24)),
    "stream": lambda: DataLoader(Indexed(), 4),
    "list": lambda: list(DataLoader(Augmented(24), 4)),
}


def check_against_plain(run: Run, make: Make, *, adopted: set[int]) -> None:
    """The laws: batches in order and once, equal probes, and the plain loop's bits."""
    seen, end = plain_run(schedule_of(run.session), make)
    assert run.end == end
    assert run.kept == [each for each in seen if each.step not in adopted]
    found: dict[int, set[Any]] = {each.step: {(each.items, each.rng)} for each in seen}
    for each in run.probed:  # the last ones may go past the end of the run
        found.setdefault(each.step, set()).add((each.items, each.rng))
    assert all(len(same) == 1 for same in found.values())


@pytest.mark.parametrize("memory", [1 << 30, 700, 0])
@pytest.mark.parametrize("kind", LOADERS)
def test_the_kept_run_sees_each_batch_once_and_all_probes_the_same(kind: str, memory: int) -> None:
    if kind == "list":
        seed_all()  # its items are made by the augmentation, here once for all
        items = list(LOADERS[kind]())
        make: Make = lambda: items  # noqa: E731
    else:
        make = LOADERS[kind]
    strategy = Scripted(rates=(0.02, 0.05, 0.03), length=10, stages=3, keep=4)
    session = session_of(60, strategy, every=11, replay_memory=memory)
    run = tuned_run(session, make, validate=True)
    starts = [stage.start for stage in record_of(session).stages]
    assert starts == [0, 20, 40]
    check_against_plain(run, make, adopted={step for start in starts for step in range(start, start + 4)})
    for start in starts:
        probed = [each for each in run.probed if start <= each.step < start + 10]
        assert [each.step for each in probed] == [*range(start, start + 10)] * 3
        assert len({each.weights for each in probed if each.step == start}) == 1
        assert [each.rate for each in probed] == [rate for rate in (0.02, 0.05, 0.03) for _ in range(10)]


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from(["shuffled", "own generator"]),
    steps=st.integers(6, 40),
    length=st.integers(1, 25),
    keep=st.integers(0, 25),
    stages=st.integers(1, 3),
    every=st.integers(1, 20),
    memory=st.sampled_from([1 << 30, 500, 0]),
    validations=st.integers(0, 3),
    epochs=st.sampled_from([None, 1, 2]),
    pruned=st.dictionaries(st.integers(0, 1), st.integers(1, 20), max_size=1),
)
def test_law_whatever_is_probed_the_kept_run_is_a_plain_one(
    make: str,
    steps: int,
    length: int,
    keep: int,
    stages: int,
    every: int,
    memory: int,
    validations: int,
    epochs: int | None,
    pruned: dict[int, int],
) -> None:
    keep = min(keep, length, steps // stages - 1)
    strategy = Scripted(
        length=length, keep=keep, stages=stages, validations=min(validations, length), prune_from=pruned
    )
    store = MemoryStore()
    session = session_of(steps, strategy, every=every, replay_memory=memory, store=store)
    run = tuned_run(session, LOADERS[make], validate=validations > 0, epochs=epochs)
    record = record_of(session)
    adopted = {step for part in record.kept if part.adopted for step in range(part.start, part.stop)}
    check_against_plain(run, LOADERS[make], adopted=adopted)
    assert len(run.probed) == record.probe_steps
    assert [part.start for part in record.kept] == [0, *(part.stop for part in record.kept[:-1])]
    assert record.kept_steps == steps
    assert record.validation_calls <= sum(len(s.trials) for s in record.stages) * max(1, validations) + stages + 1


# Probes and what is told of them


def test_what_is_told_of_a_run(tmp_path: Any) -> None:
    store = MemoryStore()
    session = session_of(30, Scripted(rates=(0.02, 0.05), length=10), store=store, every=20)
    simple(session)
    losses: dict[bool, list[float]] = {True: [], False: []}
    for _ in session.batches(ones()):
        loss = 1.0 + session.step + 100 * session.lr
        losses[session.is_probe].append(loss)
        session.report(loss)
    assert names(store) == [
        *("Started", "Opened", "Issued", "Probed", "Issued", "Probed", "Decided", "Trained", "Trained", "Finished")
    ]
    assert store.of(Started) == [Started(0.1, (1.0,), False)]
    assert store.of(Opened) == [Opened(0, 0)]
    assert store.of(Issued) == [Issued(0, 0, 0.02, 10), Issued(0, 1, 0.05, 10)]
    first, second = store.of(Probed)
    assert (first.steps, first.state, first.first_loss, first.validations) == (10, TrialState.COMPLETE, 3.0, 0)
    assert first.curve.losses == tuple(losses[True][:10])
    assert first.curve.rates == (0.02,) * 10
    assert first.objective == pytest.approx(sum(losses[True][:10]) / 10)
    assert (second.curve.losses, second.curve.rates) == (tuple(losses[True][10:]), (0.05,) * 10)
    assert [(part.start, part.stop) for part in store.of(Trained)] == [(0, 20), (20, 30)]
    assert [part.curve.start for part in store.of(Trained)] == [0, 20]
    assert [loss for part in store.of(Trained) for loss in part.curve.losses] == losses[False]
    assert store.of(Finished) == [Finished(pytest.approx(sum(losses[False][-16:]) / 16), 0)]


@pytest.mark.parametrize(("length", "last"), [(10, 10), (100, 16), (400, 40)])
def test_without_validation_the_last_tenth_of_the_losses_is_the_objective(length: int, last: int) -> None:
    store = MemoryStore()
    session = session_of(length, Scripted(rates=(0.02,), length=length), store=store, every=length)
    simple(session)
    noise = random.Random(0)
    losses = []
    for _ in session.batches(ones()):
        losses.append(noise.random() - 0.5)  # of any sign
        session.report(losses[-1])
    (probed,) = store.of(Probed)
    assert probed.objective == pytest.approx(sum(losses[length - last : length]) / last)


def test_validation_is_called_where_it_is_due_and_leaves_everything_as_it_was() -> None:
    def go(careless: bool) -> tuple[list[Any], list[Any], MemoryStore]:
        """What the bodies found, and where validation was called."""
        seed_all()
        store = MemoryStore()
        session = session_of(60, Scripted(length=20, stages=2, validations=2), store=store)
        model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 1))
        model[2].eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        loader = shuffled(own=True)
        session.track(model=model, optimizer=optimizer, generator=generator)
        bodies, calls = [], []

        def validate() -> torch.Tensor:
            calls.append((session.step, session.is_probe, torch.is_grad_enabled(), model.training))
            if careless:
                model.eval()
                draw()
                torch.rand(1, generator=generator), torch.rand(1, generator=loader.generator)
            return model[3].weight.mean()

        session.validate(validate)
        for items, inputs in session.batches(loader):
            own = [g.get_state().tolist() for g in (generator, loader.generator)]
            flags = [module.training for module in model.modules()]
            bodies.append((items.tolist(), rng_digest(), own, flags, torch.is_grad_enabled(), digest(model)))
            torch.rand(1, generator=generator)
            session.report(update(model, optimizer, inputs))
        assert record_of(session).validation_calls == len(calls)
        return bodies, calls, store

    bodies, calls, store = go(careless=True)
    assert (bodies, calls) == go(careless=False)[:2]
    probes = [(10, True, False, True), (20, True, False, True)] * 2
    later = [(step + 30, *rest) for step, *rest in probes]
    edges = [(step, False, False, True) for step in (0, 30, 60)]
    assert calls == [edges[0], *probes, edges[1], *later, edges[2]]
    first = store.of(Probed)[0]
    assert first.validation is not None
    assert first.validation.offsets == (10.0, 20.0)
    assert first.objective == first.validation.losses[-1]
    assert first.validations == 2


def test_a_validation_that_raises_puts_flags_and_generators_back_too() -> None:
    session = session_of(20, Scripted(length=5))
    model, _ = simple(session)

    def fail() -> float:
        model.eval()
        draw()
        raise KeyError("mine")

    session.validate(fail)
    before = rng_digest()
    with pytest.raises(KeyError, match="mine"):
        next(iter(session.batches(ones())))
    assert model.training
    assert rng_digest() == before


def test_a_pruned_probe_is_told_with_its_last_value() -> None:
    for validate in (False, True):
        store = MemoryStore()
        session = session_of(60, Scripted(length=40, prune_from={1: 20}), store=store)
        simple(session)
        if validate:
            session.validate(lambda: 7.0)
        for _ in session.batches(ones()):
            session.report(float(session.step))
        first, second = store.of(Probed)
        assert (first.state, first.steps, first.reason) == (TrialState.COMPLETE, 40, "")
        assert (second.state, second.steps, second.reason) == (TrialState.PRUNED, 32, "scripted")  # at the next read
        assert second.objective == (7.0 if validate else pytest.approx(sum(range(16, 32)) / 16))
        assert second.validations == int(validate)
        assert record_of(session).probe_steps == 72


def test_where_validation_is_not_asked_for_a_pruned_probe_has_none_either() -> None:
    store = MemoryStore()
    session = session_of(60, Scripted(length=40, validations=0, prune_from={1: 20}), store=store)
    simple(session)
    session.validate(lambda: 7.0)
    finish(session)
    assert [(event.objective, event.validations, event.validation) for event in store.of(Probed)] == [
        (1.0, 0, None)
    ] * 2


@pytest.mark.parametrize("validations", [1, 4])
def test_a_validation_loss_that_is_not_finite_is_a_divergence_and_counted_once(validations: int) -> None:
    store = MemoryStore()
    session = session_of(60, Scripted(length=40, validations=validations, prune_from={1: 20}), store=store)
    simple(session)
    calls = []

    def validate() -> float:
        calls.append(session.step)
        bad = session.is_probe and (session.lr == 0.05 or session.step == 40)
        return math.nan if bad else 1.0

    session.validate(validate)
    finish(session)
    probed = store.of(Probed)
    assert [(event.state, event.reason) for event in probed] == [(TrialState.DIVERGED, "validation loss nan")] * 2
    assert [event.objective for event in probed] == [None, None]
    assert sum(event.validations for event in probed) == len(calls) - 2
    assert record_of(session).validation_calls == len(calls)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_probe_ends_at_the_next_read_and_the_search_goes_on(bad: float) -> None:
    store = MemoryStore()
    session = session_of(60, Scripted(length=40), store=store)
    simple(session)
    for _ in session.batches(ones()):
        session.report(bad if session.is_probe and session.lr == 0.02 and session.step == 18 else 1.0)
    first, second = store.of(Probed)
    assert (first.state, first.steps, first.objective, first.reason) == (TrialState.DIVERGED, 32, None, f"loss {bad}")
    assert first.forecast is None
    assert not first.curve.finite
    assert second.state is TrialState.COMPLETE
    assert record_of(session).stages[0].rate == 0.05
    assert session.done


# The kept run


def test_what_is_adopted_is_the_winners_state_where_its_plateau_ended() -> None:
    store = MemoryStore()
    session = session_of(40, Scripted(rates=(0.02, 0.05, 0.03), length=10, keep=6), store=store, every=15)
    model, optimizer = simple(session)
    weights: dict[tuple[bool, float, int], list[float]] = {}
    for inputs in session.batches(ones()):
        weights[session.is_probe, session.lr, session.step] = model.weight.flatten().tolist()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        session.report(session.lr)  # the lowest rate wins
    assert weights[False, 0.02, 6] == weights[True, 0.02, 6]
    assert (False, 0.02, 5) not in weights
    trained = store.of(Trained)
    assert [(part.start, part.stop, part.adopted) for part in trained] == [
        (0, 6, True),
        (6, 15, False),
        (15, 30, False),
        (30, 40, False),
    ]
    assert trained[0].curve.losses == (0.02,) * 6
    assert record_of(session).adopted_steps == 6
    assert sorted(store.checkpoints.trees) == [30, 40]


def test_only_the_incumbents_state_is_held_in_memory() -> None:
    session = session_of(40, Scripted(rates=(0.05, 0.02, 0.03, 0.04), length=10, keep=6))
    simple(session)
    held = []
    for _ in session.batches(ones()):
        if session.is_probe and session.step == 0:
            held.append(sorted(session._runner._candidates))
        session.report(session.lr)
    assert held == [[], [0], [1], [1]]
    assert session._runner._candidates == {}


def test_an_adoption_that_is_no_longer_in_memory_is_trained_again() -> None:
    whole = tuned_run(session_of(40, Scripted(length=10, keep=6), every=10), shuffled)
    store = MemoryStore()

    def stop(record: Record, event: Any) -> None:
        if isinstance(event, Decided):
            raise StoppedError("test")

    session = session_of(40, Scripted(length=10, keep=6), store=store, callbacks=[On(stop)], every=10)
    with pytest.raises(StoppedError):
        tuned_run(session, shuffled)
    run = tuned_run(session_of(40, Scripted(length=10, keep=6), store=store, every=10), shuffled)
    assert [each.step for each in run.kept] == list(range(40))
    assert run.kept[6:] == whole.kept
    assert run.end == whole.end
    assert not any(part.adopted for part in store.of(Trained))


KINDS = ("Started", "Opened", "Issued", "Probed", "Decided", "Trained")


@pytest.mark.parametrize(
    ("strategy", "epochs", "memory"),
    [
        (Scripted(length=8, stages=2), None, 300),
        (Scripted(length=5, stages=2), 1, 1 << 30),
    ],
)
def test_a_run_that_breaks_off_after_any_event_ends_the_same(
    strategy: Scripted, epochs: int | None, memory: int
) -> None:
    def go(store: MemoryStore, *callbacks: On) -> Run:
        session = session_of(24, strategy, store=store, callbacks=callbacks, every=9, replay_memory=memory)
        return tuned_run(session, lambda: shuffled(own=True), validate=True, epochs=epochs)

    store = MemoryStore()
    whole = go(store)
    after = [number for number, event in enumerate(store.events, 1) if type(event).__name__ in KINDS]
    assert len(after) > 12
    check_broken_off(go, whole, after)


def test_a_run_on_two_threads_that_breaks_off_ends_the_same() -> None:
    """Sums over a batch come out differently than on one thread, but every time the same."""

    def go(store: MemoryStore, *callbacks: On) -> Run:
        session = session_of(24, Scripted(length=5), store=store, callbacks=callbacks, every=9)
        return tuned_run(session, shuffled, validate=True)

    alone = go(MemoryStore())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = go(MemoryStore())
        assert whole.end[0] != alone.end[0], "else this would show nothing"
        check_broken_off(go, whole, [4, 8])
    finally:
        torch.set_num_threads(threads)


def check_broken_off(go: Callable[..., Run], whole: Run, after: Iterable[int]) -> None:
    """Runs that break off after so many events, and go on, end as the whole one."""
    for events in after:
        store = MemoryStore()
        with pytest.raises(StoppedError):
            go(store, On(lambda record, event, store=store, events=events: stop_after(events, store)))
        run = go(store)
        assert run.end == whole.end
        assert schedule_of(run.session) == schedule_of(whole.session)
        assert run.kept == whole.kept[len(whole.kept) - len(run.kept) :]


def stop_after(events: int, store: MemoryStore) -> None:
    if len(store.events) == events:
        raise StoppedError("test")


def test_reads_and_progress_are_every_16_steps() -> None:
    done: list[tuple[str, int, float]] = []

    def progress(record: Record, instruction: Any, count: int, loss: float) -> None:
        done.append((type(instruction).__name__, count, loss))

    session = session_of(50, Scripted(rates=(0.02,), length=20), callbacks=[On(progress=progress)], every=40)
    simple(session)
    for _ in session.batches(ones()):
        session.report(float(session.step))
    assert done == [
        ("Probe", 16, 7.5), ("Probe", 20, 17.5),
        ("Train", 16, 7.5), ("Train", 32, 23.5), ("Train", 40, 35.5), ("Train", 8, 43.5), ("Train", 10, 48.5),
    ]  # fmt: skip


def test_a_beat_never_counts_as_running_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolrs.director.BEAT_SECONDS", -1.0)
    store = MemoryStore()
    session = session_of(40, Scripted(rates=(0.02,), length=20), store=store, every=10)
    simple(session)
    finish(session)
    assert [beat["running"] for beat in store.beats] == [16, 20, 10, 6, 10, 10, 2, 10]
    # A beat comes before its steps are stored: the event that follows is theirs.
    following = [store.events[beat["events"]] for beat in store.beats]
    stops = [event.steps if isinstance(event, Probed) else event.stop for event in following]
    assert stops == [20, 20, 10, 20, 20, 30, 40, 40]


def test_the_deadline_stops_the_run_saved() -> None:
    store = MemoryStore()
    session = session_of(100, store=store, every=100, deadline=1e-9)
    simple(session)
    with pytest.raises(StoppedError, match=r"stopped at step 16 of 100 \(max_seconds is over\)"):
        finish(session)
    assert record_of(session).kept_steps == 16
    assert 16 in store.checkpoints.trees


# Divergence of the kept run


def diverging(session: Session, at: Callable[[int], bool]) -> list[tuple[int, float, int]]:
    """Runs a loop whose loss is NaN at some items; what it saw: step, rate, item."""
    simple(session)
    session.state["updates"] = 0
    seen = []
    for number, inputs in enumerate(session.batches(iter_items())):
        assert session.state["updates"] == session.step
        session.state["updates"] += 1
        seen.append((session.step, session.lr, int(inputs)))
        session.report(math.nan if at(number) else 1.0)
    return seen


def iter_items() -> list[torch.Tensor]:
    return [torch.tensor(float(number)) for number in range(1000)]


def test_a_kept_run_that_diverges_goes_back_with_half_the_rate_and_on_with_the_data() -> None:
    store = MemoryStore()
    session = session_of(40, store=store, every=10)
    seen = diverging(session, lambda number: number == 13)
    # The loss of item 13, step 13, is read at step 16: back to the checkpoint of step 10, on with item 16.
    assert [step for step, *_ in seen] == [*range(16), *range(10, 40)]
    assert [item for *_, item in seen] == list(range(46))
    assert [rate for _, rate, _ in seen] == [0.1] * 16 + [0.05] * 30
    assert store.of(RolledBack) == [RolledBack(16, 10, 0.5, "loss nan at step 13")]
    record = record_of(session)
    assert record.discarded_steps == 6
    assert schedule_of(session).over(8, 12) == [0.1, 0.1, 0.05, 0.05]
    assert record.finished


def test_the_losses_that_were_rolled_back_do_not_count() -> None:
    session = session_of(14, every=10)
    simple(session)
    for number, _ in enumerate(session.batches(ones())):
        session.report(math.nan if number == 12 else float(session.step))
    assert len(record_of(session).roll_backs) == 1
    assert record_of(session).final_loss == sum(range(14)) / 14


def test_after_three_roll_backs_it_is_an_error_that_keeps_everything() -> None:
    store = MemoryStore()
    session = session_of(40, store=store, every=10)
    with pytest.raises(DivergedError, match=r"diverged again.*after 3 roll-backs.*All is kept up to step 10") as caught:
        diverging(session, lambda number: number >= 13)
    assert isinstance(caught.value, ArithmeticError)
    assert len(store.of(RolledBack)) == 3
    assert record_of(session).kept_steps == 10
    assert schedule_of(session)(20) == 0.1 / 8
    assert 10 in store.checkpoints.trees
    assert "Finished" not in names(store)


def test_the_kept_run_may_diverge_after_a_search() -> None:
    store = MemoryStore()
    session = session_of(40, Scripted(rates=(0.02,), length=8, keep=4), store=store, every=10)
    diverging(session, lambda number: number == 20)
    (event,) = store.of(RolledBack)
    assert (event.at, event.to) == (20, 10)
    assert session.done
    assert schedule_of(session).over(9, 11) == [0.02, 0.01]


def test_the_loss_is_nan_from_the_first_step() -> None:
    session = session_of(40, every=10)
    with pytest.raises(DivergedError, match="loss nan at step 0"):
        diverging(session, lambda number: True)
    assert record_of(session).kept_steps == 0


def test_a_roll_back_to_a_damaged_checkpoint_goes_further_back() -> None:
    store = MemoryStore()
    session = session_of(40, store=store, every=10)
    latest = store.checkpoints.latest

    def damaged(at_most: int | None = None) -> Any:
        step, tree, _ = latest(at_most if at_most != 20 else 10)
        return step, tree, ["step 20 is damaged."] if at_most == 20 else []

    store.checkpoints.latest = damaged  # type: ignore[method-assign]
    seen = diverging(session, lambda number: number == 25)
    assert store.of(Reverted) == [Reverted(10, "the checkpoint of the last kept step is damaged")]
    (event,) = store.of(RolledBack)
    assert event.to == 10
    assert [step for step, *_ in seen] == [*range(30), *range(10, 40)]
    assert session.done


# Memory


def test_a_one_shot_loader_that_outgrows_the_memory_is_refused_with_the_remedy() -> None:
    session = session_of(40, Scripted(length=20), replay_memory=500)
    simple(session)
    with pytest.raises(LoaderError, match=r"exceed the cap of 500 bytes.*list_iterator.*Raise replay_memory"):
        finish(session, iter(ones(100)))


def test_a_one_shot_loader_that_fits_is_searched() -> None:
    session = session_of(40, Scripted(length=20), replay_memory=20 * 3 * 6 * 4)
    simple(session)
    seen = [(session.is_probe, float(item[0, 0])) for item in steps_of(session, iter(ones(40)))]
    values = [float(value) for value in range(1, 41)]
    assert [value for probe, value in seen if probe] == values[:20] * 2
    assert [value for probe, value in seen if not probe] == values


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_a_loop_that_writes_into_its_batches_spoils_no_probe(memory: int) -> None:
    session = session_of(10, Scripted(length=10), replay_memory=memory)
    simple(session)
    seen = []
    for item in steps_of(session, ones(10)):
        seen.append(item.mean().item())
        item.zero_()
    assert seen == [float(value) for value in range(1, 11)] * 3


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g: torch.rand((), generator=g).item()),
    "numpy": (lambda: np.random.default_rng(3), lambda g: float(g.random())),
    "random-state": (lambda: np.random.RandomState(3), lambda g: float(g.random_sample())),
    "python": (lambda: random.Random(3), lambda g: float(g.random())),
}


@pytest.mark.parametrize("memory", [1 << 30, 20])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_tracked_generator_gives_data_and_loop_what_a_plain_run_would(kind: str, memory: int) -> None:
    make, number = GENERATORS[kind]

    def run(strategy: Any) -> list[tuple[int, float, float]]:
        generator = make()

        class Noisy(Augmented):
            def __getitem__(self, index: int) -> Any:
                return index + number(generator)

        seed_all()
        session = session_of(20, strategy, replay_memory=memory)
        simple(session, generator=generator)
        seen = []
        for item in session.batches(DataLoader(Noisy(8), 2, shuffle=True)):
            found = session.step, item.sum().item(), number(generator)
            if not session.is_probe:
                seen.append(found)
            session.report(1.0)
        return seen

    assert run(Scripted(length=7, stages=2)) == run(None)


def test_gradients_are_gone_after_a_rewind() -> None:
    session = session_of(10, Scripted(length=5))
    model, _ = simple(session)
    found = []
    for inputs in session.batches(ones()):
        found.append(model.weight.grad is None)
        model(inputs).sum().backward()
        session.report(1.0)
    assert found == [True, False, False, False, False] * 2 + [True] + [False] * 9


def test_a_rate_written_during_a_probe_is_refused() -> None:
    session = session_of(40, Scripted(length=20))
    _, optimizer = simple(session)
    with pytest.raises(RateOverriddenError):
        finish(session, body=lambda: optimizer.param_groups[0].update(lr=0.7))
    assert record_of(session).probe_steps == 0
