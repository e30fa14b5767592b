"""A plain training loop: the calls of a session around an ordinary optimizer, and one row at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.optim import Optimizer

from autolrs.lookahead import Lookahead
from autolrs.momentum import set_momentum
from benchmarks.rows import Row, settings_key
from benchmarks.tasks import Task, seed_all

MakeOptimizer = Callable[[torch.nn.Module, Optimizer], Optimizer]
"""From the model and the task's own optimizer to the one to train with."""


class PlainSession:
    """The four calls of a session around an ordinary loop: a rate before each batch, and the end of the run.

    A subclass that overrides `after` changes the rate as it goes.

    Attributes:
        rates: from an update to its rate; None: the optimizer's own is left alone.
        began: number of the first update.
        highest: the highest rate used so far.
        evaluations: calls of the validation function so far.
    """

    args: Final[dict[str, str]] = {}
    is_probe: Final = False

    def __init__(self, steps: int, rates: Callable[[int], float] | None = None) -> None:
        self.steps, self.rates = steps, rates
        self.began, self.highest, self.evaluations = 0, 0.0, 0

    def track(self, *, model: torch.nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        if (momentum := getattr(self.rates, "momentum", None)) is not None:  # a schedule of ours may name one
            set_momentum(optimizer.param_groups, momentum)
        self._lookahead = Lookahead(optimizer) if getattr(self.rates, "lookahead", False) else None

    def validate(self, function: Callable[[], float]) -> None:
        self._validate = function

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        self._mode("train")
        step = self.began
        while True:
            for batch in loader:
                if step == self.steps:
                    self._mode("eval")
                    return
                if self.rates is not None:
                    self.set(self.rates(step))
                self.highest = max(self.highest, self.rate)
                self.step = step
                yield batch
                step += 1
                if self._lookahead is not None:
                    self._lookahead.after(step)

    def report(self, loss: torch.Tensor) -> None:
        self.after(loss)

    def after(self, loss: torch.Tensor) -> None:
        """After each update; a fixed schedule has no use for it."""

    def set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def validation_loss(self) -> float:
        """The validation loss here; a diverged one is NaN. Training mode and generators are put back."""
        self.evaluations += 1
        training, state = self.model.training, torch.get_rng_state()
        self._mode("eval")
        try:
            return float(self._validate())
        finally:
            self._mode("train")
            self.model.train(training)
            torch.set_rng_state(state)

    def _mode(self, name: str) -> None:
        """Schedule-free optimizers have weights to train with and others to evaluate."""
        getattr(self.optimizer, name, lambda: None)()


def train(task: Task, session: PlainSession, seed: int, make: MakeOptimizer | None = None) -> tuple[float, float]:
    """Train once. Validation and test loss at the end; NaN where the run diverged.

    Args:
        make: another optimizer than the task's own.
    """
    task.load()
    seed_all(seed)
    with _optimizer(task, make):
        test = task.train(session)["test_loss"]
    session._mode("eval")
    validation = float(session._validate())
    session.evaluations += 1
    return tuple(loss if math.isfinite(loss) else math.nan for loss in (validation, test))  # type: ignore[return-value]


def row(
    task: Task,
    method: str,
    settings: Mapping[str, Any],
    seed: int,
    session: PlainSession,
    make: MakeOptimizer | None = None,
) -> Row:
    """Train once, as a row without search."""
    task.load()
    began = time.perf_counter()
    validation, test = train(task, session, seed, make)
    wall = round(time.perf_counter() - began, 2)
    return Row(
        task.name, method, settings_key(settings), seed, session.highest, validation, test, session.steps, 0,
        session.evaluations, wall,
    )  # fmt: skip


def _optimizer(task: Task, make: MakeOptimizer | None) -> AbstractContextManager[Any]:
    if make is None:
        return nullcontext()
    own: Callable[[torch.nn.Module], Optimizer] = task.source.optimizer
    return patch.object(task.source, "optimizer", lambda model: make(model, own(model)))
