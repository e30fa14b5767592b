"""Runs on real Ray workers, for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from tuned_loops import SMALL, loop

from autolrs import Study, tune

HORIZON: dict[str, Any] = {"strategy": "horizon", "steps": 200, "search_budget": 0.4, "checkpoint_every": 50}


@contextmanager
def local_ray(cpus: int = 2, **settings: Any) -> Iterator[None]:
    """A Ray of our own on this machine."""
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", **settings)
    try:
        yield
    finally:
        ray.shutdown()


def run_on_ray(storage: Path, train: Any = None, *, workers: int = 1, **settings: Any) -> Study:
    """A small run in `storage` on the Ray that this process is connected to."""
    given = SMALL | {"executor": "ray", "workers": workers} | settings
    return tune(train or loop(), storage=str(storage), **given)


def story(study: Study) -> Any:
    """All that must be equal where runs are equal bit for bit: decisions, rates, losses, weights, random numbers."""
    return repr(study.stages), study.schedule.to_json(), study.final_loss, study.result  # repr, for NaN is not NaN
