"""Where users plug in: each protocol is small, and anything that has its methods will do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from autolrs.records import Curve, Event, Forecast, Instruction, Probe, Probed, Record
from autolrs.schedules import Schedule

if TYPE_CHECKING:
    from autolrs.forecasts import Forecasts

__all__ = ["Callback", "CurveModel", "Forecasts", "Observation", "Sampler", "Strategy"]


def __getattr__(name: str) -> Any:
    """`Forecasts` is here too, but imported only when it is asked for: it needs NumPy."""
    if name == "Forecasts":
        from autolrs.forecasts import Forecasts

        return Forecasts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@runtime_checkable
class CurveModel(Protocol):
    """Extrapolates curves. Pure: the same arguments give the same forecasts, and nothing is kept.

    `at` holds one offset [step] for each curve. `schedule` is the rate over the curves' offsets, for models that
    know the rate; `history` the curves of the kept run so far. Finite input never raises and never warns.
    """

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts: ...


@dataclass(frozen=True, slots=True)
class Observation:
    """What a sampler knows of one trial.

    Attributes:
        rate: reference rate tried.
        value: forecast or measured loss at the horizon; not finite: the probe diverged.   [loss]
        std: its standard deviation.   [loss]
        stage: the stage it was tried in.
        start_loss: loss at that stage's start; values are judged against it.   [loss]
        pending: issued, but no value yet.
    """

    rate: float
    value: float
    std: float
    stage: int
    start_loss: float
    pending: bool = False


@runtime_checkable
class Sampler(Protocol):
    """Proposes rates. Pure; `number` counts the stage's proposals and seeds what is random."""

    def propose(
        self,
        observations: Sequence[Observation],
        *,
        bounds: tuple[float, float],
        stage: int,
        number: int,
        seed: int,
        first: float | None = None,
    ) -> float:
        """The next rate to try in `stage`, within `bounds`; `first` is where a search starts."""

    def best(self, observations: Sequence[Observation], *, bounds: tuple[float, float], stage: int) -> int:
        """Index into `observations` of the stage's best tried rate (lowest posterior mean).

        Raises:
            ValueError: no finished, finite observation of that stage.
        """

    def optimum(self, observations: Sequence[Observation], *, bounds: tuple[float, float], stage: int) -> float:
        """The stage's best rate (lowest posterior mean), tried or not.

        Raises:
            ValueError: no finished, finite observation of that stage.
        """


@runtime_checkable
class Strategy(Protocol):
    """Decides what a stage does. Pure: everything it may use is in the record.

    What it returns is made of the classes of `autolrs.records`, plain strings and numbers: it is stored as JSON, and
    sent to workers, where a class of its own might not be found.
    """

    @property
    def name(self) -> str: ...

    @property
    def search_budget(self) -> float:
        """Probe steps / `steps` if the user names no budget."""

    def decide(self, record: Record, in_flight: Collection[int] = frozenset()) -> Instruction:
        """`Open`, `Probe` or `Decide`; asked only while the record's last stage is undecided or done.

        `in_flight` are numbers of running trials that other workers are at work on: `Wait` for them where there is no
        further probe to run beside them. It is given only where there are any, so that a strategy for one worker may
        leave it out. Trials that run and are not in it were lost in a crash: say them again.
        """

    def judge(self, record: Record, probed: Probed) -> Forecast | None:
        """The loss expected of an ended probe's rate at the strategy's horizon; None if it diverged."""

    def prune(self, record: Record, probe: Probe, curve: Curve) -> str:
        """Why a running probe should stop now, in a few words; "" to let it run."""


@runtime_checkable
class Callback(Protocol):
    """Is told what happens; may raise to stop the run (the study stays resumable)."""

    def on_event(self, record: Record, event: Event) -> None:
        """After each event was stored (with executor "ray" it is stored some milliseconds later); `record` is the state
        after it."""

    def on_progress(self, record: Record, instruction: Instruction, done: int, loss: float) -> None:
        """About every 16 updates: `done` updates of `instruction`, mean recent training `loss`."""
