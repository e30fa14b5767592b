"""The session, from the loop's side: what a training loop may do, must not do, and is told."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import (
    Augmented,
    MemoryStore,
    Scripted,
    digest,
    finish,
    network,
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
from test_batches import EpochSampler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from autolrs.checkpoints import CheckpointStore
from autolrs.errors import (
    AutoLRSError,
    IdentityError,
    LoaderError,
    RateOverriddenError,
    SessionError,
    SettingError,
    StoppedError,
    UnsupportedError,
    UntrackableError,
)
from autolrs.records import Opened, Probed, Started, TrialState
from autolrs.session import Session
from autolrs.space import SearchSpace
from autolrs.strategies.horizon import Horizon
from autolrs.tuner import tune

Make = Callable[[], Iterable[Any]]
MAKES: dict[str, Make] = {"global": shuffled, "own": lambda: shuffled(own=True)}


# Plain training


@pytest.mark.parametrize("base", ["constant", "wsd"])
@pytest.mark.parametrize("make", MAKES)
def test_without_a_budget_it_is_plain_training_bit_for_bit(make: str, base: str) -> None:
    session = session_of(45, base=base, every=7)
    run = tuned_run(session, MAKES[make], validate=True)
    assert schedule_of(session)(0) == 0.1
    assert (run.kept, run.end) == plain_run(schedule_of(session), MAKES[make])
    assert not run.probed


@pytest.mark.parametrize("keep", [0, 9])
@pytest.mark.parametrize("make", MAKES)
def test_a_plain_loop_on_the_schedule_ends_with_the_same_bits(make: str, keep: int) -> None:
    session = session_of(60, Scripted(keep=keep, length=15, stages=2), every=8)
    run = tuned_run(session, MAKES[make], validate=True)
    seen, end = plain_run(schedule_of(session), MAKES[make])
    assert run.end == end
    adopted = {step for stage in record_of(session).stages for step in range(stage.start, stage.start + keep)}
    assert run.kept == [each for each in seen if each.step not in adopted]
    assert len(run.probed) == 2 * 2 * 15


class Plain:
    """What a session is to a loop, with nothing but a schedule inside."""

    def __init__(self, schedule: Any) -> None:
        self.schedule, self.done, self.scheduler = schedule, 0, None

    def track(self, **objects: Any) -> None:
        self.scheduler = self.schedule.to_lambda_lr(objects["optimizer"])

    def validate(self, function: Callable[[], Any]) -> None:
        pass

    def report(self, loss: Any) -> None:
        self.done += 1
        self.scheduler.step()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        while True:
            for item in loader:
                yield item
                if self.done == self.schedule.steps:
                    return


@pytest.mark.parametrize("strategy", [Horizon(length=0.2, adopt=True), "horizon", "autolrs"])
def test_a_real_study_on_disk_is_replayed_bit_for_bit(tmp_path: Path, strategy: Any) -> None:
    def train(session: Any) -> dict[str, str]:
        model, loader = network(), shuffled(own=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: model.eval()(torch.ones(5, 6)).square().mean())
        for _, inputs in session.batches(loader):
            session.report(update(model, optimizer, inputs))
        return {"weights": digest(model), "rng": rng_digest()}

    space = SearchSpace("test", (1e-3, 1.0), warmup=0.05)
    study = tune(train, steps=80, space=space, strategy=strategy, search_budget=0.6, storage=str(tmp_path), seed=4)
    assert study.exact
    assert study.cost.probe_steps > 20
    assert study.cost.adopted_steps == (8 if isinstance(strategy, Horizon) else study.cost.adopted_steps)
    probes = sum(len(stage.trials) for stage in study.stages)
    assert strategy == "autolrs" or study.cost.validation_calls <= probes + len(study.stages) + 1
    seed_all(4)
    assert train(Plain(study.schedule)) == study.result


# What the loop may do


def test_gradient_accumulation_reports_once_per_update() -> None:
    """Two items an update; the last item of a pass may be the first half of the next one's."""

    def accumulate(items: Iterator[Tensor], model: nn.Module, optimizer: Any, report: Callable[[Tensor], None]) -> None:
        for number, inputs in enumerate(items):
            loss = model(inputs).square().mean() / 2
            loss.backward()
            if number % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                report(loss)

    for strategy in (None, Scripted(length=6)):
        seed_all()
        session = session_of(20, strategy)
        model, optimizer = simple(session)
        steps: list[int] = []

        def report(loss: Tensor, session: Session = session, steps: list[int] = steps) -> None:
            steps.append(session.step)
            session.report(loss)

        accumulate(session.batches(ones()), model, optimizer, report)
        probes = 2 * list(range(6)) if strategy else []
        assert steps == probes + list(range(20))
        seed_all()
        twin = nn.Linear(6, 1)
        sgd = torch.optim.SGD(twin.parameters(), lr=schedule_of(session)(0))
        accumulate(itertools.islice(itertools.cycle(ones(5)), 40), twin, sgd, lambda loss: None)
        assert digest(model) == digest(twin)


def test_an_update_that_the_scaler_skips_is_not_reported_and_not_counted() -> None:
    session = session_of(10)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    model, optimizer = simple(session, scaler=scaler)
    steps = []
    for number, inputs in enumerate(session.batches(ones())):
        factor = math.inf if number in (3, 4) else 1.0
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        scaler.scale(loss * factor).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            continue
        steps.append((number, session.step))
        session.report(loss)
    assert steps == [(0, 0), (1, 1), (2, 2), (5, 3), (6, 4), (7, 5), (8, 6), (9, 7), (10, 8), (11, 9)]
    assert session.done
    assert scaler.get_scale() == 1.0


def test_a_scaler_is_rewound_with_the_model() -> None:
    session = session_of(20, Scripted(length=10))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    model, optimizer = simple(session, scaler=scaler)
    scales: dict[int, set[float]] = {}
    for inputs in session.batches(ones()):
        scales.setdefault(session.step, set()).add(scaler.get_scale())
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        session.report(loss)
    assert scales == {step: {4.0 * 2 ** (step // 3)} for step in range(20)}


def test_state_is_rewound_and_survives_a_resume(tmp_path: Path) -> None:
    store = MemoryStore(CheckpointStore(tmp_path))
    seen: list[tuple[int, int]] = []

    def train(stop_at: int) -> None:
        session = session_of(30, Scripted(length=10), store=store, every=10)
        simple(session)
        session.state.setdefault("count", 0)
        assert session.state["count"] == session.step == record_of(session).kept_steps
        for _ in steps_of(session):
            seen.append((session.step, session.state["count"]))
            session.state["count"] += 1
            if len(seen) == stop_at:
                session.halt("test")

    with pytest.raises(StoppedError, match=r"stopped at step 13 of 30 \(test\)"):
        train(33)
    train(0)
    assert seen == [(step, step) for step in (*range(10), *range(10), *range(30))]


def test_the_loss_may_be_a_number_of_any_kind() -> None:
    for loss in (1, 0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, requires_grad=True), math.pi):
        session = session_of(5)
        simple(session)
        finish(session, loss=loss)
        assert session._director.record.final_loss == pytest.approx(float(torch.as_tensor(loss).detach()))


def test_a_loss_that_is_summed_up_in_place_counts_as_it_was_when_reported() -> None:
    session = session_of(20)
    simple(session)
    running = torch.zeros(())
    for _ in session.batches(ones()):
        running += session.step
        session.report(running)
        running.zero_()
    assert record_of(session).kept[0].curve.losses == tuple(float(step) for step in range(20))


def test_steps_outside_of_batches_are_the_users_own() -> None:
    session = session_of(6)
    _, optimizer = simple(session)
    optimizer.param_groups[0]["lr"] = 0.9  # read at `track`: this is too late to mean anything
    for _ in range(2):
        optimizer.step()
        for _ in steps_of(session, epochs=1):
            assert session.lr == optimizer.param_groups[0]["lr"] == 0.1
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.7
    assert session.done
    optimizer.step()


# Epochs


def test_batches_go_on_over_epochs_until_the_run_is_done() -> None:
    sampler = EpochSampler()
    session = session_of(12)
    simple(session)
    epochs: list[int] = []
    finish(session, DataLoader(Augmented(20), 4, sampler=sampler), body=lambda: epochs.append(session.epoch))
    assert epochs == [0] * 5 + [1] * 5 + [2] * 2
    assert sampler.told == [0, 1, 2]


@pytest.mark.parametrize("make", MAKES)
def test_an_epoch_loop_of_the_users_own_is_the_same_run(make: str) -> None:
    whole = tuned_run(session_of(45, every=7), MAKES[make])
    passes = tuned_run(session_of(45, every=7), MAKES[make], epochs=1)
    pairs = tuned_run(session_of(45, every=7), MAKES[make], epochs=2)
    assert (passes.kept, passes.end) == (pairs.kept, pairs.end) == (whole.kept, whole.end)


@pytest.mark.parametrize("sized", [True, False])
def test_a_probe_never_crosses_a_pass(sized: bool) -> None:
    """Six items a pass: a probe ends with it, and no stage begins where nothing is left of it."""
    store = MemoryStore()
    session = session_of(30, Scripted(length=20, stages=5), store=store)
    simple(session)
    sampler = EpochSampler(24)
    loader = DataLoader(Augmented(24), 4, sampler=sampler)

    class Unsized:
        def __init__(self) -> None:
            self.sampler = sampler

        def __iter__(self) -> Iterator[Any]:
            return iter(loader)

    seen: list[list[tuple[bool, int, tuple[int, ...]]]] = []
    while not session.done:
        assert session.epoch == len(seen)
        seen.append([])
        for index, _ in steps_of(session, loader if sized else Unsized(), epochs=1):
            assert session.epoch == len(seen) - 1
            seen[-1].append((session.is_probe, session.step, tuple(index.tolist())))
    assert sampler.told == [0, 1, 2, 3, 4]
    probes_a_pass = []
    for epoch, found in enumerate(seen):
        sampler.set_epoch(epoch)
        items = [tuple(index.tolist()) for index, _ in loader]
        expected = [(6 * epoch + at, items[at]) for at in range(6)]
        assert [each[1:] for each in found if not each[0]] == expected
        probed = [each[1:] for each in found if each[0]]
        assert probed == expected * (len(probed) // 6)
        probes_a_pass.append(len(probed) // 6)
    ends = {(event.state, event.reason) for event in store.of(Probed)}
    assert ends == {(TrialState.PRUNED, "the epoch ended")}
    assert probes_a_pass == [2] * 5
    assert [event.room for event in store.of(Opened)] == [6 if sized else None] * 5


def test_a_pass_that_ends_where_losses_are_read_ends_a_probe_too() -> None:
    store = MemoryStore()
    session = session_of(32, Scripted(length=20), store=store)
    simple(session)
    loader = type("Unsized", (), {"__iter__": lambda self: iter(ones(16))})()
    while not session.done:
        finish(session, loader, epochs=1)
    assert [(event.state, event.steps) for event in store.of(Probed)] == [(TrialState.PRUNED, 16)] * 2


def test_a_probe_that_diverged_by_the_end_of_the_pass_has_diverged() -> None:
    store = MemoryStore()
    session = session_of(20, Scripted(length=15), store=store)
    simple(session)
    loader = type("Unsized", (), {"__iter__": lambda self: iter(ones(10))})()
    while not session.done:
        for _ in session.batches(loader, epochs=1):
            session.report(math.nan if session.is_probe and session.step == 9 and session.lr == 0.02 else 1.0)
    first, second = store.of(Probed)
    assert (first.state, first.objective) == (TrialState.DIVERGED, None)
    assert (second.state, second.objective) == (TrialState.PRUNED, 1.0)


def test_accumulation_in_passes_carries_over() -> None:
    session = session_of(10)
    simple(session)
    total, reports = 0, 0
    while not session.done:
        for _ in session.batches(ones(5), epochs=1):
            total += 1
            if total % 2 == 0:
                assert session.step == reports
                session.report(1.0)
                reports += 1
    assert (total, reports) == (20, 10)


def test_the_last_pass_ends_with_the_run_and_further_ones_are_empty() -> None:
    store = MemoryStore()
    session = session_of(8, store=store)
    simple(session)
    counts = [finish(session, epochs=1) for _ in range(4)]
    assert counts == [5, 3, 0, 0]
    assert [type(event).__name__ for event in store.events].count("Finished") == 1


def test_leaving_a_pass_early_begins_the_next_one() -> None:
    sampler = EpochSampler()
    session = session_of(9)
    simple(session)
    loader = DataLoader(Augmented(20), 4, sampler=sampler)
    epochs = []
    while not session.done:
        for taken, _ in enumerate(session.batches(loader, epochs=1)):
            if taken == 3:
                break
            epochs.append(session.epoch)
            session.report(1.0)
    assert epochs == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sampler.told == [0, 1, 2]


def test_leaving_in_the_middle_of_a_search_is_refused() -> None:
    session = session_of(20, Scripted())
    simple(session)
    for _ in session.batches(ones()):
        break
    with pytest.raises(SessionError, match=r"left in the middle of a search.*without `break`"):
        next(iter(session.batches(ones())))


# What the loop is told


def test_what_a_session_says_of_itself() -> None:
    session = session_of(20, Scripted(rates=(0.02,), length=5), args={"depth": "3"})
    assert dict(session.params) == {"clip": 1.0}
    assert dict(session.args) == {"depth": "3"}
    assert session.state == {}
    assert (session.step, session.epoch, session.done, session.is_probe) == (0, 0, False, False)
    with pytest.raises(SessionError, match="known from the first batch on"):
        _ = session.lr
    for mapping in (session.args, session.params):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]
    simple(session, lr=0.5)
    found = []
    for _ in session.batches(ones(4)):
        before = session.step, session.epoch, session.is_probe, session.lr
        session.report(1.0)
        assert session.step == before[0] + 1
        found.append(before)
    probes = [(step, step // 4, True, 0.02) for step in range(5)]
    assert found == probes + [(step, step // 4, False, 0.02) for step in range(20)]
    assert (session.step, session.epoch, session.done, session.is_probe, session.lr) == (20, 5, True, False, 0.02)


def test_the_reference_rate_is_the_first_groups_that_has_one() -> None:
    session = session_of(20, Scripted(rates=(0.02,), length=5))
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.0, 0.1, 0.05), strict=True)])
    session.track(optimizer=optimizer, weights=nn.ParameterList(parameters))
    for _ in steps_of(session):
        assert [group["lr"] for group in optimizer.param_groups] == [0.0, session.lr, session.lr * 0.5]
        assert session.lr == 0.02
        optimizer.step()
    assert schedule_of(session).rates(3) == (0.0, 0.02, 0.01)


def test_the_rates_of_the_groups_are_those_at_track() -> None:
    store = MemoryStore()
    session = session_of(5, store=store)
    _, optimizer = simple(session)
    ExponentialLR(optimizer, 0.5)
    optimizer.param_groups[0]["lr"] = 0.0
    finish(session)
    assert store.of(Started) == [Started(0.1, (1.0,), False)]


# Misuse


def test_another_rate_at_the_update_is_refused() -> None:
    session = session_of(20)
    _, optimizer = simple(session)

    def body() -> None:
        optimizer.param_groups[0]["lr"] = 0.3
        optimizer.step()

    with pytest.raises(RateOverriddenError, match=r"group 0 has the learning rate 0\.3, but the session set 0\.1"):
        finish(session, body=body)
    assert session.step == 0


def test_a_scheduler_that_was_left_in_the_loop_is_refused_at_the_next_read() -> None:
    session = session_of(60)
    _, optimizer = simple(session)
    scheduler = ExponentialLR(optimizer, 0.5)

    def body() -> None:
        optimizer.step()
        scheduler.step()

    with pytest.raises(RateOverriddenError, match=r"Remove the line that does, such as `scheduler.step\(\)`"):
        finish(session, body=body)
    assert session.step <= 16


def test_a_tracked_scheduler_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(UntrackableError, match="remove the scheduler from the loop"):
        session_of(5).track(optimizer=optimizer, scheduler=ExponentialLR(optimizer, 0.5))


def test_with_several_optimizers_one_is_named() -> None:
    def start(tuned: str | None) -> tuple[Session, list[Any]]:
        session = session_of(3, tuned=tuned)
        models = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        optimizers = [torch.optim.SGD(m.parameters(), lr=lr) for m, lr in zip(models, (0.1, 0.2), strict=True)]
        session.track(models=models, generator=optimizers[0], critic=optimizers[1])
        return session, optimizers

    with pytest.raises(
        SettingError, match=r"2 optimizers are tracked: say which is tuned, `tuned=` one of \['critic', "
    ):
        finish(start(None)[0])
    with pytest.raises(
        SettingError, match=r"tuned='actor' is not a tracked optimizer; tracked: \['critic', 'generator'"
    ):
        finish(start("actor")[0])
    session, optimizers = start("critic")
    for _ in steps_of(session):
        optimizers[0].param_groups[0]["lr"] = 0.7  # the other one is the user's own
        for optimizer in optimizers:
            optimizer.step()
    assert schedule_of(session)(0) == 0.2


def test_an_optimizer_is_needed() -> None:
    session = session_of(3)
    session.track(model=nn.Linear(1, 1))
    with pytest.raises(SessionError, match="needs a tracked optimizer"):
        finish(session)


def test_report_belongs_in_the_loop_once_per_update() -> None:
    session = session_of(3)
    with pytest.raises(SessionError, match=r"outside `batches`.*after `session.track\(model=model, optimizer"):
        session.report(1.0)
    simple(session)
    with pytest.raises(SessionError, match="outside `batches`") as caught:
        session.report(1.0)
    assert "track" not in str(caught.value)
    for index in (0, 1, 2):  # the last of the run, too
        session = session_of(3)
        simple(session)

        def twice(session: Session = session, index: int = index) -> None:
            if session.step == index:
                session.report(1.0)

        with pytest.raises(SessionError, match="`report` was called twice for one item"):
            finish(session, body=twice)
    with pytest.raises(SessionError, match="outside `batches`"):
        session.report(1.0)


def test_track_and_validate_come_before_the_first_batch() -> None:
    session = session_of(3)
    simple(session)
    for _ in steps_of(session):
        with pytest.raises(SessionError, match="`track` must be called before the first batch"):
            session.track(late={})
        with pytest.raises(SessionError, match="`validate` must be called before the first batch"):
            session.validate(lambda: 0.0)
    with pytest.raises(SessionError, match="before the first batch"):
        session.track(late={})


def test_a_name_is_tracked_once() -> None:
    session = session_of(3)
    session.track(extra={})
    with pytest.raises(SettingError, match="`track` got 'extra' twice"):
        session.track(extra={})
    with pytest.raises(UntrackableError, match=r"track\(number=...\)` got int"):
        session.track(number=3)


def test_one_loop_at_a_time() -> None:
    session = session_of(3)
    simple(session)
    for _ in steps_of(session):
        with pytest.raises(SessionError, match="already being iterated"):
            next(session.batches(ones()))


@pytest.mark.parametrize("empty", [[], iter(())])
def test_a_loader_that_yields_nothing_is_refused(empty: Iterable[Any]) -> None:
    session = session_of(3)
    simple(session)
    with pytest.raises(LoaderError, match="yields nothing"):
        finish(session, empty)


def test_a_loader_that_is_used_up_is_refused() -> None:
    session = session_of(9)
    simple(session)
    with pytest.raises(
        LoaderError, match=r"\(list_iterator\) yields nothing in epoch 1.*one-shot iterator that is used up"
    ):
        finish(session, iter(ones()))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    session = session_of(3)
    simple(session)
    with pytest.raises(SessionError, match=r"`report` needs a scalar loss, but got shape \(2,\): reduce it first"):
        finish(session, loss=torch.ones(2))


def test_groups_added_after_track_are_refused() -> None:
    session = session_of(60)
    _, optimizer = simple(session)

    def body() -> None:
        if session.step == 3:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})

    with pytest.raises(SessionError, match="2 parameter groups, but it had 1 when it was tracked"):
        finish(session, body=body)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    session = session_of(3)
    simple(session)
    with pytest.raises(UnsupportedError, match=r"runs with 4 processes, which autolrs does not support") as caught:
        finish(session)
    assert isinstance(caught.value, NotImplementedError)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert finish(session) == 3


def test_every_error_is_an_autolrs_error_and_the_fitting_builtin() -> None:
    for kind, builtin in ((SessionError, RuntimeError), (SettingError, ValueError), (LoaderError, ValueError)):
        assert issubclass(kind, AutoLRSError)
        assert issubclass(kind, builtin)


def test_the_users_own_exception_comes_out_of_the_loop_unchanged() -> None:
    session = session_of(20, every=4)
    simple(session)
    error = KeyError("mine")

    def body() -> None:
        if session.step == 10:
            raise error

    with pytest.raises(KeyError) as caught:
        finish(session, body=body)
    assert caught.value is error
    assert record_of(session).kept_steps == 8
    assert session.unsaved_steps() == 2


# Stopping and going on


class HaltAt:
    """A callback that asks for a stop once so many steps are kept."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.session: Any = None

    def on_event(self, record: Any, event: Any) -> None:
        if record.kept_steps == self.step:
            raise StoppedError("test")

    def on_progress(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("at", [0, 1, 7, 15, 16, 17, 24, 33])
def test_a_halt_saves_and_stops_at_the_next_item_and_another_session_goes_on(at: int, tmp_path: Path) -> None:
    whole = tuned_run(session_of(40, every=12), shuffled)
    store = MemoryStore(CheckpointStore(tmp_path))
    session = session_of(40, store=store, every=12)
    if at == 0:
        session.halt("SIGTERM")

    class Halting:
        """The signal arrives while the item of step `at - 1` is loaded."""

        def __iter__(self) -> Iterator[Any]:
            for item in loader:
                if session.step == at - 1:
                    session.halt("SIGTERM")
                yield item

    loader = shuffled()
    with pytest.raises(StoppedError, match=rf"stopped at step {at} of 40 \(SIGTERM\); all is saved"):
        tuned_run(session, Halting)
    assert session.unsaved_steps() == 0
    again = tuned_run(session_of(40, store=store, every=12), shuffled)
    assert [seen.step for seen in again.kept] == list(range(at, 40))
    assert (again.kept, again.end) == (whole.kept[at:], whole.end)
    assert record_of(again.session).final_loss == record_of(whole.session).final_loss


def test_the_same_things_are_tracked_when_it_goes_on() -> None:
    store = MemoryStore()
    session = session_of(10, store=store, callbacks=[HaltAt(6)], every=3)
    simple(session)
    with pytest.raises(StoppedError):
        finish(session)

    def go_on(**changes: Any) -> None:
        session = session_of(10, store=store)
        simple(session, **changes)
        finish(session)

    with pytest.raises(
        IdentityError, match=r"holds \['model', 'optimizer', 'session.state'\], but tracked are \['extra'"
    ):
        go_on(extra={})
    with pytest.raises(IdentityError, match=r"another reference learning rate: 0\.1, now 0\.2"):
        go_on(lr=0.2)
    go_on()


# Speed


class Spy:
    """Counts whatever makes the host wait for a device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[int] = []
        self.step: Callable[[], int] = lambda: -1
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy", "nonzero"):
            original = getattr(Tensor, name)

            def spied(tensor: Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Any:
                self.reads.append(self.step())
                return original(tensor, *args, **kwargs)

            monkeypatch.setattr(Tensor, name, spied)


def test_losses_are_read_every_16_reports_only(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(100, every=100)
    _, optimizer = simple(session)
    losses = [torch.tensor(1.0, requires_grad=True) for _ in range(100)]
    spy = Spy(monkeypatch)
    spy.step = lambda: session.step
    for number, _ in enumerate(session.batches(ones())):
        optimizer.step()
        session.report(losses[number])
        _ = session.step, session.epoch, session.is_probe, session.done, session.lr
    reads = [step for step in spy.reads if step < 100]
    assert set(reads) == {16, 32, 48, 64, 80, 96}
    assert len(reads) == 96


def test_probes_are_read_every_16_steps_and_where_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(100, Scripted(rates=(0.02,), length=40, keep=21))
    simple(session)
    losses = iter([torch.tensor(1.0, requires_grad=True) for _ in range(140)])
    spy = Spy(monkeypatch)
    spy.step = lambda: session.step if session.is_probe else -1
    for _ in session.batches(ones()):
        session.report(next(losses))
    assert {step for step in spy.reads if step >= 0} == {16, 21, 32, 40}


# Compiled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it traces
def test_a_compiled_loop_is_not_compiled_again_when_rates_change_and_states_are_rewound() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    seed_all()
    session = session_of(60, Scripted(rates=(0.02, 0.05, 0.01), length=20, keep=8, stages=2), every=10)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
    compiled = torch.compile(model, backend=compiler)
    step = torch.compile(lambda: optimizer.step(), backend=compiler)
    session.track(model=compiled, optimizer=optimizer)
    counts, rates = [], set()
    for inputs in session.batches(ones()):
        loss = compiled(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        step()
        rates.add(session.lr)
        counts.append(len(graphs))
        session.report(loss)
    assert len(rates) == 3
    starts = counts[0], counts[20], counts[40]  # torch compiles the step of an optimizer without state, at each probe
    assert counts == [count for count in starts for _ in range(20)] + [starts[-1]] * (len(counts) - 60)
    assert len(counts) == 60 - 8 + 60 + 60 - 8


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_loop_compiled_to_machine_code_trains_on_the_sessions_rates() -> None:
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        seed_all()
        session = session_of(30, Scripted(length=10))
        model = nn.Linear(6, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        session.track(model=model, optimizer=optimizer)
        forward, step = (torch.compile(model), torch.compile(optimizer.step)) if compiled else (model, optimizer.step)
        for inputs in session.batches(ones()):
            loss = forward(inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            step()
            session.report(loss)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1])


# Mistakes that would show in nothing but the result


def test_an_optimizer_alone_is_refused_for_no_probe_could_be_undone() -> None:
    session, model = session_of(20, Scripted()), network()
    session.track(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UntrackableError, match="the optimizer trains 6 tensors that nothing tracked holds"):
        next(session.batches(shuffled()))
    session = session_of(20, Scripted())
    weights = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, {"params": [weights]}], lr=0.1)
    session.track(model=model, optimizer=optimizer)
    with pytest.raises(UntrackableError, match="trains 1 tensors"):
        next(session.batches(shuffled()))
    session.track(weights=weights)
    next(session.batches(shuffled()))


def test_a_scheduler_that_moves_between_two_reads_of_the_losses_is_told_at_once() -> None:
    session = session_of(40)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.track(model=model, optimizer=optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    done = 0
    with pytest.raises(RateOverriddenError, match=r"group 0 has the learning rate 0\.01"):  # noqa: PT012
        for batch in session.batches(shuffled()):
            session.report(update(model, optimizer, batch[1]))
            scheduler.step()
            done += 1
    assert done == 7


def test_a_scheduler_that_moves_between_passes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    session = session_of(30)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.track(model=model, optimizer=optimizer)
    scheduler = ExponentialLR(optimizer, 0.5)
    while not session.done:
        for batch in session.batches(shuffled(), epochs=1):
            session.report(update(model, optimizer, batch[1]))
        scheduler.step()
    assert [record.message for record in caplog.records if "between two passes" in record.message] == [
        "between two passes something else set the learning rate, to no effect, for the session sets it: remove the "
        "line that does, such as `scheduler.step()`."
    ]


def test_a_loop_of_short_passes_that_never_reports_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolrs.session.SILENCE", 50)
    session = session_of(30)
    model = network()
    session.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(SessionError, match="no `report` in 50 items"):  # noqa: PT012
        while not session.done:
            for _ in session.batches(shuffled(), epochs=1):
                pass


@pytest.mark.parametrize("loss", [None, "x"])
def test_a_report_of_nothing_is_named(loss: Any) -> None:
    session = session_of(30)
    model = network()
    session.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    items = session.batches(shuffled())
    next(items)
    with pytest.raises(SessionError, match="`report` takes a number or a tensor of one, but got"):
        session.report(loss)
