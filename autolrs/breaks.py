"""Whether the kept run has broken with a loss that is still finite.

A rate just above what a network can take may throw it out of its basin in the middle of the run: the loss jumps most of
the way back up and stays there. Spikes that pass by themselves, noise, and losses near zero that vary by orders of
magnitude are not that. So levels are compared, means over half of the time between two checkpoints, and the loss must
have lost ground on the scale of the progress so far, not only on its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Final

FEWEST: Final = 5
"""Levels before anything is called a break: the loss at the start, and four checkpoints."""
SHARE: Final = 0.4
"""Share of the progress, of logarithms where all losses are positive, that is lost in a break."""
LEAST: Final = 0.1
"""The same of the losses themselves."""
NOISE: Final = 4.0
"""A break is larger than this many times what levels commonly change by."""


def broken(levels: Sequence[float], now: float) -> bool:
    """Whether the level `now` is that of a broken run.

    Args:
        levels: mean losses at the start and before each checkpoint since then, in order.
    """
    if len(levels) < FEWEST:
        return False
    first, best = levels[0], min(levels)
    lost, gained = now - best, first - best
    common = median(abs(b - a) for a, b in pairwise(levels[1:]))
    if not (gained > 0 and lost > NOISE * common and lost > LEAST * gained):
        return False
    if best <= 0:
        return lost > SHARE * gained
    return math.log(now / best) > SHARE * math.log(first / best)
