"""Curves of our own tasks: what is recorded of a tiny one, and what the report says of it."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_task
import torch

from benchmarks import own_curves, unseen
from benchmarks.own_curves import FOLDER, SEED, curves_of, losses_of, record
from benchmarks.tasks import TASKS, Task, half_decades
from benchmarks.windows import read_runs, siblings

TASK = Task("tiny", "tiny_task", "adamw", half_decades(-6))
STEPS = 1600  # runs of 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_task, "STEPS", STEPS)
        record([TASK], path)
    return path


def test_the_losses_are_those_of_a_plain_loop():
    """The slow twin is written out."""
    rates = [0.1 / (step + 1) for step in range(30)]
    torch.manual_seed(SEED)
    model = torch.nn.Linear(4, 1)
    adamw = torch.optim.AdamW(model.parameters())
    loader = torch.utils.data.DataLoader(tiny_task.data()[0], batch_size=20, shuffle=True)
    losses = []
    while len(losses) < len(rates):
        for x, y in loader:
            adamw.param_groups[0]["lr"] = rates[len(losses)]
            loss = torch.nn.functional.mse_loss(model(x)[:, 0], y)
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            losses.append(loss.item())
    assert losses_of(TASK, rates) == losses


def test_forks_leave_the_run_at_the_middle_rate(folder):
    runs = {run.curve_id: run for run in read_runs(folder)}
    assert list(runs) == [
        *("0.001", "0.00316", "0.01", "0.0316", "0.1", "0.316", "1"),
        *(f"fork {rate}" for rate in ("0.00316", "0.00681", "0.0147", "0.0681", "0.147", "0.316")),
    ]
    trunk, fork = runs["0.0316"], runs["fork 0.147"]
    np.testing.assert_array_equal(trunk.losses[:281], fork.losses[:281])  # the rate of step 280 comes after its loss
    assert trunk.losses[281] != fork.losses[281]
    assert (len(trunk.losses), len(fork.losses)) == (800, 480)
    assert fork.rates[[0, 279, 280, 479]] == pytest.approx([0.0316, 0.0316, 0.147, 0.147])


def test_losses_have_thirteen_bits(folder):
    (run,) = (run for run in read_runs(folder) if run.curve_id == "0.1")
    exact = losses_of(TASK, [0.1] * 100)
    np.testing.assert_allclose(run.losses[:100], exact, rtol=2.0**-13)
    assert (run.losses[:100] != exact).any()


def test_what_is_on_file_is_not_run_again(folder, tmp_path, monkeypatch):
    folder = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(own_curves, "losses_of", lambda task, rates: [1.0] * len(rates))
    before = (folder / "tiny.parquet").read_bytes()
    record([TASK, Task("other", "tiny_task", "adamw", half_decades(-6))], folder)
    assert (folder / "tiny.parquet").read_bytes() == before
    meta = pd.read_parquet(folder / "meta.parquet")
    assert list(meta.source.unique()) == ["tiny", "other"]
    assert (pd.read_parquet(folder / "other.parquet").train_loss == 1).all()


def test_a_trunk_is_counted_once_and_everything_has_siblings(folder):
    found = [w for w in unseen.own(folder) if w.share == 0.1]
    assert sum(w.kind == "run" for w in found) == len(TASK.rates)
    assert {(g[0].kind, g[0].start, len(g)) for g in siblings(found)} == {
        ("run", 0, 7),
        ("piece", 0, 7),
        ("fork", 279, 7),
    }
    means = unseen.before_the_end(found, folder)
    (run,) = (run for run in read_runs(folder) if run.curve_id == "0.1")
    (whole,) = (i for i, w in enumerate(found) if (w.curve_id, w.kind) == ("0.1", "run"))
    assert means[whole] == run.losses[720:760].mean()


def test_the_report_has_goals_models_and_tasks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(unseen, "_DRAWS", 20)
    monkeypatch.setattr(unseen, "DOCUMENT", tmp_path / "curves.md")
    monkeypatch.setattr(unseen, "section", lambda make=unseen.section: make(("auto", "bayes", "law"), folder))
    (tmp_path / "curves.md").write_text(f"# A\n\n{unseen.HEADING}\n\n## B\n", encoding="utf-8")
    unseen.write()
    text = (tmp_path / "curves.md").read_text("utf-8")
    assert text.startswith(f"# A\n\n{unseen.HEADING}\n\nWritten by")
    assert text.endswith("\n\n## B\n")
    lines = text.splitlines()
    for measure in (*unseen._ERRORS, *unseen._CHOICES):
        assert sum(line.startswith(f"| {measure.name} | {measure.goal} | ") for line in lines) == 1
    for model in ("last value", "published", "auto", "bayes"):
        assert sum(line.startswith(f"| {model} | 10% |") for line in lines) == 4  # all and three kinds
    assert sum(line.startswith("| auto, pooled, forks | ") for line in lines) == 1
    assert sum(line.startswith("| tiny | ") for line in lines) == 1
    assert "nan" not in text


def test_every_task_is_recorded_as_it_is_today():
    """Curves of a task whose steps or rates were changed since would be other curves. One that only confirms may have
    none yet."""
    meta = pd.read_parquet(FOLDER / "meta.parquet")
    recorded = set(meta.source)
    for task in (task for task in TASKS.values() if task.times == 1):
        if not task.development and task.name not in recorded:
            continue
        last = dict(meta[meta.source == task.name][["curve_id", "steps_full"]].to_numpy())
        assert last == {name: len(rates) - 1 for name, rates in curves_of(task)}, task.name
