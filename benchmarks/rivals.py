"""Rivals that set the rate themselves: optimizers without a schedule, and rules that react to the loss."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any, Final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from benchmarks.families import cosine
from benchmarks.plain import MakeOptimizer, PlainSession, row, train
from benchmarks.rows import Row
from benchmarks.tasks import Task

CHECKS: Final = 20
"""Validations of a run that reacts to them."""


# Optimizers


def schedule_free(rate: float, warmup: int) -> MakeOptimizer:
    """The schedule-free kin of the task's optimizer (Defazio et al. 2024, arXiv 2405.15682; package schedulefree)."""
    import schedulefree

    def make(model: torch.nn.Module, own: Optimizer) -> Optimizer:
        group = own.param_groups[0]
        common = {"lr": rate, "weight_decay": group.get("weight_decay", 0.0), "warmup_steps": warmup}
        if isinstance(own, torch.optim.SGD):
            return schedulefree.SGDScheduleFree(model.parameters(), momentum=group["momentum"] or 0.9, **common)
        return schedulefree.AdamWScheduleFree(model.parameters(), **common)

    return make


def prodigy(scale: float) -> MakeOptimizer:
    """Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101; package prodigyopt): finds the rate, under a cosine."""
    from prodigyopt import Prodigy

    def make(model: torch.nn.Module, own: Optimizer) -> Optimizer:
        decay = own.param_groups[0].get("weight_decay", 0.0)
        return Prodigy(model.parameters(), lr=1.0, d_coef=scale, weight_decay=decay, safeguard_warmup=True)

    return make


def run_schedule_free(task: Task, settings: dict[str, Any], seed: int) -> Row:
    make = schedule_free(settings.get("rate", _schedule_free_default(task)), task.warmup)
    return row(task, "schedule-free", settings, seed, PlainSession(task.steps), make)


def run_prodigy(task: Task, settings: dict[str, Any], seed: int) -> Row:
    session = PlainSession(task.steps, cosine(1.0, task.steps, 0).__getitem__)
    return row(task, "prodigy", settings, seed, session, prodigy(settings.get("scale", 1.0)))


def _schedule_free_default(task: Task) -> float:
    """The default of the package: 1.0 for SGD, 0.0025 for AdamW."""
    return 1.0 if task.space == "sgd" else 0.0025


# Rules


class Plateau(PlainSession):
    """PyTorch's `ReduceLROnPlateau`, told the validation loss `CHECKS` times a run; factor 0.3, patience 2."""

    def __init__(self, task: Task, rate: float) -> None:
        super().__init__(task.steps)
        self.first, self.every = rate, max(1, task.steps // CHECKS)

    def track(self, *, model: torch.nn.Module, optimizer: Optimizer) -> None:
        super().track(model=model, optimizer=optimizer)
        self.set(self.first)
        self._rule = ReduceLROnPlateau(optimizer, factor=0.3, patience=2)

    def after(self, loss: torch.Tensor) -> None:
        if (self.step + 1) % self.every == 0:
            self._rule.step(self.validation_loss())


class Greedy(PlainSession):
    """GreedyLR (Subramanian et al. 2025, arXiv 2512.14527): the rate times `1 / factor` when the smoothed loss has
    fallen, times `factor` when it has risen."""

    def __init__(self, task: Task, rate: float, *, factor: float = 0.97, window: int = 16) -> None:
        super().__init__(task.steps)
        self.first, self.factor = rate, factor
        self._recent: deque[float] = deque(maxlen=window)
        self._before = math.inf

    def track(self, *, model: torch.nn.Module, optimizer: Optimizer) -> None:
        super().track(model=model, optimizer=optimizer)
        self.set(self.first)

    def after(self, loss: torch.Tensor) -> None:
        self._recent.append(loss.item())
        if (self.step + 1) % self._recent.maxlen == 0:  # type: ignore[operator]
            now = fmean(self._recent)
            self.set(self.rate / self.factor if now < self._before else self.rate * self.factor)
            self._before = now


class Hypergradient(PlainSession):
    """Multiplicative hypergradient descent (Baydin et al. 2018, arXiv 1703.04782, eq. 8): the rate grows while
    successive gradients agree, by at most a share `beta` an update."""

    def __init__(self, task: Task, rate: float, *, beta: float = 0.02) -> None:
        super().__init__(task.steps)
        self.first, self.beta = rate, beta
        self._before: list[torch.Tensor] = []

    def track(self, *, model: torch.nn.Module, optimizer: Optimizer) -> None:
        super().track(model=model, optimizer=optimizer)
        self.set(self.first)

    def after(self, loss: torch.Tensor) -> None:
        now = [p.grad.detach().clone() for p in self.model.parameters() if p.grad is not None]
        if len(self._before) == len(now):
            dot = sum(float((a * b).sum()) for a, b in zip(now, self._before, strict=True))
            norms = math.prod(math.sqrt(sum(float(g.square().sum()) for g in side)) for side in (now, self._before))
            if norms > 0 and math.isfinite(dot / norms):
                self.set(self.rate * (1 + self.beta * dot / norms))
        self._before = now


RULES: Final[dict[str, type[Plateau] | type[Greedy] | type[Hypergradient]]] = {
    "plateau": Plateau,
    "greedy": Greedy,
    "hypergradient": Hypergradient,
}


def run_rule(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    return row(task, name, settings, seed, RULES[name](task, settings["rate"]))


# A range test, then a cosine


class RangeTest(PlainSession):
    """The rate rises exponentially from `low` to `high` over the run; keeps the losses (Smith 2017, 1506.01186)."""

    def __init__(self, steps: int, low: float, high: float) -> None:
        super().__init__(steps, lambda s: low * (high / low) ** (s / max(1, steps - 1)))
        self.losses: list[float] = []

    def after(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())

    @property
    def steepest(self) -> float:
        """Rate where the smoothed loss falls fastest in the log rate, before it is 4 times its minimum."""
        smooth, average = [], 0.0
        for i, loss in enumerate(self.losses):
            average = 0.9 * average + 0.1 * loss
            smooth.append(average / (1 - 0.9 ** (i + 1)))
        end = next((i for i, x in enumerate(smooth) if not x < 4 * min(smooth[: i + 1])), len(smooth))
        falls = {i: smooth[i + 5] - smooth[i] for i in range(max(1, end - 5)) if i + 5 < len(smooth)}
        assert self.rates is not None
        return self.rates(min(falls, key=falls.__getitem__, default=0))


def run_range_test(task: Task, settings: dict[str, Any], seed: int, share: float = 0.1) -> Row:
    """A test over a tenth of the run finds the rate that a cosine then has as its peak."""
    test = RangeTest(round(share * task.steps), task.rates[0], 10 * task.rates[-1])
    train(task, test, seed)
    session = PlainSession(task.steps, cosine(test.steepest, task.steps, task.warmup).__getitem__)
    made = row(task, "range-test", settings, seed, session)
    return Row(**{**vars(made), "probe_steps": test.steps, "evaluations": made.evaluations + test.evaluations})
