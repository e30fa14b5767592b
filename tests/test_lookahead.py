"""Lookahead: the paper's two lines, exact wherever a run is put back, goes on, or is replayed."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Scripted
from ray_loops import run_on_ray, story
from test_restore_best import OVERFITS, overfitting
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tuned_loops import SEARCH, Killed, build, dying_beside, finish, loop, plain, run, stop_at, update

import autolrs
from autolrs.checkpoints import CheckpointStore
from autolrs.errors import IdentityError, SettingError, StoppedError
from autolrs.exports import export
from autolrs.lookahead import EVERY, SHARE, Lookahead, draw_back
from autolrs.records import Finished, Probed, Trained
from autolrs.schedules import Schedule
from autolrs.session import Session
from autolrs.storage import StudyStore

AHEAD: dict[str, Any] = {"lookahead": True}

Make = Callable[[list[nn.Parameter]], Optimizer]


class Twice(torch.optim.Adam):
    """Its hooks run twice an update, once torch has met its base class by itself."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


MAKES: dict[str, Make] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.1),
    "fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "nadam": partial(torch.optim.NAdam, lr=0.1),
    "twice": partial(Twice, lr=0.1),
    "groups": lambda both: torch.optim.Adam([{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(both)]),
}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(n, dtype=torch.float64)) for n in (3, 5)]


def pull(parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
    """One update towards 1."""
    optimizer.zero_grad()
    torch.stack([(p - 1).square().sum() for p in parameters]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", MAKES.values(), ids=list(MAKES))
def test_it_is_algorithm_1(make: Make) -> None:
    """The slow weights begin after the first update; else it is the paper's, line for line."""
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # see `Twice`
    mine, theirs = weights(), weights()
    optimizer, twin = make(mine), make(theirs)
    ahead, slow = Lookahead(optimizer), list[Tensor]()
    for count in range(1, 4 * EVERY):
        pull(mine, optimizer)
        ahead.after(count)
        pull(theirs, twin)
        if count == 1:
            slow = [p.detach().clone() for p in theirs]
        elif count % EVERY == 0:
            slow = [s + SHARE * (p.detach() - s) for s, p in zip(slow, theirs, strict=True)]
            for p, s in zip(theirs, slow, strict=True):
                p.data.copy_(s)
        torch.testing.assert_close([p.data for p in mine], [p.data for p in theirs], rtol=1e-14, atol=1e-14)


def test_an_update_is_counted_once() -> None:
    parameters = weights()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    ahead = Lookahead(optimizer)
    for count in range(1, EVERY + 1):
        pull(parameters, optimizer)
        ahead.after(count)
    drawn = [p.data.clone() for p in parameters]
    ahead.after(EVERY)
    assert all(map(torch.equal, (p.data for p in parameters), drawn))


def test_it_is_put_back_bit_for_bit_and_shares_no_memory() -> None:
    parameters = weights()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    ahead = Lookahead(optimizer)
    empty = ahead.capture()

    def go(start: int, stop: int) -> list[Tensor]:
        for count in range(start, stop):
            pull(parameters, optimizer)
            ahead.after(count + 1)
        return [p.data.clone() for p in parameters]

    there = go(0, EVERY + 2)
    tree = ahead.capture()
    kept = copy.deepcopy(tree)
    end = go(EVERY + 2, 3 * EVERY)
    for _ in range(2):
        for p, value in zip(parameters, there, strict=True):
            p.data.copy_(value)
        ahead.restore(tree)
        assert all(map(torch.equal, go(EVERY + 2, 3 * EVERY), end))
    assert all(map(torch.equal, tree["slow"], kept["slow"]))
    ahead.restore(empty)
    assert ahead.capture() == {"kind": "lookahead", "count": 0, "slow": []}


def exported(schedule: Schedule) -> Any:
    module: dict[str, Any] = {}
    exec(compile(export(schedule, "python", name="run"), "schedule.py", "exec"), module)
    return module["scheduler"]


@pytest.mark.parametrize("scheduler_of", [lambda schedule: schedule.to_lambda_lr, exported], ids=["own", "exported"])
def test_a_plain_loop_goes_on_from_its_own_checkpoint(scheduler_of: Callable[[Schedule], Any]) -> None:
    schedule = Schedule(Schedule.build("wsd", rate=0.1, steps=4 * EVERY).pieces, lookahead=True)

    def start() -> tuple[list[nn.Parameter], Optimizer, LambdaLR]:
        parameters = weights()
        optimizer = torch.optim.Adam(parameters)
        return parameters, optimizer, scheduler_of(schedule)(optimizer)

    def go(parameters: list[nn.Parameter], optimizer: Optimizer, scheduler: LambdaLR, steps: int) -> list[Tensor]:
        for _ in range(steps):
            pull(parameters, optimizer)
            scheduler.step()
        return [p.data.clone() for p in parameters]

    first = start()
    there = go(*first, EVERY + 2)
    saved = copy.deepcopy(first[1].state_dict()), first[2].state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    end = go(*first, 2 * EVERY)
    for optimizer_state, state in (saved, saved, torch.load(file, weights_only=True)):
        other = start()
        for p, value in zip(other[0], there, strict=True):
            p.data.copy_(value)
        other[1].load_state_dict(copy.deepcopy(optimizer_state))
        other[2].load_state_dict(state)
        assert all(map(torch.equal, go(*other, 2 * EVERY), end))


def test_a_schedule_says_it_plainly() -> None:
    schedule = Schedule.build("wsd", rate=0.1, steps=20)
    assert "lookahead" not in schedule.to_json()
    ahead = replace(schedule, lookahead=True)
    assert Schedule.from_json(ahead.to_json()) == ahead != schedule
    with pytest.raises(SettingError, match="lookahead is True or False"):
        Schedule.from_json({**schedule.to_json(), "lookahead": "false"})


# In a run


def test_the_run_is_what_a_plain_loop_does_with_its_schedule(tmp_path: Path) -> None:
    study = run(tmp_path, **AHEAD)
    without = run(tmp_path / "without")
    assert study.exact
    assert study.schedule.lookahead
    assert study.result == plain(study.schedule)
    assert study.result["weights"] != plain(replace(study.schedule, lookahead=False))["weights"]
    assert study.schedule.rates(0) == without.schedule.rates(0)
    study.schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == study.schedule
    assert not without.schedule.lookahead


def test_probes_look_ahead_too_and_nothing_does_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[bool, int]] = []
    sessions: list[Session] = []

    def noted(optimizer: Optimizer, slow: list[Tensor], count: int) -> None:
        drawn.append((sessions[0].is_probe, count))
        draw_back(optimizer, slow, count)

    monkeypatch.setattr("autolrs.lookahead.draw_back", noted)

    def train(session: Session) -> None:
        sessions.append(session)
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))
        for batch in loader:
            update(model, optimizer, batch)

    run(tmp_path, train, strategy=Scripted(rates=(3e-3, 1e-2), length=10), **AHEAD)
    probes = [(True, count) for _ in range(2) for count in range(1, 11)]
    assert drawn == [*probes, *((False, count) for count in range(1, 61))]


def test_a_second_run_of_one_optimizer_knows_nothing_of_the_first(tmp_path: Path) -> None:
    model, optimizer, loader = build()
    moved = []
    for name in "ab":
        with autolrs.attach(
            model=model, optimizer=optimizer, steps=60, name=name, storage=str(tmp_path), search_budget=0, **AHEAD
        ) as session:
            for batch in session.batches(loader):
                before = model[0].weight.detach().clone()
                session.report(update(model, optimizer, batch))
                moved.append((model[0].weight.detach() - before).norm().item())
        with torch.no_grad():
            model[0].weight.add_(10.0)
    assert max(moved) < 1.0


def test_a_loop_that_leaves_each_pass_after_a_report_ends_the_same(tmp_path: Path) -> None:
    def leaving(session: Session) -> float:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        while not session.done:
            for number, batch in enumerate(session.batches(loader, epochs=1)):
                session.report(update(model, optimizer, batch))
                if number == 3:
                    break
        return model[0].weight.double().sum().item()

    study = run(tmp_path, leaving, search_budget=0, **AHEAD)
    torch.manual_seed(0)
    model, optimizer, loader = build()
    scheduler = study.schedule.to_lambda_lr(optimizer)
    for _ in range(15):
        for _, batch in zip(range(4), loader, strict=False):
            update(model, optimizer, batch)
            scheduler.step()
    assert study.result == model[0].weight.double().sum().item()


def test_a_roll_back_takes_the_slow_weights_back_too(tmp_path: Path) -> None:
    met: dict[int, list[Tensor]] = {}  # weights after each kept update, before they are drawn back
    spoiled = []

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            loss = update(model, optimizer, batch)
            if not session.is_probe:
                met[session.step + 1] = [p.detach().clone() for p in model.parameters()]
                if session.step == 43 and not spoiled:
                    spoiled.append(True)
                    loss = loss * math.nan
            session.report(loss)

    study = run(tmp_path, train, strategy=Scripted(rates=(3e-3,), length=10), **AHEAD)
    assert study.record.back_to == 32
    slow = met[1]
    for count in range(EVERY, 61, EVERY):
        slow = [s.lerp(p, SHARE) for s, p in zip(slow, met[count], strict=True)]
    saved = CheckpointStore(study.directory).load("final")["objects"]["session.lookahead"]
    assert saved["count"] == 60
    assert all(map(torch.equal, saved["slow"], slow))


@pytest.mark.parametrize("stored", [None, True, False])
def test_the_end_of_a_miniature_is_not_drawn_back_again(
    tmp_path: Path, stored: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose 17 updates are not the 150 of the whole run; nor if the process dies as it is chosen."""
    settings = OVERFITS | AHEAD | {"strategy": replace(OVERFITS["strategy"], length=17)}
    if stored is not None:
        monkeypatch.setattr(StudyStore, "append", dying_beside(Finished, stored=stored))
        with pytest.raises(Killed):
            run(tmp_path, overfitting(), **settings)
        monkeypatch.undo()
    study = run(tmp_path, overfitting(), **settings)
    assert study.record.early is not None
    assert study.schedule.lookahead
    whole = run(tmp_path / "whole", overfitting(), **settings)
    assert (study.result["loss"], study.final_loss) == (whole.final_loss, whole.final_loss)


def test_averages_are_of_what_was_drawn_back(tmp_path: Path) -> None:
    study = run(tmp_path, strategy=Scripted(rates=(0.1,), length=20), average=True, **AHEAD)
    assert study.average is not None
    with pytest.raises(SettingError, match=r"needs `session\.validate"):
        run(tmp_path / "without", loop(validate=False), average=True, **AHEAD)


def test_the_exported_python_does_the_same(tmp_path: Path) -> None:
    study = run(tmp_path, **AHEAD)

    class Exported:
        steps = study.schedule.steps

        @staticmethod
        def to_lambda_lr(optimizer: Optimizer) -> Any:
            return exported(study.schedule)(optimizer)

    assert plain(Exported()) == study.result  # type: ignore[arg-type]
    assert "LookaheadLR" not in export(replace(study.schedule, lookahead=False), "python")


@pytest.mark.parametrize("updates", [3, 12, 29, 41, 52, 70, 79])
def test_a_run_that_was_stopped_anywhere_ends_the_same(tmp_path: Path, updates: int) -> None:
    whole = run(tmp_path / "whole", **AHEAD)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", loop(each=stop_at(updates)), **AHEAD)
    again = run(tmp_path / "broken", **AHEAD)
    assert (again.result, again.final_loss) == (whole.result, whole.final_loss)


@pytest.mark.parametrize("kind", [Probed, Trained])
def test_a_run_that_dies_beside_an_event_ends_the_same(
    tmp_path: Path, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyStore, "append", dying_beside(kind, stored=True))
    with pytest.raises(Killed):
        run(tmp_path / "broken", **AHEAD)
    monkeypatch.undo()
    assert run(tmp_path / "broken", **AHEAD).result["weights"] == run(tmp_path / "whole", **AHEAD).result["weights"]


def test_in_another_process_it_ends_the_same(tmp_path: Path) -> None:
    assert finish(tmp_path / "a", AHEAD)["result"]["weights"] == run(tmp_path / "b", **AHEAD).result["weights"]


def test_a_worker_looks_ahead_as_the_serial_run_does(tmp_path: Path) -> None:
    assert story(run_on_ray(tmp_path / "ray", **AHEAD)) == story(run(tmp_path / "serial", **AHEAD))


def test_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="lookahead is True or False"):
        run(tmp_path, lookahead=5)
    with pytest.raises(StoppedError):
        run(tmp_path, loop(each=stop_at(35)), strategy=SEARCH)
    with pytest.raises(IdentityError, match="lookahead was False, now True"):
        run(tmp_path, strategy=SEARCH, **AHEAD)
