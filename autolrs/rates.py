"""The learning rates of the tuned optimizer: set before each step, and guarded against other hands."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autolrs.errors import RateOverriddenError, SettingError


class Rates:
    """Sets the rate of every parameter group; group g gets the reference rate times its ratio at `track`.

    The reference is the first group with a positive rate. A rate held in a tensor (capturable or compiled
    optimizers) is filled in place, so that nothing is recompiled.

    Raises:
        SettingError: no group has a positive, finite rate.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = optimizer.param_groups
        own = [float(group["lr"]) for group in self._groups]
        if not all(math.isfinite(rate) and rate >= 0 for rate in own) or not any(own):
            raise SettingError(
                f"the optimizer's rates must be finite, not negative, and one of them positive, but got {own}: "
                "the ratios between groups are taken from them."
            )
        self._reference = next(g for g, rate in enumerate(own) if rate > 0)
        self.own_rate = own[self._reference]
        self.ratios = tuple(rate / self.own_rate for rate in own)
        self._tensors = [group["lr"] if isinstance(group["lr"], Tensor) else None for group in self._groups]
        self._plain = not any(tensor is not None for tensor in self._tensors)
        self._applied: list[Any] = []  # what each group's "lr" must be; empty: not ours now
        self._versions: list[int] = []
        self.current = self.own_rate
        self._hook = optimizer.register_step_pre_hook(self._check)

    def apply(self, rate: float) -> None:
        """Put the reference rate `rate` in force."""
        self.current = rate
        if self._plain and len(self._groups) == 1:
            self._groups[0]["lr"] = rate
            self._applied = [rate]
            return
        applied: list[Any] = []
        for group, ratio, tensor in zip(self._groups, self.ratios, self._tensors, strict=True):
            value = rate * ratio
            if tensor is None:
                group["lr"] = value
                applied.append(value)
            else:
                tensor.fill_(value)
                group["lr"] = tensor
                applied.append(tensor)
        self._versions = [tensor._version if tensor is not None else 0 for tensor in self._tensors]
        self._applied = applied

    def release(self) -> None:
        """The loop is over: steps from here on are the user's own."""
        self._applied = []

    def close(self) -> None:
        self._hook.remove()

    def _check(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for group, ours in zip(self._groups, self._applied, strict=False):
            if group["lr"] is not ours:
                self._compare(self._groups.index(group), group["lr"], ours)
        if not self._plain and self._applied:
            for index, (tensor, version) in enumerate(zip(self._tensors, self._versions, strict=True)):
                if tensor is not None and tensor._version != version:
                    self._refuse(index, float(tensor), self.current * self.ratios[index])

    def _compare(self, index: int, found: Any, ours: Any) -> None:
        if isinstance(ours, Tensor) or found != ours:
            self._refuse(index, float(found), self.current * self.ratios[index])

    def _refuse(self, index: int, found: float, ours: float) -> None:
        raise RateOverriddenError(
            f"parameter group {index} has the learning rate {found!r}, but the session set {ours!r}: something else "
            "writes it. Remove the line that does, such as `scheduler.step()` or `group['lr'] = ...`."
        )
