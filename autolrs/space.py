"""Search spaces: which learning rates are tried, and what is done with the one that wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What may be tried, and the shape of the schedule around it.

    Attributes:
        name: how the space is called.
        optimizer: family of optimizers that it is meant for ("any", "sgd", "adam", ...); for people.
        bounds: lowest and highest reference rate, searched on a logarithmic scale.
        initial: rate of the first probe; None: the geometric middle of the bounds.
        schedule: base schedule, one of `schedules.BASES`.
        warmup: share of the run's steps that the rate rises linearly, in [0, 1).
        decay: share of the run that the decay of `wsd` and `wsd-sqrt` takes, in (0, 1].
        params: fixed hyperparameters that the loop may read from `session.params`.
        reference: where the numbers come from.
    """

    name: str
    bounds: tuple[float, float]
    optimizer: str = "any"
    initial: float | None = None
    schedule: str = "wsd"
    warmup: float = 0.0
    decay: float = 0.2
    params: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
