"""A run that is trained in parts: each begins where a state was left, the run's own or another run's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.plain import PlainSession, train
from benchmarks.tasks import Task

State = dict[str, Any]
"""Number of updates, weights, the optimizer's state, the generator's, the highest rate so far."""


class _End(Exception):
    """Leaves a task's train function before its last update."""


class Part(PlainSession):
    """Updates of a run up to number `ends`."""

    def __init__(self, steps: int, rates: Callable[[int], float], ends: int, state: State | None) -> None:
        super().__init__(steps, rates)
        self.ends, self.state, self.done = ends, state, 0

    def batches(self, loader: Any) -> Iterator[Any]:
        if self.state is not None:
            self.began, self.highest = self.state["step"], self.state["highest"]
            self.model.load_state_dict(self.state["model"])
            self.optimizer.load_state_dict(deepcopy(self.state["optimizer"]))  # it takes the tensors as they are
            # The task has just been seeded to make its first weights; without this every part had the same batches.
            torch.set_rng_state(self.state["generator"])
        yield from super().batches(loader)

    def after(self, loss: torch.Tensor) -> None:
        self.done += 1
        if self.step + 1 == self.ends < self.steps:
            raise _End

    def left(self) -> State:
        """What the next part begins with."""
        return {
            "step": self.ends,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "highest": self.highest,
        }


@dataclass(frozen=True)
class Trained:
    """A part's end.

    Attributes:
        validation, test: losses, NaN where the run diverged; test loss of a whole run only, else NaN.
        updates, evaluations: of this part.
        rate: the highest one so far.
    """

    state: State
    validation: float
    test: float
    updates: int
    evaluations: int
    rate: float


def train_part(
    task: Task, seed: int, steps: int, rates: Callable[[int], float], ends: int, state: State | None = None
) -> Trained:
    """Train a run of `steps` updates from `state`, or from its beginning, until update `ends`."""
    part = Part(steps, rates, ends, state)
    try:
        validation, test = train(task, part, seed)
    except _End:
        validation, test = part.validation_loss(), math.nan
    return Trained(part.left(), validation, test, part.done, part.evaluations, part.highest)
