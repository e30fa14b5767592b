"""When things happen in a run, and a Ray of one's own to run it on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from autolrs.records import Record

CPUS: Final = 0.2
"""Of each worker, so that eight fit on two cores."""


@dataclass
class Clock:
    """A callback: when did which events come."""

    times: list[tuple[str, float]] = field(default_factory=list)

    def on_event(self, record: Record, event: Any) -> None:
        self.times.append((type(event).__name__, time.perf_counter()))

    def on_progress(self, *args: Any) -> None:
        pass

    def first(self, kind: str) -> float:
        return next(seconds for name, seconds in self.times if name == kind)

    def last(self, kind: str) -> float:
        return max(seconds for name, seconds in self.times if name == kind)


@contextmanager
def ray_with_room(**settings: Any) -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", **settings)
    try:
        yield
    finally:
        ray.shutdown()
