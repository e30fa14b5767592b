"""The examples as benchmark tasks: the same train functions, data and splits, nothing copied."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch

from autolrs.space import SearchSpace


@dataclass(frozen=True)
class Task:
    """An example to train.

    Attributes:
        module: the example; it has `data`, `train` and `STEPS`.
        space: search space of the tuned runs; the fixed schedules have its warm-up too.
        rates: the seven peak rates that the fixed schedules are tried with.
        default_rate: the optimizer's own default in torch.
    """

    name: str
    module: str
    space: str
    rates: tuple[float, ...]
    default_rate: float = 1e-3

    @property
    def train(self) -> Callable[[Any], dict[str, float]]:
        return import_module(self.module).train

    @property
    def steps(self) -> int:
        return import_module(self.module).STEPS

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return round(SearchSpace.load(self.space).warmup * self.steps)

    def load(self) -> None:
        """Read the data now, so that no run's wall time has it."""
        import_module(self.module).data()


def half_decades(first: int, count: int = 7) -> tuple[float, ...]:
    """10^(first/2), 10^((first+1)/2), ...

    >>> half_decades(-6, 3)
    (0.001, 0.00316, 0.01)
    """
    return tuple(float(f"{10 ** ((first + i) / 2):.3g}") for i in range(count))


TASKS: Final = {
    task.name: task
    for task in (
        Task("mnist_cnn", "examples.mnist_cnn", "sgd", half_decades(-6)),
        Task("char_gpt", "examples.char_gpt", "adamw", half_decades(-8)),
        Task("tabular_mlp", "examples.tabular_mlp", "adam", half_decades(-8)),
    )
}


def seed_all(seed: int) -> None:
    """Seed what `autolrs.tune` seeds, so that weights and batches are the same with and without it."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
