"""The learning rates of the tuned optimizer: set before each step, and guarded against other hands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from autolrs.errors import RateOverriddenError, SessionError, SettingError
from autolrs.momentum import momentum_of, set_momentum, sums_gradients


def rates_of(optimizer: Optimizer) -> list[float]:
    """The rate of each parameter group, as it is now."""
    return [float(group["lr"]) for group in optimizer.param_groups]


class Rates:
    """Sets the rate of every parameter group; group g gets the reference rate times its ratio at `track`.

    The reference is the first group with a positive rate. A rate held in a tensor (capturable or compiled
    optimizers) is filled in place, so that nothing is recompiled.

    Args:
        own: the rate of each group at `track`.

    Raises:
        SettingError: no group has a positive, finite rate.
        SessionError: groups were added since `track`.
    """

    def __init__(self, optimizer: Optimizer, own: Sequence[float]) -> None:
        self._optimizer = optimizer
        self._check_count(len(own))
        if not all(math.isfinite(rate) and rate >= 0 for rate in own) or not any(own):
            raise SettingError(
                f"the optimizer's rates must be finite, not negative, and one of them positive, but got {own}: "
                "the ratios between groups are taken from them."
            )
        self._reference = next(g for g, rate in enumerate(own) if rate > 0)
        self.own_rate = own[self._reference]
        self.ratios = tuple(rate / self.own_rate for rate in own)
        self.own_momentum = momentum_of(optimizer.param_groups)
        self.sums_gradients = self.own_momentum is not None and sums_gradients(optimizer.param_groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        self._tensors = [rate if isinstance(rate, Tensor) else None for rate in rates]
        self._applied: list[float | None] = [None] * len(own)  # the rate that each group must have; None: any
        self._left: list[float] = []  # the rates at `release`
        self._versions: list[int] = []  # of the tensors, which nobody may write but us
        plain = all(tensor is None for tensor in self._tensors)
        self.apply = self._applier() if plain else self._apply_tensors
        self._check_step = self._checker() if plain else self._check_tensors
        self.move = self._mover()
        self._hook = optimizer.register_step_pre_hook(self._check_step)

    @property
    def current(self) -> float:
        """The reference rate in force."""
        return float(self._optimizer.param_groups[self._reference]["lr"])

    def use_momentum(self, momentum: float | None) -> None:
        """Put a momentum in force; None: the optimizer's own. A restore brings back what was in force then."""
        if self.own_momentum is not None:
            set_momentum(self._optimizer.param_groups, self.own_momentum if momentum is None else momentum)

    def check(self) -> None:
        """See that nobody else has written a rate since it was applied: `scheduler.step()` comes after the update.

        Raises:
            RateOverriddenError: somebody has.
            SessionError: groups were added.
        """
        self._check_count(len(self._applied))
        self._check_step(self._optimizer, (), {})

    def release(self) -> None:
        """The loop is over: steps from here on are the user's own."""
        self._applied[:] = [None] * len(self._applied)
        self._left = rates_of(self._optimizer)

    @property
    def touched(self) -> bool:
        """Whether somebody has written a rate since `release`."""
        return bool(self._left) and self._left != rates_of(self._optimizer)

    def close(self) -> None:
        self._hook.remove()

    # Every step pays for `apply` and the check, so the usual case is a closure that does next to nothing.

    def _applier(self) -> Callable[[float], None]:
        optimizer, ratios, applied = self._optimizer, self.ratios, self._applied

        def apply_one(rate: float) -> None:
            """Put the reference rate `rate` in force."""
            optimizer.param_groups[0]["lr"] = applied[0] = rate  # looked up, for `load_state_dict` makes new groups

        def apply_all(rate: float) -> None:
            """Put the reference rate `rate` in force."""
            applied[:] = [rate * ratio for ratio in ratios]
            for group, value in zip(optimizer.param_groups, applied):  # noqa: B905 - `check` compares their numbers
                group["lr"] = value

        return apply_one if len(ratios) == 1 else apply_all

    def _mover(self) -> Callable[[float], None]:
        """Like `apply`, where nobody else can have written a rate since it was applied last."""
        optimizer, check, apply = self._optimizer, self._check_step, self.apply

        def move(rate: float) -> None:
            """Put the reference rate `rate` in force, if the one before still is."""
            check(optimizer, (), {})
            apply(rate)

        return move

    def _checker(self) -> Callable[[Optimizer, Any, Any], None]:
        applied, refuse = self._applied, self._refuse

        def check_one(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            rate, ours = optimizer.param_groups[0]["lr"], applied[0]
            if rate is not ours and rate != ours and ours is not None:
                refuse(0, ours)

        def check_all(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for index, ours in enumerate(applied):
                rate = optimizer.param_groups[index]["lr"]
                if rate is not ours and rate != ours and ours is not None:
                    refuse(index, ours)

        return check_one if len(applied) == 1 else check_all

    def _apply_tensors(self, rate: float) -> None:
        values = [rate * ratio for ratio in self.ratios]
        for group, tensor, value in zip(self._optimizer.param_groups, self._tensors, values):  # noqa: B905
            if tensor is None:
                group["lr"] = value
            else:
                group["lr"] = tensor.fill_(value)
        self._applied[:] = values
        self._versions = [tensor._version if tensor is not None else 0 for tensor in self._tensors]

    def _check_tensors(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        ours = zip(optimizer.param_groups, self._applied, self._tensors, self._versions)  # noqa: B905
        for index, (group, value, tensor, version) in enumerate(ours):
            if value is None:
                continue
            if tensor is None:
                if group["lr"] != value:
                    self._refuse(index, value)
            elif group["lr"] is not tensor or tensor._version != version:
                self._refuse(index, value)

    def _refuse(self, index: int, ours: float) -> NoReturn:
        rate = float(self._optimizer.param_groups[index]["lr"])
        raise RateOverriddenError(
            f"parameter group {index} has the learning rate {rate!r}, but the session set {ours!r}: "
            "something else writes it. Remove the line that does, such as `scheduler.step()` or `group['lr'] = ...`."
        )

    def _check_count(self, count: int) -> None:
        if (now := len(self._optimizer.param_groups)) != count:
            raise SessionError(
                f"the optimizer has {now} parameter groups, but it had {count} when it was tracked: add all of them "
                "before `track` (with `requires_grad=False` for those to be frozen at first)."
            )
