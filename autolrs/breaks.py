"""The kept run's losses so far, and whether it has broken with one that is still finite.

A rate just above what a network can take may throw it out of its basin in the middle of the run: the loss jumps most of
the way back up and stays there. Spikes that pass by themselves, noise, and losses near zero that vary by orders of
magnitude are not that. So levels are compared, means over half of the time between two checkpoints, and the loss must
have lost ground on the scale of the progress so far, not only on its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, Final

import torch

from autolrs.records import READ, mean_of

FEWEST: Final = 5
"""Levels before anything is called a break: the loss at the start, and four checkpoints."""
SHARE: Final = 0.4
"""Share of the progress, of logarithms where all losses are positive, that is lost in a break."""
LEAST: Final = 0.1
"""The same of the losses themselves."""
TAIL: Final = 4096
"""Kept training losses remembered at most."""
NOISE: Final = 6.0
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


class KeptLosses:
    """The last training losses of the kept run, and its levels; both hang on its steps alone, wherever it stopped.

    Args:
        steps: of the whole run.
        every: kept steps between checkpoints. Fewer than 2 * `READ` make no levels: they would be noise, and a break be
            noticed when its checkpoints are all that is left.
    """

    def __init__(self, steps: int, every: int) -> None:
        self._every = every
        self._window = max(1, min(every // 2, TAIL, steps // 10))
        self._tail: deque[float] = deque(maxlen=min(max(READ, steps // 10), TAIL))
        self._levels: list[float] = []

    @property
    def mean(self) -> float | None:
        """Of the last tenth of the run; None before any."""
        return mean_of(self._tail) if self._tail else None

    def extend(self, losses: Sequence[float]) -> None:
        self._tail.extend(losses)

    def watch(self, losses: Sequence[float], step: int) -> str:
        """What is wrong, "" if nothing is, with the losses since those of `extend`, the last that of the update before
        `step`. Notes the level, where one is due and nothing is wrong."""
        begins = step == READ and not self._levels
        if self._every < 2 * READ or not (begins or (self._levels and step % self._every == 0)):
            return ""
        level = mean_of([*self._tail, *losses][-(READ if begins else self._window) :])
        if why := self._wrong(level, step):
            return why
        self._levels.append(level)
        return ""

    def judge(self, losses: Sequence[float], step: int) -> str:
        """What is wrong with `losses`, if they are as many as a level is of: fewer may be but a spike."""
        return self._wrong(mean_of(losses[-self._window :]), step) if len(losses) >= max(self._window, READ) else ""

    def _wrong(self, level: float, step: int) -> str:
        if not broken(self._levels, level):
            return ""
        return f"mean loss {level:.4g} before step {step}, {min(self._levels):.4g} earlier"

    def tree(self) -> dict[str, Any]:
        """As a part of a checkpoint."""
        return {
            "tail": torch.tensor(list(self._tail), dtype=torch.float64),
            "levels": torch.tensor(self._levels, dtype=torch.float64),
        }

    def load(self, tree: dict[str, Any]) -> None:
        """Inverse of `tree`."""
        self._tail.clear()
        self._tail.extend(tree["tail"].tolist())
        self._levels = tree["levels"].tolist() if "levels" in tree else []  # a checkpoint of an older version
