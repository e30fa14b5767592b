"""autolrs and Ray Tune 2.60, on real trials."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray_loops import local_ray

from autolrs.errors import SettingError
from autolrs.integrations.ray_tune import RateSearcher, bundles

ROOT = Path(__file__).parents[1]


def bowl(config: dict[str, Any]) -> float:
    """Best at 0.01; too much diverges."""
    return math.nan if config["lr"] > 0.3 else (math.log10(config["lr"]) + 2) ** 2


def test_the_searcher_finds_the_bottom_with_several_trials_at_once() -> None:
    searcher = RateSearcher("lr", (1e-4, 1.0), metric="loss", mode="min", config={"width": 3})
    for round_ in range(4):
        configs = {f"{round_}.{i}": searcher.suggest(f"{round_}.{i}") for i in range(2)}
        assert len({config["lr"] for config in configs.values()}) == 2, "pending trials are not proposed again"
        assert all(config["width"] == 3 for config in configs.values())
        for trial, config in configs.items():
            loss = bowl(config)
            searcher.on_trial_complete(trial, {"loss": loss}, error=math.isnan(loss))
    assert min(loss for loss in searcher._losses.values() if math.isfinite(loss)) < 0.05


def test_more_is_better_with_mode_max() -> None:
    by_loss, by_gain = (RateSearcher("lr", (1e-4, 1.0), metric="m", mode=mode) for mode in ("min", "max"))
    for i in range(5):
        config = by_loss.suggest(str(i))
        assert config == by_gain.suggest(str(i))
        by_loss.on_trial_complete(str(i), {"m": bowl(config)})
        by_gain.on_trial_complete(str(i), {"m": -bowl(config)})


def test_a_saved_searcher_goes_on(tmp_path: Path) -> None:
    first, second = (RateSearcher("lr", (1e-4, 1.0), metric="m", mode="min") for _ in range(2))
    for i in range(3):
        first.on_trial_complete(str(i), {"m": bowl(first.suggest(str(i)))})
    first.save(str(tmp_path / "state"))
    second.restore(str(tmp_path / "state"))
    assert second.suggest("next") == first.suggest("next")


def test_bad_bounds() -> None:
    with pytest.raises(SettingError, match=r"`0 < low < high < inf` must hold for `bounds`, but got \(1.0, 0.1\)"):
        RateSearcher("lr", (1.0, 0.1))


@pytest.fixture
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        ray.shutdown()
    with local_ray():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.filterwarnings("ignore")  # Tune's own
def test_tune_runs_trials_that_the_searcher_proposes(tmp_path: Path) -> None:
    def trial(config: dict[str, Any]) -> None:
        if config["lr"] > 0.3:
            raise ArithmeticError("diverged")
        tune.report({"loss": (math.log10(config["lr"]) + 2) ** 2})

    settings = tune.TuneConfig(
        search_alg=RateSearcher("lr", (1e-4, 1.0)), metric="loss", mode="min", num_samples=8, max_concurrent_trials=2
    )
    run = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    results = tune.Tuner(tune.with_resources(trial, {"cpu": 1}), tune_config=settings, run_config=run).fit()
    assert results.get_best_result().metrics["loss"] < 0.05


@pytest.mark.slow
def test_the_example_runs_autolrs_in_the_placement_groups_of_trials(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "ray_tune.py"), "60", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "best: {'batch_size': " in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.filterwarnings("ignore")
def test_a_trial_without_room_for_its_worker_is_refused_at_once(tmp_path: Path) -> None:
    def trial(config: dict[str, Any]) -> None:
        import autolrs

        try:
            autolrs.tune(lambda session: None, steps=10, executor="ray", storage=str(tmp_path / "runs"))
        except SettingError as error:
            tune.report({"said": str(error)})

    run = tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0)
    (result,) = tune.Tuner(tune.with_resources(trial, bundles(0)), run_config=run).fit()
    assert "1 workers with CPU 1 each can never run here: there is room for 0 (CPU 0)" in result.metrics["said"]
