"""What strategies share: reading a record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autolrs.errors import DivergedError
from autolrs.protocols import Observation
from autolrs.records import Curve, Probed, Record, Stage, TrialState

READ = 16
"""A training loss is judged on the mean of its last max(16, 10 %) values."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage as planned before any step is paid: `probes` probes of `length` steps from kept step `start`."""

    stage: int
    start: int
    probes: int
    length: int


def observations(record: Record) -> tuple[Observation, ...]:
    """What a sampler may know: every trial of every stage, running ones as pending."""
    return tuple(
        Observation(
            rate=trial.rate,
            value=trial.forecast.mean if trial.forecast is not None else math.nan,
            std=trial.forecast.std if trial.forecast is not None else math.nan,
            stage=stage.index,
            start_loss=stage.start_loss if stage.start_loss is not None else math.nan,
            pending=trial.state is TrialState.RUNNING,
        )
        for stage in record.stages
        for trial in stage.trials
    )


def of_stage(found: tuple[Observation, ...], stage: int) -> list[Observation]:
    return [o for o in found if o.stage == stage and not o.pending]


def bounds_of(record: Record, stage: Stage) -> tuple[float, float]:
    """The space's bounds; while all of a stage's probes diverge, the top comes down to the lowest of their rates.

    Raises:
        DivergedError: the loss is not finite before any update, or even the lowest rate diverges.
    """
    low, high = record.settings.space.bounds
    ended = [trial for trial in stage.trials if trial.state is not TrialState.RUNNING]
    for trial in ended:
        if trial.first_loss is not None and not math.isfinite(trial.first_loss):
            raise DivergedError(
                f"the loss is {trial.first_loss} at step {stage.start}, before any update at rate {trial.rate:g}: the "
                "model or the data is at fault, not the learning rate."
            )
    if ended and all(trial.state is TrialState.DIVERGED for trial in ended):
        high = min(trial.rate for trial in ended)
        if high <= low * (1 + 1e-9):
            rates = ", ".join(f"{trial.rate:.3g}" for trial in ended)
            raise DivergedError(
                f"all {len(ended)} probes of stage {stage.index} diverged (rates {rates}), down to the lowest rate of "
                f"space {record.settings.space.name!r}. Lower `bounds`, warm up longer, or clip gradients."
            )
    return low, high


def all_diverged(stage: Stage) -> bool:
    return bool(stage.trials) and all(trial.state is TrialState.DIVERGED for trial in stage.trials)


def gave_up(stage: Stage) -> DivergedError:
    rates = ", ".join(f"{trial.rate:.3g}" for trial in stage.trials)
    return DivergedError(
        f"all {len(stage.trials)} probes of stage {stage.index} diverged (rates {rates}), and its share of the search "
        "budget is spent. Lower the space's `bounds`, or check that the loss is finite."
    )


def objective_std(probed: Probed) -> float:
    """Standard error of a probe's objective: a mean of its last max(16, 10 %) losses, with the curve's noise."""
    if probed.steps == 0 or not len(probed.curve):
        return math.inf
    single = probed.curve.noise * math.sqrt(probed.steps / len(probed.curve))  # of one loss, not of a bin mean
    return single / math.sqrt(min(probed.steps, max(READ, probed.steps // 10)))


def recent(curve: Curve, share: float = 0.25) -> float:
    """Mean loss over the last `share` of a curve."""
    count = max(1, round(share * len(curve)))
    return math.fsum(curve.losses[-count:]) / count
