"""Learning-rate schedules as values: a schedule is a function from a step to a rate.

Notation
    step    number of the optimizer update, counted from 0       [step]
    piece   a stretch [start, stop) of steps with one shape      rates are values, never factors

A piece takes the value `first` at `start` and approaches `last` at `stop`, so that consecutive pieces
join without a gap and a decay to 0 still trains on its last step.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autolrs.errors import SettingError, UnknownNameError
from autolrs.lookahead import lookahead_lr
from autolrs.momentum import set_momentum

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

SHAPES: Final = ("constant", "linear", "cosine", "sqrt")
"""Shapes of a piece; `sqrt` is the 1-sqrt cool-down of Hägele et al. 2024 (arXiv 2405.18392, eq. 1)."""

BASES: Final = ("constant", "linear", "cosine", "wsd", "wsd-sqrt")
"""Base schedules, each after its warm-up: what is done with the peak rate until the end of the run."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Steps `start <= step < stop` at rates going from `first` (at `begin`) to `last` (at `end`).

    `begin` and `end` are `start` and `stop` unless the piece was cut out of a longer one: a cut piece gives
    the very same floats as the whole.
    """

    start: int
    stop: int
    shape: str
    first: float
    last: float
    begin: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UnknownNameError.of("schedule shape", self.shape, SHAPES)
        if not 0 <= self.start < self.stop:
            raise SettingError(f"`0 <= start < stop` must hold, but got (start={self.start}, stop={self.stop}).")
        if not (math.isfinite(self.first) and math.isfinite(self.last) and min(self.first, self.last) >= 0):
            raise SettingError(
                f"rates must be finite and not negative, but got (first={self.first}, last={self.last})."
            )

    def rate(self, step: int) -> float:
        """Rate at `step`; at `stop`, the rate that the piece approaches."""
        return self.over(step, step + 1)[0]

    def over(self, start: int, stop: int) -> list[float]:
        """Rates at the steps [start, stop)."""
        first, rise = self.first, self.last - self.first
        if self.shape == "constant":
            return [first] * (stop - start)
        begin = self.start if self.begin is None else self.begin
        span = (self.stop if self.end is None else self.end) - begin
        if self.shape == "linear":
            return [first + rise * ((step - begin) / span) for step in range(start, stop)]
        if self.shape == "cosine":
            return [
                first + rise * (0.5 - 0.5 * math.cos(math.pi * ((step - begin) / span))) for step in range(start, stop)
            ]
        return [first + rise * math.sqrt((step - begin) / span) for step in range(start, stop)]

    def between(self, start: int, stop: int) -> Piece:
        """The part of this piece within [start, stop), with the same rates at the same steps."""
        return replace(
            self,
            start=max(start, self.start),
            stop=min(stop, self.stop),
            begin=self.start if self.begin is None else self.begin,
            end=self.stop if self.end is None else self.end,
        )

    def scaled(self, factor: float) -> Piece:
        return replace(self, first=self.first * factor, last=self.last * factor)

    def shifted(self, steps: int) -> Piece:
        return replace(
            self,
            start=self.start + steps,
            stop=self.stop + steps,
            begin=None if self.begin is None else self.begin + steps,
            end=None if self.end is None else self.end + steps,
        )


@dataclass(frozen=True)
class Schedule:
    """Reference learning rate per step, and its multiple for each parameter group.

    `schedule(step)` is the rate used by the update numbered `step`, from 0. From the last planned step on
    it stays at the value that the last piece approaches (0 after a decay).

    Attributes:
        pieces: consecutive pieces from step 0 on.
        ratios: rate of each parameter group over the reference rate, in the optimizer's order.
        momentum: what the rates go with (SGD's momentum, Adam's beta_1), if it is not the optimizer's own.
        lookahead: whether they go with slow weights (`autolrs.lookahead`).

    >>> schedule = Schedule.build("linear", rate=0.1, steps=100, warmup=9)
    >>> [round(schedule(step), 4) for step in (0, 9, 99, 100)]
    [0.01, 0.1, 0.0011, 0.0]
    """

    pieces: tuple[Piece, ...]
    ratios: tuple[float, ...] = (1.0,)
    momentum: float | None = None
    lookahead: bool = False

    def __post_init__(self) -> None:
        ends = [0, *(piece.stop for piece in self.pieces)]
        starts = [piece.start for piece in self.pieces]
        if not self.pieces or starts != ends[:-1]:
            raise SettingError(f"pieces must follow each other from step 0, but got starts {starts}, ends {ends[1:]}.")
        if not self.ratios or not all(math.isfinite(ratio) and ratio >= 0 for ratio in self.ratios):
            raise SettingError(f"`ratios` must be finite and not negative, one a group, but got {self.ratios}.")
        if self.momentum is not None and not 0 < self.momentum < 1:
            raise SettingError(f"`0 < momentum < 1` must hold, but got (momentum={self.momentum}).")
        if not isinstance(self.lookahead, bool):
            raise SettingError(f"`lookahead is True or False` must hold, but got (lookahead={self.lookahead!r}).")

    @classmethod
    def build(cls, base: str, *, rate: float, steps: int, warmup: int = 0, decay: float = 0.2) -> Schedule:
        """A whole base schedule (see `base_pieces`)."""
        return cls(base_pieces(base, rate=rate, start=0, stop=steps, warmup=warmup, decay=decay))

    @property
    def steps(self) -> int:
        return self.pieces[-1].stop

    @cached_property
    def _starts(self) -> list[int]:
        return [piece.start for piece in self.pieces]

    def __call__(self, step: int) -> float:
        if step < 0:
            raise SettingError(f"`step >= 0` must hold, but got (step={step}).")
        if step >= self.steps:
            return self.pieces[-1].rate(self.steps)
        return self.pieces[bisect_right(self._starts, step) - 1].rate(step)

    def over(self, start: int, stop: int) -> list[float]:
        """The rates at the steps [start, stop), all planned, in one go."""
        rates: list[float] = []
        for piece in self.pieces:
            if piece.start < stop and start < piece.stop:
                rates += piece.over(max(start, piece.start), min(stop, piece.stop))
        return rates

    def rates(self, step: int) -> tuple[float, ...]:
        """Rate of every parameter group at `step`."""
        reference = self(step)
        return tuple(reference * ratio for ratio in self.ratios)

    def to_lambda_lr(self, optimizer: Optimizer) -> LambdaLR:
        """A `LambdaLR` that gives `optimizer` exactly these rates; call its `step()` after each update.

        The base rates are set to 1.0, so that the product LambdaLR forms is the rate itself, bit for bit. The
        optimizer is given the schedule's momentum, if that has one; of a schedule with lookahead the `LambdaLR` holds
        the slow weights, and its `step()` draws the optimizer's back to them.

        Raises:
            SettingError: the optimizer has another number of parameter groups than the tuned one.
        """
        from torch.optim.lr_scheduler import LambdaLR

        if len(optimizer.param_groups) != len(self.ratios):
            raise SettingError(
                f"the schedule has {len(self.ratios)} parameter groups, but the optimizer has "
                f"{len(optimizer.param_groups)}."
            )
        for group in optimizer.param_groups:
            group["initial_lr"] = 1.0
        if self.momentum is not None:
            set_momentum(optimizer.param_groups, self.momentum)

        def of(group: int) -> Callable[[int], float]:
            return lambda step: self.rates(step)[group]

        rates = [of(group) for group in range(len(self.ratios))]
        return lookahead_lr(optimizer, rates) if self.lookahead else LambdaLR(optimizer, rates)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "autolrs-schedule",
            "version": 1,
            "pieces": [asdict(piece) for piece in self.pieces],
            "ratios": list(self.ratios),
            **({} if self.momentum is None else {"momentum": self.momentum}),
            **({"lookahead": True} if self.lookahead else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schedule:
        if not isinstance(data, dict) or data.get("format") != "autolrs-schedule" or data.get("version") != 1:
            raise SettingError("not an autolrs schedule: `format` must be 'autolrs-schedule' and `version` 1.")
        pieces = tuple(Piece(**piece) for piece in data["pieces"])
        return cls(pieces, tuple(data["ratios"]), data.get("momentum"), data.get("lookahead", False))

    def save(self, path: str | Path) -> None:
        """Write the schedule as JSON; rates survive exactly."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a schedule written by `save`.

        Raises:
            SettingError: the file is not an autolrs schedule.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError) as error:
            raise SettingError(f"{path} is not an autolrs schedule: {error}") from error


def base_pieces(
    base: str, *, rate: float, start: int, stop: int, warmup: int = 0, decay: float = 0.2
) -> tuple[Piece, ...]:
    """Pieces of a base schedule over the steps [start, stop).

    Args:
        base: one of `BASES`. `linear` and `cosine` decay to zero from the end of the warm-up on; `wsd`
            (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395) holds the peak and decays linearly,
            `wsd-sqrt` as 1-sqrt, over the last `decay` of the steps.
        rate: peak rate.
        warmup: steps of linear warm-up; update i of w+1 has rate * (i + 1) / (w + 1).
        decay: share of [start, stop) that the decay of `wsd` takes, in (0, 1].
    """
    if base not in BASES:
        raise UnknownNameError.of("base schedule", base, BASES)
    if not 0 <= start < stop:
        raise SettingError(f"`0 <= start < stop` must hold, but got (start={start}, stop={stop}).")
    if not (0 < decay <= 1 and warmup >= 0):
        raise SettingError(f"`0 < decay <= 1` and `warmup >= 0` must hold, but got ({decay=}, {warmup=}).")
    warm = start + min(warmup, stop - start - 1)
    pieces = []
    if warm > start:
        pieces.append(Piece(start, warm, "linear", rate / (warm - start + 1), rate))
    if base == "constant":
        pieces.append(Piece(warm, stop, "constant", rate, rate))
    elif base in ("linear", "cosine"):
        pieces.append(Piece(warm, stop, base, rate, 0.0))
    else:
        turn = max(warm, stop - max(1, round(decay * (stop - start))))
        if turn > warm:
            pieces.append(Piece(warm, turn, "constant", rate, rate))
        pieces.append(Piece(turn, stop, "linear" if base == "wsd" else "sqrt", rate, 0.0))
    return tuple(pieces)


def cut(pieces: Sequence[Piece], start: int, stop: int) -> tuple[Piece, ...]:
    """What `pieces` say about the steps [start, stop)."""
    return tuple(
        piece if start <= piece.start and piece.stop <= stop else piece.between(start, stop)
        for piece in pieces
        if max(start, piece.start) < min(stop, piece.stop)
    )
