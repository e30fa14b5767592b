"""Fixed schedules by name: what a user would tune by full runs, each with one peak rate.

Notation
    s       update, from 0; all families share the warm-up over the first w updates
    t       (s - w) / (steps - w), progress after the warm-up, in [0, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from autolrs.schedules import Schedule

Rates = list[float]
"""A rate for each update."""

DECAY: Final = 0.2
"""Share of the run that the families with a plateau decay over."""


def constant(rate: float, steps: int, warmup: int) -> Rates:
    return _base("constant", rate, steps, warmup)


def cosine(rate: float, steps: int, warmup: int) -> Rates:
    """Half a cosine to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts)."""
    return _base("cosine", rate, steps, warmup)


def linear(rate: float, steps: int, warmup: int) -> Rates:
    return _base("linear", rate, steps, warmup)


def wsd(rate: float, steps: int, warmup: int) -> Rates:
    """Warm-up, stable, linear decay (Hu et al. 2024, arXiv 2404.06395)."""
    return _base("wsd", rate, steps, warmup)


def wsd_sqrt(rate: float, steps: int, warmup: int) -> Rates:
    """The same with the 1-sqrt cool-down (Hägele et al. 2024, arXiv 2405.18392, eq. 1)."""
    return _base("wsd-sqrt", rate, steps, warmup)


def rex(rate: float, steps: int, warmup: int) -> Rates:
    """Reflected exponential, (1 - t) / (1 - t / 2) (Chen, Wolfe & Kyrillidis 2022, arXiv 2107.04197, eq. 2)."""
    return _warmed(rate, steps, warmup, lambda t: (1 - t) / (1 - t / 2))


def one_cycle(rate: float, steps: int, warmup: int) -> Rates:
    """Up over 30 % of the run from rate / 25, then down to zero, both as cosines; its own warm-up (Smith & Topin 2019,
    arXiv 1708.07120; the shares are those of `torch.optim.lr_scheduler.OneCycleLR`)."""
    top = 0.3 * steps
    up = [rate / 25 + (rate - rate / 25) * (0.5 - 0.5 * math.cos(math.pi * s / top)) for s in range(math.ceil(top))]
    return up + [rate * (0.5 + 0.5 * math.cos(math.pi * (s - top) / (steps - top))) for s in range(len(up), steps)]


def step(rate: float, steps: int, warmup: int) -> Rates:
    """A tenth after half of the updates, and again after three quarters (He et al. 2016, arXiv 1512.03385, 4.2)."""
    return _warmed(rate, steps, warmup, lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01)


Family = Callable[[float, int, int], Rates]

FAMILIES: Final[dict[str, Family]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "wsd-sqrt": wsd_sqrt,
    "rex": rex,
    "one-cycle": one_cycle,
    "step": step,
}


def _base(name: str, rate: float, steps: int, warmup: int) -> Rates:
    return Schedule.build(name, rate=rate, steps=steps, warmup=warmup, decay=DECAY).over(0, steps)


def _warmed(rate: float, steps: int, warmup: int, shape: Callable[[float], float]) -> Rates:
    rising = [rate * (s + 1) / (warmup + 1) for s in range(warmup)]
    return rising + [rate * shape((s - warmup) / (steps - warmup)) for s in range(warmup, steps)]
