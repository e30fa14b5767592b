"""What strategies share: reading a record."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from autolrs.curves.pooled import pooled
from autolrs.errors import DivergedError
from autolrs.forecasts import Forecasts
from autolrs.protocols import Observation
from autolrs.records import READ, UNVALIDATED, Curve, Forecast, Probed, Record, Stage, Trial, TrialState


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage as planned before any step is paid: `probes` probes of `length` steps from kept step `start`."""

    stage: int
    start: int
    probes: int
    length: int


def of_rates(record: Record) -> tuple[Trial, ...]:
    """The trials that tell of rates: all but those that tried another momentum, which only a first search does."""
    return tuple(trial for stage in record.stages for trial in stage.trials if stage.index or trial.momentum is None)


def observations(record: Record) -> tuple[Observation, ...]:
    """What a sampler may know: the trials `of_rates`, in their order, running ones as pending."""
    return tuple(
        Observation(
            rate=trial.rate,
            value=trial.forecast.mean if trial.forecast is not None else math.nan,
            std=trial.forecast.std if trial.forecast is not None else math.nan,
            stage=trial.stage,
            start_loss=math.nan if (start := record.stages[trial.stage].start_loss) is None else start,
            pending=trial.state is TrialState.RUNNING,
        )
        for trial in of_rates(record)
    )


def pooled_observations(record: Record) -> tuple[Observation, ...]:
    """`observations`, with the forecasts of each stage's trials pooled over their rates (`autolrs.curves.pooled`)."""
    found = list(observations(record))
    first = 0
    for stage in record.stages:
        for number, forecast in _pooled(stage.trials):
            found[first + number] = replace(found[first + number], value=forecast.mean, std=forecast.std)
        first += len(stage.trials)
    return tuple(found)


@lru_cache(maxsize=64)  # the stages of the past are asked about at every decision
def _pooled(trials: tuple[Trial, ...]) -> tuple[tuple[int, Forecast], ...]:
    """Number and pooled forecast of each of a stage's trials that have a curve."""
    told = [
        (trial.number, trial.rate, curve, trial.forecast)
        for trial in trials
        if trial.forecast is not None and (curve := trial.validation or trial.curve)
    ]
    if not told:
        return ()
    numbers, rates, curves, own = zip(*told, strict=True)
    at, mean, std = np.array([(forecast.at, forecast.mean, forecast.std) for forecast in own]).T
    levels = pooled(curves, rates, Forecasts(at, mean, std))
    return tuple((number, levels[i]) for i, number in enumerate(numbers))


def lost_in_crash(stage: Stage, in_flight: Collection[int]) -> Trial | None:
    """A running trial that nobody is at work on."""
    return next((t for t in stage.trials if t.state is TrialState.RUNNING and t.number not in in_flight), None)


def of_stage(found: tuple[Observation, ...], stage: int) -> list[Observation]:
    return [o for o in found if o.stage == stage and not o.pending]


def bounds_of(record: Record, stage: Stage) -> tuple[float, float] | None:
    """The space's bounds; while all of a stage's probes diverge, the top comes down to the lowest of their rates.

    None: no rate is left to try, because even the lowest diverges, or the loss is not finite at any.
    """
    low, high = record.settings.space.bounds
    if all_diverged(stage):
        high = min(high, *(trial.rate for trial in stage.trials if trial.state is TrialState.DIVERGED))
        if high <= low * (1 + 1e-9) or not_finite_at_start(stage):
            return None
    return low, high


def all_diverged(stage: Stage) -> bool:
    """Whether all of the probes that have ended diverged, and there are some."""
    states = {trial.state for trial in stage.trials} - {TrialState.RUNNING}
    return states == {TrialState.DIVERGED}


def not_finite_at_start(stage: Stage) -> bool:
    """Whether the loss is not finite before any update: no rate can help."""
    return any(trial.first_loss is not None and not math.isfinite(trial.first_loss) for trial in stage.trials)


def gave_up(stage: Stage) -> DivergedError:
    """Why a stage without a rate to fall back on cannot be trained."""
    if not_finite_at_start(stage):
        return DivergedError(
            f"the loss is {stage.trials[0].first_loss} at step {stage.start}, before any update: the model or the data "
            "is at fault, not the learning rate."
        )
    rates = ", ".join(f"{trial.rate:.3g}" for trial in stage.trials)
    if all(trial.reason.startswith(UNVALIDATED) for trial in stage.trials):
        return DivergedError(
            f"`session.validate` gave no finite loss after any of {len(stage.trials)} probes (rates {rates}: "
            f"{stage.trials[0].reason}), though their training losses are finite: look at it first."
        )
    return DivergedError(
        f"all {len(stage.trials)} probes of stage {stage.index} diverged (rates {rates}). Lower the space's `bounds`, "
        "warm up longer, clip gradients, or give the search more budget to come down further."
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
