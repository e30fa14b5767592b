"""Averages of the kept run's weights, kept up while it trains.

Weights wander about a valley's floor as long as the rate is above zero, and their average lies nearer to it: what a
decay does at the end, an average does along the way (Izmailov et al. 2018, arXiv 1803.05407; Hägele et al. 2024, arXiv
2405.18392, sec. 4). Where the run overfits it also keeps something of the time before. Whether it is better than where
the run ended only a validation loss can tell.

The weight of step s is proportional to s^power (Karras et al. 2024, arXiv 2312.02696, eq. 1): it needs no length to be
known beforehand, and forgets the run's beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from autolrs.records import READ
from autolrs.snapshot import Tree

POWERS: Final = (3.0, 7.0)
"""An average's standard deviation in time is 15 and 10 % of the run so far."""

EVERY: Final = READ
"""Kept steps between the weights that are averaged: the session is at work there anyhow."""


class Averages:
    """Averages of the floating-point tensors of some modules, as something to track (`snapshot.Tracked`).

    Buffers are averaged like parameters, integers are those of the last step. Half precision is averaged in float32.

    Attributes:
        used: power of the average that the modules now have for weights; None: their own.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.used: float | None = None
        self._modules = dict(modules)
        self._step = 0  # of the last weights in the averages
        self._means: dict[float, dict[str, Tensor]] = {}

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Take in the weights after `step` of `steps` kept updates, if they are among those that are averaged.

        Which are hangs on the step alone, so that a run that was broken off ends the same.
        """
        if step % EVERY and step != steps:
            return
        live = self._live()
        for power in POWERS:
            if not self._step:
                self._means[power] = {name: _wide(tensor, copy=True) for name, tensor in live.items()}
                continue
            means, share = self._means[power], 1 - (self._step / step) ** (power + 1)
            for name, tensor in live.items():
                if tensor.is_floating_point() or tensor.is_complex():
                    means[name].lerp_(_wide(tensor), share)
                else:
                    means[name].copy_(tensor)
        self._step = step

    @torch.no_grad()
    def use(self, power: float) -> None:
        """Give the modules this average for weights, in place."""
        for name, tensor in self._live().items():
            tensor.copy_(self._means[power][name])
        self.used = power

    def capture(self) -> Tree:
        return {
            "kind": "averages",
            "step": self._step,
            "used": self.used,
            "means": {
                f"{power:g}": {name: mean.clone() for name, mean in means.items()}
                for power, means in self._means.items()
            },
        }

    def restore(self, tree: Tree) -> None:
        live = self._live()
        self._step, self.used = tree["step"], tree["used"]
        self._means = {
            float(power): {name: mean.to(live[name].device, copy=True) for name, mean in means.items()}
            for power, means in tree["means"].items()
        }

    def _live(self) -> dict[str, Tensor]:
        found: dict[str, Any] = {}
        for name, module in self._modules.items():
            tensors = (*module.named_parameters(), *module.named_buffers())
            found |= {f"{name}.{key}": tensor.detach() for key, tensor in tensors}
        return found


def _wide(tensor: Tensor, *, copy: bool = False) -> Tensor:
    """In float32, if its own precision is lower."""
    narrow = tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
    return tensor.to(torch.float32 if narrow else tensor.dtype, copy=copy)
