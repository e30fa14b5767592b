"""The README's examples (a) and (b) on real Ray workers: one is the serial run, two run twice are the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_loops import local_ray, story

from autolrs import tune
from autolrs.scripts import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True, scope="module")
def _ray() -> Iterator[None]:
    with local_ray(4):  # more than two, for the workers of the run before may not be gone yet
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space"), [("mnist_cnn", "sgd"), ("char_gpt", "adamw")])
def test_an_example_on_one_worker_is_the_serial_run_and_on_two_always_the_same(
    name: str, space: str, tmp_path: Path
) -> None:
    train = load_file(EXAMPLES / f"{name}.py").train

    def told(folder: str, **settings: Any) -> Any:
        study = tune(
            train,
            steps=100,
            space=space,
            search_budget=0.8,
            name="run",
            storage=str(tmp_path / folder),
            **settings,
        )
        assert study.exact, study.exact_reason
        assert study.cost.kept_steps == 100
        assert len(study.stages[0].trials) > 3
        return story(study)

    serial = told("serial")
    assert told("one", executor="ray", workers=1) == serial
    first, second = (told(folder, executor="ray", workers=2) for folder in ("two", "again"))
    assert first == second
    assert first[0] != serial[0], "two workers propose in batches"
