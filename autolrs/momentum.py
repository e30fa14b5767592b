"""Momentum of an optimizer: SGD's `momentum`, the first of `betas` of Adam and its kin.

Works on parameter groups as dicts, so that it needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def momentum_of(groups: Sequence[dict[str, Any]]) -> float | None:
    """The momentum that all parameter groups have; None if they have none, different ones, or hold it in a tensor."""
    found = {_of(group) for group in groups}
    return found.pop() if len(found) == 1 else None


def set_momentum(groups: Sequence[dict[str, Any]], momentum: float) -> None:
    """Give all groups this momentum; each must have one."""
    for group in groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def sums_gradients(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether an update is a decaying *sum* of gradients (SGD), which grows with the momentum, or a mean (Adam)."""
    return "betas" not in groups[0] and not groups[0].get("dampening")


def equivalent(rate: float, own: float, momentum: float, sums: bool) -> float:
    """The rate that leaves the size of updates as it was when the momentum goes from `own` to `momentum`.

    The sum of decaying gradients is 1 / (1 - momentum) long.

    >>> equivalent(0.1, 0.9, 0.8, True), equivalent(0.1, 0.9, 0.8, False)
    (0.2, 0.1)
    """
    return rate * round((1 - momentum) / (1 - own), 12) if sums else rate


def _of(group: dict[str, Any]) -> float | None:
    momentum = group["betas"][0] if "betas" in group else group.get("momentum")
    return momentum if isinstance(momentum, float) and 0 < momentum < 1 else None
