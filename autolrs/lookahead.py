"""Lookahead: slow weights that follow the optimizer's own, and draw them back.

Every k updates, of the weights theta and the slow weights phi,

    phi <- phi + alpha (theta - phi),     theta <- phi

so that what the optimizer's steps have in common is kept and what they do against each other is halved. An optimizer
of the Adam family then takes about twice the rate, and one that is somewhat too high costs less (docs/algorithm.md).

The slow weights and the count of updates live in the optimizer's own state: in its `state_dict`, in every snapshot and
checkpoint, on every worker.

References:
    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back", 2019, arXiv 1907.08610,
    algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

EVERY: Final = 5
"""k, as in the paper."""

SHARE: Final = 0.5
"""alpha, as in the paper."""


def look_ahead(optimizer: Optimizer) -> RemovableHandle:
    """Have `optimizer` look ahead from its next `step()` on; `remove()` of what is returned ends it."""
    return optimizer.register_step_post_hook(draw_back)


# Exported schedules hold the body of this function, so it needs nothing but the two constants.
def draw_back(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """After each update: count it, and every `EVERY` of them move slow weights and weights.

    A parameter's slow weights begin where it is when it is first met with a gradient: after the first update, or at
    one of those that move.
    """
    import torch

    for group in optimizer.param_groups:
        group["lookahead"] = count = group.get("lookahead", 0) + 1
        if count != 1 and count % EVERY:
            continue
        state = optimizer.state
        with torch.no_grad():
            known = [p for p in group["params"] if "slow" in state.get(p, ())]
            if known and count % EVERY == 0:
                slow = [state[p]["slow"] for p in known]
                torch._foreach_lerp_(slow, known, SHARE)
                torch._foreach_copy_(known, slow)
            for p in group["params"]:
                if p.grad is not None and "slow" not in state[p]:  # its other state is there: it has been updated
                    state[p]["slow"] = p.detach().clone()
