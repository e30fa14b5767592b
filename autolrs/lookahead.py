"""Lookahead: slow weights that follow the optimizer's own, and draw them back.

Every k updates, of the weights theta and the slow weights phi,

    phi <- phi + alpha (theta - phi),     theta <- phi

With the paper's alpha = 1/2 the weights go half as far, and what k updates do against each other is gone sooner. An
optimizer of the Adam family then takes about twice the rate, and one that is somewhat too high costs less, as a rule
(docs/algorithm.md says where not).

The slow weights begin after the first update, not before it, because weights are often loaded late. They are no part of
the optimizer: a session tracks them, and the scheduler that replays a schedule holds them.

References:
    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back", 2019, arXiv 1907.08610,
    algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

EVERY: Final = 5
"""k, as in the paper."""

SHARE: Final = 0.5
"""alpha, as in the paper."""


def draw_back(optimizer: Optimizer, slow: list[Tensor], count: int) -> None:
    """What is due after update number `count`, from 1.

    Args:
        slow: a tensor a parameter, in the optimizer's order, written in place; empty: they begin here.
    """
    weights = _weights(optimizer)
    if not slow:
        slow.extend(weight.detach().clone() for weight in weights)
    elif count % EVERY == 0:
        import torch

        with torch.no_grad():
            torch._foreach_lerp_(slow, weights, SHARE)
            torch._foreach_copy_(weights, slow)


class Lookahead:
    """The slow weights of an optimizer in a session, as something to track (`snapshot.Tracked`)."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._slow: list[Tensor] = []
        self._count = 0

    def after(self, count: int) -> None:
        """To be called after each update with their number so far; a second call with the same does nothing."""
        if count > self._count:
            self._count = count
            draw_back(self._optimizer, self._slow, count)

    def capture(self) -> dict[str, Any]:
        return {"kind": "lookahead", "count": self._count, "slow": [tensor.clone() for tensor in self._slow]}

    def restore(self, tree: dict[str, Any]) -> None:
        self._count, self._slow = tree["count"], _beside(self._optimizer, tree["slow"])


def lookahead_lr(optimizer: Optimizer, rates: Sequence[Callable[[int], float]]) -> LambdaLR:
    """A `LambdaLR` whose optimizer looks ahead: its `step()`, after each update, does what is due.

    Its `state_dict` holds the slow weights, so that a training that goes on from there goes on the same.
    """
    from torch.optim.lr_scheduler import LambdaLR

    class LookaheadLR(LambdaLR):
        def __init__(self) -> None:
            self.slow: list[Tensor] = []
            super().__init__(optimizer, list(rates))

        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            if self.last_epoch > 0:  # the first call is that of `__init__`
                draw_back(self.optimizer, self.slow, self.last_epoch)

        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"slow": [tensor.clone() for tensor in self.slow]}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self.slow = _beside(self.optimizer, self.slow)  # not the tensors given, which may be in use elsewhere

    return LookaheadLR()


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _beside(optimizer: Optimizer, slow: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the devices of the weights that they are of; none if they have not begun."""
    weights = _weights(optimizer) if slow else []
    return [mine.to(weight.device, copy=True) for mine, weight in zip(slow, weights, strict=True)]
