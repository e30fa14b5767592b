"""Every example as a user runs it, in a short setting; and its exported schedule, replayed in a plain loop."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain import PlainSession
from benchmarks.tasks import seed_all

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)


def run(path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`python EXAMPLE STEPS`, within this process."""
    monkeypatch.setattr("sys.argv", [str(path), str(steps)])
    return runpy.run_path(str(path), run_name="__main__")


def test_all_examples_are_here() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "char_gpt",
        "curve_pruner",
        "mnist_cnn",
        "ray_tune",
        "smallest",
        "tabular_mlp",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("name", ["char_gpt", "mnist_cnn", "tabular_mlp"])
def test_an_example_tunes_and_a_plain_loop_with_its_schedule_is_the_same_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = run(ROOT / "examples" / f"{name}.py", 60, monkeypatch)
    study = example["study"]
    assert study.cost.kept_steps == 60
    assert 0 < study.cost.probe_steps <= 0.3 * 60
    assert str(study.cost) in capsys.readouterr().out
    assert math.isfinite(study.final_loss)
    assert study.exact, study.exact_reason

    seed_all(0)
    plain = PlainSession(study.steps, study.schedule)
    assert example["train"](plain) == study.result
    with torch.no_grad():
        assert plain.validation_loss() == study.final_loss


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("char_gpt", [400, 1600]), ("mnist_cnn", [3000, 1000, 1000]), ("tabular_mlp", [287_346, 20_000, 20_000])],
)
def test_splits_never_change(name: str, sizes: list[int]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    splits = [split.tensors for split in example["data"]()]
    assert [len(split[0]) for split in splits][-len(sizes) :] == sizes
    torch.manual_seed(99)
    example["data"].cache_clear()
    for split, again in zip(splits, example["data"](), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(split, again.tensors, strict=True))


def test_the_smallest_loop_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = run(ROOT / "examples" / "smallest.py", 1000, monkeypatch)["study"]
    assert study.cost.kept_steps == 1000
    assert study.final_loss < 0.1  # a guess has log(10)
    assert [path.name for path in tmp_path.iterdir()] == ["autolrs-runs"]


def test_the_curve_pruner_example_stops_trials_early(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(ROOT / "examples" / "curve_pruner.py", 6, monkeypatch)["study"]
    assert len(study.trials) == 6
    assert study.best_value < 1.0  # a guess has log(10)
    assert any(trial.state.name == "PRUNED" for trial in study.trials)
    assert "of 6 trials were stopped early" in capsys.readouterr().out
