"""The learning rates of the tuned optimizer: set before each step, and guarded against other hands."""

from __future__ import annotations

import math
from collections.abc import Callable
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
        self._applied: list[float] = []  # the rate that each group must have; empty: not ours now
        self._versions: list[int] = []  # of the tensors, which nobody may write but us
        plain = all(tensor is None for tensor in self._tensors)
        self.apply = self._applier() if plain else self._apply_tensors
        self._hook = optimizer.register_step_pre_hook(self._checker() if plain else self._check_tensors)

    @property
    def current(self) -> float:
        """The reference rate in force."""
        return float(self._groups[self._reference]["lr"])

    def release(self) -> None:
        """The loop is over: steps from here on are the user's own."""
        self._applied.clear()

    def close(self) -> None:
        self._hook.remove()

    # Every step pays for `apply` and the check, so the usual case is a closure that does next to nothing.

    def _applier(self) -> Callable[[float], None]:
        groups, ratios, applied = self._groups, self.ratios, self._applied
        (group, *others) = groups

        def apply_one(rate: float) -> None:
            """Put the reference rate `rate` in force."""
            group["lr"] = rate
            applied[:] = (rate,)

        def apply_all(rate: float) -> None:
            """Put the reference rate `rate` in force."""
            applied[:] = [rate * ratio for ratio in ratios]
            for each, value in zip(groups, applied, strict=True):
                each["lr"] = value

        return apply_all if others else apply_one

    def _checker(self) -> Callable[[Optimizer, Any, Any], None]:
        groups, applied, refuse = self._groups, self._applied, self._refuse

        def check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for group, ours in zip(groups, applied):  # noqa: B905 - `applied` is empty where the rate is not ours
                if group["lr"] is not ours and group["lr"] != ours:
                    refuse(group, ours)

        return check

    def _apply_tensors(self, rate: float) -> None:
        self._applied[:] = [rate * ratio for ratio in self.ratios]
        for group, tensor, value in zip(self._groups, self._tensors, self._applied, strict=True):
            if tensor is None:
                group["lr"] = value
            else:
                group["lr"] = tensor.fill_(value)
        self._versions = [tensor._version if tensor is not None else 0 for tensor in self._tensors]

    def _check_tensors(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return  # a compiled step calls this while it is traced, where versions mean nothing
        ours = zip(self._groups, self._applied, self._tensors, self._versions)  # noqa: B905
        for group, value, tensor, version in ours:
            if tensor is None:
                if group["lr"] != value:
                    self._refuse(group, value)
            elif group["lr"] is not tensor or tensor._version != version:
                self._refuse(group, value)

    def _refuse(self, group: dict[str, Any], ours: float) -> None:
        index = next(index for index, other in enumerate(self._groups) if other is group)
        raise RateOverriddenError(
            f"parameter group {index} has the learning rate {float(group['lr'])!r}, but the session set {ours!r}: "
            "something else writes it. Remove the line that does, such as `scheduler.step()` or `group['lr'] = ...`."
        )
