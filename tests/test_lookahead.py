"""Lookahead: the paper's two lines, in the optimizer's state, exact wherever a run is put back or replayed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Scripted
from ray_loops import run_on_ray, story
from torch import Tensor, nn
from torch.optim import Optimizer
from tuned_loops import SEARCH, Killed, build, dying_beside, finish, loop, plain, run, stop_at, update

from autolrs.errors import IdentityError, SettingError, StoppedError
from autolrs.exports import export
from autolrs.lookahead import EVERY, SHARE, look_ahead
from autolrs.records import Probed, Trained
from autolrs.schedules import Schedule
from autolrs.session import Session
from autolrs.snapshot import track
from autolrs.storage import StudyStore

AHEAD: dict[str, Any] = {"lookahead": True}

Make = Callable[[list[nn.Parameter]], Optimizer]
MAKES: dict[str, Make] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.1),
    "fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "one by one": partial(torch.optim.AdamW, lr=0.1, foreach=False),
    "nadam": partial(torch.optim.NAdam, lr=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(n, dtype=torch.float64)) for n in (3, 5)]


def pull(parameters: list[nn.Parameter], optimizer: Optimizer, *, only: int | None = None) -> None:
    """One update towards 1; of one parameter, or of all."""
    optimizer.zero_grad()
    chosen = parameters if only is None else [parameters[only]]
    torch.stack([(p - 1).square().sum() for p in chosen]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", MAKES.values(), ids=list(MAKES))
def test_it_is_algorithm_1(make: Make) -> None:
    """The slow weights begin after the first update; else it is the paper's, line for line."""
    mine, theirs = weights(), weights()
    optimizer, twin = make(mine), make(theirs)
    look_ahead(optimizer)
    slow: list[Tensor] = []
    for count in range(1, 4 * EVERY):
        pull(mine, optimizer)
        pull(theirs, twin)
        if count == 1:
            slow = [p.detach().clone() for p in theirs]
        elif count % EVERY == 0:
            slow = [s + SHARE * (p.detach() - s) for s, p in zip(slow, theirs, strict=True)]
            for p, s in zip(theirs, slow, strict=True):
                p.data.copy_(s)
        torch.testing.assert_close([p.data for p in mine], [p.data for p in theirs], rtol=1e-14, atol=1e-14)


def test_a_parameter_that_had_no_gradient_joins_where_it_is_first_met() -> None:
    """Adam takes a parameter whose state is not empty for one that it has updated."""
    parameters = weights()
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    look_ahead(optimizer)
    for _ in range(EVERY - 1):
        pull(parameters, optimizer, only=0)
    assert not optimizer.state[parameters[1]]
    pull(parameters, optimizer)
    assert torch.equal(optimizer.state[parameters[1]]["slow"], parameters[1].data)
    for _ in range(EVERY):
        pull(parameters, optimizer, only=0)
    assert torch.equal(optimizer.state[parameters[1]]["slow"], parameters[1].data)  # it has not moved since


def test_it_goes_where_the_optimizers_state_goes() -> None:
    """`state_dict` and snapshots hold it, so that the way from there is the same, bit for bit."""
    parameters = weights()
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    handle = look_ahead(optimizer)
    tracked = track("optimizer", optimizer)
    empty = tracked.capture()
    for _ in range(EVERY + 2):
        pull(parameters, optimizer)
    snapshot, saved = tracked.capture(), optimizer.state_dict()
    saved = torch.load(_stored(saved), weights_only=True)
    here = [p.data.clone() for p in parameters]

    def onwards(parameters: list[nn.Parameter], optimizer: Optimizer) -> list[Tensor]:
        for _ in range(2 * EVERY):
            pull(parameters, optimizer)
        return [p.data.clone() for p in parameters]

    end = onwards(parameters, optimizer)
    for _ in range(2):
        for p, value in zip(parameters, here, strict=True):
            p.data.copy_(value)
        tracked.restore(snapshot)
        assert all(map(torch.equal, onwards(parameters, optimizer), end))
    others = [nn.Parameter(value.clone()) for value in here]
    other = torch.optim.Adam(others, lr=0.1)
    other.load_state_dict(saved)
    look_ahead(other)
    assert all(map(torch.equal, onwards(others, other), end))
    tracked.restore(empty)
    assert not optimizer.state[parameters[0]]
    assert "lookahead" not in optimizer.param_groups[0]
    handle.remove()
    pull(parameters, optimizer)
    assert "slow" not in optimizer.state[parameters[0]]


def _stored(saved: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return file


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


def test_probes_look_ahead_too(tmp_path: Path) -> None:
    met: dict[bool, set[int]] = {False: set(), True: set()}

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))
            met[session.is_probe].add(optimizer.param_groups[0]["lookahead"])

    run(tmp_path, train, strategy=Scripted(rates=(3e-3, 1e-2), length=10), **AHEAD)
    assert met == {True: set(range(1, 11)), False: set(range(1, 61))}  # each probe from the start again


def test_when_the_run_is_over_the_optimizer_is_an_ordinary_one(tmp_path: Path) -> None:
    kept: list[Any] = []

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        kept.extend((model, optimizer, loader))
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    run(tmp_path, train, **AHEAD)
    model, optimizer, loader = kept
    count = optimizer.param_groups[0]["lookahead"]
    update(model, optimizer, next(iter(loader)))
    assert optimizer.param_groups[0]["lookahead"] == count


def test_the_exported_python_does_the_same(tmp_path: Path) -> None:
    study = run(tmp_path, **AHEAD)
    code = export(study.schedule, "python", name="run")
    module: dict[str, Any] = {}
    exec(compile(code, "schedule.py", "exec"), module)

    class Exported:
        steps = study.schedule.steps

        @staticmethod
        def to_lambda_lr(optimizer: Optimizer) -> Any:
            return module["scheduler"](optimizer)

    assert plain(Exported()) == study.result  # type: ignore[arg-type]
    assert "draw_back" not in export(replace(study.schedule, lookahead=False), "python")


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
