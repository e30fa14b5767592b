"""What is trained: the examples, and the problems of this folder. The same train functions, data and splits for all."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch

from autolrs.space import SearchSpace


@dataclass(frozen=True)
class Task:
    """Something to train.

    Attributes:
        module: it has `data`, `train`, `optimizer` and `STEPS`.
        space: search space of the tuned runs; the fixed schedules have its warm-up too.
        rates: the seven peak rates that the fixed schedules are tried with.
        default_rate: the optimizer's own default in torch.
        development: whether its results were known when defaults were chosen; else it only confirms.
        times: how often the module's steps make a run.
        best: number of the rate of the best whole run, where there is a longer setting, too: that is tried with this
            rate and its neighbours.
    """

    name: str
    module: str
    space: str
    rates: tuple[float, ...]
    default_rate: float = 1e-3
    development: bool = False
    times: int = 1
    best: int | None = None

    @property
    def kind(self) -> str:
        """What its results are for."""
        return "four times as long" if self.times > 1 else "development" if self.development else "confirmation"

    def longer(self) -> Task:
        """The longer setting."""
        assert self.best is not None
        rates = self.rates[self.best - 1 : self.best + 2]
        return replace(self, name=f"{self.name}@{LONGER}", times=LONGER * self.times, rates=rates)

    @property
    def source(self) -> ModuleType:
        return import_module(self.module)

    @property
    def train(self) -> Callable[[Any], dict[str, float]]:
        train: Callable[[Any], dict[str, float]] = self.source.train
        return train

    @property
    def steps(self) -> int:
        return self.times * int(self.source.STEPS)

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return round(SearchSpace.load(self.space).warmup * self.steps)

    def load(self) -> None:
        """Read the data now, so that no run's wall time has it."""
        self.source.data()


def half_decades(first: int, count: int = 7) -> tuple[float, ...]:
    """10^(first/2), 10^((first+1)/2), ...

    >>> half_decades(-6, 3)
    (0.001, 0.00316, 0.01)
    """
    return tuple(float(f"{10 ** ((first + i) / 2):.3g}") for i in range(count))


LONGER: Final = 4
"""How often as long the longer setting of a task is."""

_SHORT: Final = (
    Task("mnist_cnn", "examples.mnist_cnn", "sgd", half_decades(-6), development=True, best=3),
    Task("char_gpt", "examples.char_gpt", "adamw", half_decades(-8), development=True, best=3),
    Task("tabular_mlp", "examples.tabular_mlp", "adam", half_decades(-8), development=True, best=4),
    Task("vit_digits", "benchmarks.problems.vit_digits", "adamw", half_decades(-8), development=True, best=4),
    Task("gru_weather", "benchmarks.problems.gru_weather", "adam", half_decades(-8), development=True, best=4),
    Task("finetune_digits", "benchmarks.problems.finetune_digits", "adamw", half_decades(-8), development=True),
    Task(
        "glove_tokens", "benchmarks.problems.glove_tokens", "adagrad", half_decades(-6), 1e-2, development=True, best=5
    ),
    Task("diamonds_resnet", "benchmarks.problems.diamonds_resnet", "sgd", half_decades(-6), development=True),
    Task("photo_denoiser", "benchmarks.problems.photo_denoiser", "adam", half_decades(-7), development=True),
    Task("stress_lstm", "benchmarks.problems.stress_lstm", "rmsprop", half_decades(-8), 1e-2, development=True),
    Task("finetune_towns", "benchmarks.problems.finetune_towns", "adamw", half_decades(-9), development=True),
    Task(
        "phonemes_transformer", "benchmarks.problems.phonemes_transformer", "adamw", half_decades(-8), development=True
    ),
    Task("flights_embeddings", "benchmarks.problems.flights_embeddings", "sgd", half_decades(-6), development=True),
    Task("photo_field", "benchmarks.problems.photo_field", "adam", half_decades(-8), development=True),
    Task("digits_vae", "benchmarks.problems.digits_vae", "adamw", half_decades(-8), development=True),
    Task("stereo_matching", "benchmarks.problems.stereo_matching", "sgd", half_decades(-6)),
    Task("few_computers", "benchmarks.problems.few_computers", "adamw", half_decades(-11)),
    Task("word_ends", "benchmarks.problems.word_ends", "adamw", half_decades(-8)),
    Task("molecules_graph", "benchmarks.problems.molecules_graph", "adam", half_decades(-8)),
    Task("folk_tunes", "benchmarks.problems.folk_tunes", "adamw", half_decades(-7)),
    Task("relief_unet", "benchmarks.problems.relief_unet", "adam", half_decades(-8)),
    Task("movie_genres", "benchmarks.problems.movie_genres", "sgd", half_decades(-6)),
    Task("language_names", "benchmarks.problems.language_names", "adam", half_decades(-8)),
)

TASKS: Final = {
    task.name: task for short in _SHORT for task in ((short,) if short.best is None else (short, short.longer()))
}
"""By name; "@4" is the longer setting."""

EXAMPLES: Final = tuple(task.name for task in _SHORT if task.module.startswith("examples."))
"""The three that choices are measured on."""

CONFIRMATION: Final = tuple(task.name for task in _SHORT if not task.development)


def seed_all(seed: int) -> None:
    """Seed what `autolrs.tune` seeds, so that weights and batches are the same with and without it."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
