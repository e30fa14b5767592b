"""A run that overfits: the state at the end of its best probe is the final one, and nothing of it is lost."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Scripted, digest
from ray_loops import local_ray, run_on_ray, story
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tuned_loops import Body, Killed, build, data, dying_beside, loop, run, stop_at, update

import autolrs
from autolrs.checkpoints import CheckpointStore
from autolrs.errors import IdentityError, SettingError, StoppedError
from autolrs.records import Finished, Probed, Trained
from autolrs.report import report, summary
from autolrs.schedules import Schedule
from autolrs.session import Session
from autolrs.storage import StudyStore

OVERFITS: dict[str, Any] = {"strategy": Scripted(rates=(0.003, 0.02, 0.001), length=15, whole=True), "steps": 150}
"""The loop below learns 20 examples by heart, at the best of the rates soonest."""


def few() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    model, optimizer, _ = build()
    inputs, targets = data()
    noise = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    return model, optimizer, DataLoader(TensorDataset(inputs[:20], targets[:20] + noise), 10, shuffle=True)


def unseen(model: nn.Module) -> float:
    model.eval()
    inputs, targets = data()
    with torch.no_grad():
        return nn.functional.mse_loss(model(inputs[20:]), targets[20:]).item()


def overfitting(each: Body = lambda session, loss: None) -> Callable[[Session], dict[str, Any]]:
    def train(session: Session) -> dict[str, Any]:
        model, optimizer, loader = few()
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: unseen(model))
        session.state["seen"] = 0
        for batch in session.batches(loader):
            loss = update(model, optimizer, batch)
            session.state["seen"] += 1
            each(session, loss)
            session.report(loss)
        return {"weights": digest(model), "loss": unseen(model), "seen": session.state["seen"]}

    return train


def plain(schedule: Schedule) -> str:
    """Weights of a loop without autolrs that follows `schedule`."""
    torch.manual_seed(0)
    model, optimizer, loader = few()
    scheduler, done = schedule.to_lambda_lr(optimizer), 0
    while done < schedule.steps:
        for batch in loader:
            if done < schedule.steps:
                update(model, optimizer, batch)
                scheduler.step()
                done += 1
    return digest(model)


def test_the_final_state_is_that_of_the_best_probe_and_a_plain_loop_gives_it_again(tmp_path: Path) -> None:
    study = run(tmp_path, overfitting(), **OVERFITS)
    best = min(study.stages[0].trials, key=lambda trial: trial.objective or math.inf)
    whole = run(tmp_path / "whole", overfitting(), **OVERFITS, restore_best=False)
    assert whole.early is None
    assert study.early == best
    assert study.final_loss == best.objective == study.result["loss"] < whole.final_loss
    assert study.record.plain_loss == whole.final_loss
    assert study.result["seen"] == best.steps  # the loop's own state goes with the weights
    assert whole.result["seen"] == study.steps
    # It has a schedule of its own, which is short.
    assert study.schedule.steps == best.length
    assert study.exact
    assert plain(study.schedule) == study.result["weights"] != whole.result["weights"]
    # All else is as it was: what was trained, probed and decided, and what it cost.
    assert study.record.schedule == whole.schedule
    assert study.stages == whole.stages
    assert study.cost.search_cost == whole.cost.search_cost
    assert study.cost.validation_calls == whole.cost.validation_calls


def test_it_is_stored_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = run(tmp_path, overfitting(), **OVERFITS)
    assert "The run overfits" in caplog.text
    model, _, _ = few()
    study.load_into(model)
    assert unseen(model) == study.final_loss
    loaded = autolrs.load_study("run", str(tmp_path))
    assert (loaded.early, loaded.schedule) == (study.early, study.schedule)
    for shown in (summary(loaded), report(loaded)):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(shown)
        text = console.export_text()
        assert f"the end of probe 0.{study.early.number}, 15 steps: the whole run ended higher" in text, text
        assert "0 – 15" in text
    with pytest.raises(autolrs.errors.CheckpointError):
        CheckpointStore(study.directory, readonly=True).path("probe")  # no longer needed


def test_without_overfitting_nothing_changes_and_no_state_is_left(tmp_path: Path) -> None:
    strategy = Scripted(rates=(1e-3, 3e-3), length=10, whole=True)
    study = run(tmp_path, strategy=strategy)
    assert study.early is None
    without = run(tmp_path / "without", strategy=strategy, restore_best=False)
    assert (study.result, study.final_loss, study.schedule) == (without.result, without.final_loss, without.schedule)
    assert [path.stem for path in Path(study.directory).glob("*.safetensors")] == [
        path.stem for path in Path(without.directory).glob("*.safetensors")
    ]


def test_only_what_may_be_needed_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: list[str] = []
    save = CheckpointStore.save

    def noting(store: CheckpointStore, step: int, tree: Any, *, tag: str = "", **how: Any) -> Any:
        tags.append(tag)
        return save(store, step, tree, tag=tag, **how)

    monkeypatch.setattr(CheckpointStore, "save", noting)
    run(tmp_path / "off", overfitting(), **OVERFITS, restore_best=False)
    assert not any(tags)
    study = run(tmp_path / "on", overfitting(), **OVERFITS)
    losses = [trial.objective for trial in study.stages[0].trials]
    assert tags.count("probe") == sum(loss < min(losses[:n], default=math.inf) for n, loss in enumerate(losses))


def test_a_roll_back_before_the_probe_began_is_one_of_its_replay_too(tmp_path: Path) -> None:
    study = run(tmp_path, overfitting(), **OVERFITS)
    study.record = replace(study.record, roll_backs=("nan",))
    assert study.exact
    (stage,) = study.record.stages
    study.record = replace(study.record, stages=(replace(stage, start=3),))
    assert "rolled back" in study.exact_reason


def test_without_validation_there_is_nothing_to_compare(tmp_path: Path) -> None:
    study = run(tmp_path, loop(validate=False), strategy=Scripted(rates=(0.02,), length=15, whole=True))
    assert study.early is None


def test_the_best_of_all_is_taken_where_averages_are_wanted_too(tmp_path: Path) -> None:
    study = run(tmp_path, overfitting(), **OVERFITS, average=True)
    assert study.early is not None
    assert study.average is None
    assert study.final_loss == study.early.objective == study.result["loss"]
    last = run(tmp_path / "last", overfitting(), **OVERFITS, restore_best=False)
    assert study.record.plain_loss == last.final_loss


def test_a_loss_that_is_not_finite_at_the_end_is_worse_than_any_probes(tmp_path: Path) -> None:
    def train(session: Session) -> dict[str, Any]:
        model, optimizer, loader = few()
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: math.nan if session.step >= 100 else unseen(model))
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))
        return {"weights": digest(model)}

    study = run(tmp_path, train, **OVERFITS)
    assert study.early is not None
    assert study.final_loss == study.early.objective


@pytest.mark.parametrize("updates", [5, 17, 31, 44, 60, 120, 190])
def test_a_run_that_was_stopped_anywhere_ends_the_same(tmp_path: Path, updates: int) -> None:
    whole = run(tmp_path / "whole", overfitting(), **OVERFITS)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", overfitting(stop_at(updates)), **OVERFITS)
    assert story(run(tmp_path / "broken", overfitting(), **OVERFITS)) == story(whole)


@pytest.mark.parametrize("kind", [Probed, Trained, Finished])
@pytest.mark.parametrize("stored", [True, False])
def test_a_run_that_dies_beside_an_event_ends_the_same(
    tmp_path: Path, kind: type, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", overfitting(), **OVERFITS)
    monkeypatch.setattr(StudyStore, "append", dying_beside(kind, stored=stored))
    with pytest.raises(Killed):
        run(tmp_path / "broken", overfitting(), **OVERFITS)
    monkeypatch.undo()
    again = run(tmp_path / "broken", overfitting(), **OVERFITS)
    assert again.name == "run"
    assert story(again) == story(whole)
    assert (again.early, again.record.plain_loss) == (whole.early, whole.record.plain_loss)


def test_killed_after_an_average_was_taken_the_runs_own_loss_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"strategy": Scripted(rates=(0.1,), length=20), "average": True}
    whole = run(tmp_path / "whole", **settings)
    assert whole.average is not None
    monkeypatch.setattr(CheckpointStore, "tag", lambda *given: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(tmp_path / "broken", **settings)
    monkeypatch.undo()
    again = run(tmp_path / "broken", **settings)
    assert (again.average, again.record.plain_loss) == (whole.average, whole.record.plain_loss)


def test_a_state_that_is_damaged_leaves_the_run_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def damage(session: Session, loss: torch.Tensor) -> None:
        if not session.is_probe and session.step == 100:
            (tmp_path / "run" / "checkpoints" / "probe.safetensors").write_bytes(b"gone")

    study = run(tmp_path, overfitting(damage), **OVERFITS)
    assert "its state is gone" in caplog.text
    assert study.early is None
    whole = run(tmp_path / "whole", overfitting(), **OVERFITS, restore_best=False)
    assert story(study) == story(whole)


def test_on_workers_it_is_the_serial_run(tmp_path: Path) -> None:
    serial = run(tmp_path / "serial", overfitting(), **OVERFITS)
    with local_ray():
        one, *two = (
            run_on_ray(tmp_path / f"{n}", overfitting(), workers=w, **OVERFITS) for n, w in enumerate((1, 2, 2))
        )
    assert serial.early is not None
    assert story(one) == story(serial)
    assert all(story(a) == story(b) for a, b in pairwise((serial, *two)))


def test_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="restore_best is True or False"):
        run(tmp_path, restore_best="yes")
    with pytest.raises(StoppedError):
        run(tmp_path, overfitting(stop_at(70)), **OVERFITS)
    with pytest.raises(IdentityError, match="restore_best"):
        run(tmp_path, overfitting(), **OVERFITS, restore_best=False)
