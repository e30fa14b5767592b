"""Averages of the kept weights: what they are, that nothing is lost, and when they are the final weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import Scripted
from torch import nn
from tuned_loops import (
    SEARCH,
    Body,
    Killed,
    build,
    dying_beside,
    loop,
    plain,
    run,
    stop_at,
    update,
    validation_loss,
)

import autolrs
from autolrs.averages import EVERY, POWERS, Averages
from autolrs.checkpoints import CheckpointStore
from autolrs.errors import IdentityError, SettingError, StoppedError
from autolrs.records import Finished, Probed, Trained
from autolrs.session import Session
from autolrs.storage import StudyStore

NOISY: dict[str, Any] = {"strategy": Scripted(rates=(0.1,), length=20), "average": True}
"""A constant rate that is too high to end on: an average is better."""


class Mixed(nn.Module):
    """Tensors of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def fill(self, value: float) -> None:
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(value)


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=12))
def test_an_average_is_the_sum_that_it_stands_for(values: list[int]) -> None:
    model = Mixed()
    averages = Averages({"model": model})
    steps = [EVERY * (i + 1) for i in range(len(values))]
    for step, value in zip(steps, values, strict=True):
        model.fill(value)
        averages.update(step, steps[-1])
    for power in POWERS:
        # The weight of an interval (a, b] is the integral of s^power over it.
        ends = [step ** (power + 1) for step in (0, *steps)]
        weights = [(b - a) / ends[-1] for a, b in pairwise(ends)]
        expected = math.fsum(w * v for w, v in zip(weights, values, strict=True))
        averages.use(power)
        assert model.wide.tolist() == pytest.approx([expected] * 3, rel=1e-12, abs=1e-12)
        assert model.unsaved.tolist() == pytest.approx([expected] * 2, rel=1e-5, abs=1e-4)
        assert model.narrow.tolist() == pytest.approx([expected] * 2, rel=1e-2, abs=1e-3)  # rounded once, at the end
        assert model.count == values[-1]
        assert averages.used == power


def test_only_some_steps_count_whenever_one_looks() -> None:
    model = Mixed()
    often, seldom = Averages({"model": model}), Averages({"model": model})
    for step in range(1, 3 * EVERY + 6):
        model.fill(step)
        often.update(step, 3 * EVERY + 5)
        if step % EVERY == 0 or step == 3 * EVERY + 5:
            seldom.update(step, 3 * EVERY + 5)
    assert often.capture()["means"]["3"]["model.wide"].equal(seldom.capture()["means"]["3"]["model.wide"])


def test_to_capture_and_restore_is_the_identity_and_shares_no_memory() -> None:
    model = Mixed()
    averages = Averages({"model": model})
    empty = averages.capture()
    for step in (EVERY, 2 * EVERY):
        model.fill(step)
        averages.update(step, 100)
    tree = averages.capture()
    for _ in range(2):
        model.fill(-1.0)
        averages.update(3 * EVERY, 100)
        averages.use(POWERS[1])
        averages.restore(tree)
        again = averages.capture()
        assert (again["step"], again["used"]) == (2 * EVERY, None)
        for power, means in tree["means"].items():
            assert all(mean.equal(again["means"][power][name]) for name, mean in means.items())
    averages.restore(empty)
    assert averages.capture()["means"] == {}


# In a run


class Kept:
    """The loop of `tuned_loops`, and the weights after each kept step; of a step done again, the last ones."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def loop(self, each: Body = lambda session, loss: None) -> Callable[[Session], float]:
        def train(session: Session) -> float:
            self.model, optimizer, loader = build()
            session.track(model=self.model, optimizer=optimizer)
            session.validate(lambda: validation_loss(self.model))
            for batch in session.batches(loader):
                loss = update(self.model, optimizer, batch)
                if not session.is_probe:
                    named = self.model.named_parameters()
                    self.weights[session.step + 1] = {name: p.detach().double().clone() for name, p in named}
                each(session, loss)
                session.report(loss)
            return validation_loss(self.model)

        return train

    def average(self, power: float) -> dict[str, torch.Tensor]:
        """What the run should have kept."""
        steps = [step for step in sorted(self.weights) if step % EVERY == 0 or step == 60]
        ends = [step ** (power + 1) for step in (0, *steps)]
        shares = [(b - a) / ends[-1] for a, b in pairwise(ends)]
        found = {name: torch.zeros_like(tensor) for name, tensor in self.weights[60].items()}
        for share, step in zip(shares, steps, strict=True):
            for name, tensor in self.weights[step].items():
                found[name] += share * tensor
        return found


def test_final_weights_are_the_average_of_the_kept_ones_where_it_validates_better(tmp_path: Path) -> None:
    kept = Kept()
    study = run(tmp_path, kept.loop(), **NOISY)
    assert study.record.plain_loss is not None
    assert study.final_loss == study.result < study.record.plain_loss
    assert study.average in POWERS
    expected = kept.average(study.average)
    for name, parameter in kept.model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
    # What is saved are these weights, and the reader says what they are.
    loaded, _, _ = build()
    study.load_into(loaded)
    assert validation_loss(loaded) == study.final_loss
    assert not study.exact
    assert "average" in study.exact_reason
    assert autolrs.load_study("run", str(tmp_path)).average == study.average
    assert (
        study.cost.validation_calls
        == run(tmp_path / "without", **{**NOISY, "average": False}).cost.validation_calls + 2
    )


@pytest.mark.parametrize(("last", "chosen"), [(math.nan, True), (math.inf, True), (-math.inf, False)])
def test_a_finite_average_is_better_than_a_last_loss_that_is_not_finite(
    last: float, chosen: bool, tmp_path: Path
) -> None:
    def train(session: Session) -> float:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        done, last_weights = False, None

        def validate() -> float:
            weights = model.state_dict()["0.weight"].clone()
            return last if done and torch.equal(weights, last_weights) else validation_loss(model)

        session.validate(validate)
        for batch in session.batches(loader):
            loss = update(model, optimizer, batch)
            done = not session.is_probe and session.step == 59
            last_weights = model.state_dict()["0.weight"].clone()
            session.report(loss)
        return validation_loss(model)

    study = run(tmp_path, train, **NOISY)
    assert (study.average in POWERS) == chosen
    assert study.final_loss == (study.result if chosen else last)


def test_it_changes_nothing_before_the_end_and_nothing_where_it_is_no_better(tmp_path: Path) -> None:
    study = run(tmp_path, average=True, strategy=Scripted(rates=(1e-4, 2e-4), length=10))  # far from converged
    assert study.average is None
    assert study.exact
    assert study.final_loss == study.record.plain_loss
    assert study.result == plain(study.schedule)
    without = run(tmp_path / "without", strategy=Scripted(rates=(1e-4, 2e-4), length=10))
    assert (without.result, without.final_loss) == (study.result, study.final_loss)
    assert without.record.plain_loss is None


@pytest.mark.parametrize("updates", [5, 12, 25, 41, 52, 70, 79])
def test_a_run_that_was_stopped_anywhere_ends_the_same(tmp_path: Path, updates: int) -> None:
    whole = run(tmp_path / "whole", **NOISY)
    assert whole.average is not None
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", loop(each=stop_at(updates)), **NOISY)
    again = run(tmp_path / "broken", **NOISY)
    assert (again.result, again.final_loss, again.average) == (whole.result, whole.final_loss, whole.average)


@pytest.mark.parametrize("kind", [Probed, Trained, Finished])
@pytest.mark.parametrize("stored", [True, False])
def test_a_run_that_dies_beside_an_event_ends_the_same(
    tmp_path: Path, kind: type, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **NOISY)
    monkeypatch.setattr(StudyStore, "append", dying_beside(kind, stored=stored))
    with pytest.raises(Killed):
        run(tmp_path / "broken", **NOISY)
    monkeypatch.undo()
    again = run(tmp_path / "broken", **NOISY)
    assert again.name == "run"  # the same study, gone on with
    assert (again.result["weights"], again.final_loss, again.average) == (
        whole.result["weights"],
        whole.final_loss,
        whole.average,
    )


def test_a_roll_back_takes_the_averages_back_too(tmp_path: Path) -> None:
    kept, spoiled = Kept(), []

    def each(session: Session, loss: torch.Tensor) -> None:
        if not session.is_probe and session.step == 40 and not spoiled:
            spoiled.append(True)
            loss.data.fill_(math.nan)  # back to the checkpoint of step 32, and on from there at a lower rate

    study = run(tmp_path, kept.loop(each), **NOISY)
    assert study.record.roll_backs
    saved = CheckpointStore(study.directory).load("final")["objects"]["session.averages"]
    assert saved["step"] == 60
    for power in POWERS:
        expected = kept.average(power)
        for name, mean in saved["means"][f"{power:g}"].items():
            torch.testing.assert_close(mean.double(), expected[name.removeprefix("model.")], rtol=1e-5, atol=1e-6)


def test_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"`average=True` needs `session.validate"):
        run(tmp_path, loop(validate=False), average=True)
    with pytest.raises(SettingError, match="average is True or False"):
        run(tmp_path, average="yes")
    with pytest.raises(StoppedError):
        run(tmp_path, loop(each=stop_at(35)), name="other", strategy=SEARCH)
    with pytest.raises(IdentityError, match="average"):
        run(tmp_path, name="other", strategy=SEARCH, average=True)
