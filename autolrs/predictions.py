"""What would have happened: a study's final training loss under other schedules, by the loss laws.

The laws are fitted to the study's kept run and its probes. They take progress to be the sum of the rates, whatever
their level, which holds along a schedule but not from one peak rate to another: raising the rate of a whole run by a
factor counts as far less, or as nothing. So progress and rate of a schedule whose peak is x times that of the kept run
are those of x^kappa times its rates, with kappa between nothing and all. Nor is it sure that half of the rate makes
half of the progress: what a schedule's shape gains or loses by its progress alone is doubted by half.

References:
    Tissue et al., arXiv 2408.11029. Luo et al., arXiv 2503.12811.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from autolrs.curves.law.annealing import recent_rate
from autolrs.curves.law.fitting import FLOOR, Fit
from autolrs.curves.law.identified import Parameter, parameters
from autolrs.curves.law.law import DF, Law
from autolrs.curves.law.paths import RatePath
from autolrs.errors import SettingError, UnsupportedError
from autolrs.files import is_file
from autolrs.forecasts import Forecasts
from autolrs.records import Record, TrialState
from autolrs.schedules import BASES, Schedule

FINAL: Final = 0.05
"""Share of a schedule, at its end, whose mean training loss is forecast."""

INTERVAL: Final = (0.05, 0.95)
"""Levels between which the truth is expected."""

_KAPPA: Final = ((-0.366, 1 / 6), (0.5, 2 / 3), (1.366, 1 / 6))  # Gauss-Hermite nodes of a normal .5 ± .5
_PROGRESS: Final = 0.5  # deviation of what another shape's progress brings, over what the laws say
_FARTHEST: Final = 3.0  # factor between peak rates beyond which nothing is said
_REACH: Final = (0.5, 3.0)  # progress of a schedule over that of the data, likewise: laws say nothing of early losses
_COOLING: Final = 0.2  # difference of the final rates, over the peak, that takes a known cooling
_TIMESCALE: Final = 0.02  # over which a final rate is averaged, over the run's length
_SHOWN: Final = 120  # characters of what was asked for, in an error
_POINTS: Final = 16  # of a schedule's end at which the loss is forecast


@dataclass(frozen=True, slots=True)
class Prediction:
    """The mean training loss over the last `FINAL` of a schedule.

    Attributes:
        mean, low, high: forecast, and the ends of its `INTERVAL`.   [loss]
        measured: what the kept run really had; None: it was not run to its end.
    """

    name: str
    schedule: Schedule
    mean: float
    low: float
    high: float
    measured: float | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the laws answer.

    Attributes:
        rows: for the schedule used, and for those asked for that are not too far from it.
        refused: why nothing is said about the others, by name.
        parameters: what the data say of the laws'.
    """

    rows: tuple[Prediction, ...]
    refused: Mapping[str, str]
    parameters: tuple[Parameter, ...]


def schedule_of(text: str, record: Record) -> Schedule:
    """A schedule for the whole run of `record`: "BASE:RATE", with the study's warm-up, or the path of a JSON file.

    Raises:
        SettingError: `text` is neither, or the file cannot be read or is not a schedule.
    """
    base, colon, rate = text.partition(":")
    settings = record.settings
    if base in BASES and colon:
        try:
            peak = float(rate)
        except ValueError:
            peak = np.nan
        if not 0 < peak < np.inf:
            raise SettingError(f"the rate in --schedule {_short(text)} must be a positive number, as in {base}:3e-4.")
        warmup = round(settings.space.warmup * settings.steps)
        return Schedule.build(base, rate=peak, steps=settings.steps, warmup=warmup)
    if not is_file(Path(text)):
        raise SettingError(
            f"--schedule {_short(text)} is neither a file written by `autolrs export` nor BASE:RATE with BASE one of "
            f"{', '.join(BASES)}."
        )
    try:
        return Schedule.load(text)
    except OSError as error:
        raise SettingError(f"--schedule {_short(text)} cannot be read: {error.strerror}.") from error


def _short(text: str) -> str:
    """`text` in quotes, without its middle if it is long: an error stays one that can be read."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}")


def predict(record: Record, schedules: Mapping[str, Schedule], law: Law | None = None) -> Predictions:
    """Forecasts for the schedule that `record` used, and for `schedules`.

    Raises:
        UnsupportedError: the data do not identify what a forecast needs; the message says what, and why.
    """
    law = law or Law()
    history = [part.curve for part in record.kept]
    own = record.schedule
    if own is None or not history:
        raise UnsupportedError("nothing can be predicted: the study has no kept steps yet.")
    if reason := law.ready(history):
        raise UnsupportedError(f"nothing can be predicted: {reason}.")
    trials = [trial for stage in record.stages for trial in stage.trials if trial.state is not TrialState.DIVERGED]
    probes = [trial.curve for trial in trials if trial.curve is not None and trial.curve.finite]
    with np.errstate(all="ignore"):
        fit = law.fit(history, probes)
    assert fit is not None, "the laws are ready"
    found, used = parameters(fit), RatePath.of_schedule(own).over(fit.peak)
    rows, refused = [_row("as used", own, fit, used, found, _measured(record))], {}
    for name, schedule in schedules.items():
        if reason := _refusal(schedule, used, fit, found):
            refused[name] = reason
        else:
            rows.append(_row(name, schedule, fit, used, found))
    if refused and len(rows) == 1:
        reasons = "\n".join(f"{name}: {reason}." for name, reason in refused.items())
        raise UnsupportedError(f"nothing can be predicted for\n{reasons}")
    return Predictions(tuple(rows), refused, found)


def _row(
    name: str,
    schedule: Schedule,
    fit: Fit,
    used: RatePath,
    found: tuple[Parameter, ...],
    measured: float | None = None,
) -> Prediction:
    path = RatePath.of_schedule(schedule).over(fit.peak)
    steps = np.linspace((1 - FINAL) * schedule.steps, schedule.steps - 1, _POINTS)
    factor = float(path.rates.max())
    means, deviations = np.transpose(
        [[x.mean() for x in fit.predict(path.over(factor ** (1 - kappa)), steps)] for kappa, _ in _KAPPA]
    )
    weights = np.array([weight for _, weight in _KAPPA])
    mean = float(weights @ means)
    slope = next(one for one in found if one.name == "slope")
    end = np.array([float(schedule.steps)])
    doubt = _PROGRESS * slope.value * np.log(path.progress(end)[0] / factor / used.progress(end)[0])
    std = float(np.sqrt(weights @ (deviations**2 + (means - mean) ** 2) + (FLOOR * mean) ** 2 + doubt**2))
    log = fit.log and mean > 0
    forecasts = Forecasts.student_t(
        [schedule.steps], [np.log(mean) if log else mean], [std / mean if log else std], DF, log
    )
    low, high = forecasts.quantiles(INTERVAL)[0]
    return Prediction(name, schedule, mean, float(low), float(high), measured)


def _refusal(schedule: Schedule, used: RatePath, fit: Fit, found: tuple[Parameter, ...]) -> str:
    """Why `schedule` is too far from what the data show; "" if it is not."""
    path = RatePath.of_schedule(schedule).over(fit.peak)
    factor = float(path.rates.max())
    if not 1 / _FARTHEST <= factor <= _FARTHEST:
        return (
            f"its peak rate is {factor * fit.peak:.3g}, the kept run's {fit.peak:.3g}; what the level of the rate "
            f"does is not identified, and nothing is said beyond {_FARTHEST:g} times"
        )
    end = np.array([float(schedule.steps)])
    progress = float(path.progress(end)[0]) / fit.progress
    low, high = _REACH
    if not low <= round(progress, 2) <= high:
        reach = f"the laws reach from {low:g} to {high:g} times"
        return f"the sum of its rates is {progress:.2f} times that of the data, and {reach}"
    cooling = next(one for one in found if one.name == "cooling")
    timescale = np.array([_TIMESCALE * fit.length])
    asked, seen = (
        float(recent_rate(one, at, timescale)[0, 0]) for one, at in ((path, end), (used, np.array([fit.length])))
    )
    if cooling.reason and abs(asked - seen) > _COOLING:
        return (
            f"it ends at {asked:.0%} of the peak rate, the data at {seen:.0%}, and how much the loss falls with the "
            f"rate (cooling) is not identified: {cooling.reason}"
        )
    return ""


def _measured(record: Record) -> float | None:
    """Mean training loss of the last `FINAL` of a finished run."""
    if not record.finished:
        return None
    first = (1 - FINAL) * record.settings.steps
    losses = [
        loss
        for part in record.kept
        for offset, loss in zip(part.curve.offsets, part.curve.losses, strict=True)
        if part.start + offset >= first
    ]
    return float(np.mean(losses)) if losses else None
