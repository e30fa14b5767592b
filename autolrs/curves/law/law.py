"""`law`: forecasts of curves whose rates are known, past and future.

The laws are fitted to the kept run so far (`history`); without one they say nothing. A probe then moves level and
cooling, nothing else (see `Fit.updated`). Before they may act, the laws have to forecast the end of the history from
its beginning better than its last loss does: they were found on language models, and must show that they hold.

References:
    Tissue et al., arXiv 2408.11029. Luo et al., arXiv 2503.12811.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from autolrs.curves.law.fitting import FLOOR, LAWS, Fit, Observed, fit
from autolrs.curves.law.identified import parameters
from autolrs.curves.law.runs import SKIPPED, branch, kept_run, points
from autolrs.errors import UnknownNameError
from autolrs.forecasts import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Schedule

FEWEST: Final = 16
"""Points of the kept run below which nothing is fitted."""

DF: Final = 4.0
"""Degrees of freedom of the predictive Student-t."""

_CUTS: Final = (0.5, 0.75)  # shares of the history from which the back-test forecasts its end
_JUDGED: Final = 0.1  # share of the history, at its end, that is forecast
_FAR: Final = 4.0  # deviations by which a back-test may miss
_MISSING: Final = 0.25  # share of the history, at its start, of which nothing may be known
_HIGHEST: Final = 3.0  # rate over the kept run's peak above which nothing is known: the laws have no divergence
_DOUBT: Final = 0.1  # share of the change forecast that is added to the deviation
_SHARPER: Final = 0.5  # deviation over the sum of all doubts: measured on stages of real runs
_UNKNOWN: Final = 1.0  # scale of the log loss, or of the loss over its size, where the laws may not act
_WIDEST: Final = 3.0  # the scale of a forecast of the log loss, at most (a factor of 20), or of the loss over its size
_MOST: Final = float(np.finfo(np.float64).max) / 1e3


class BackTest(NamedTuple):
    """The history's last loss, forecast from the history before `cut`.

    Attributes:
        cut: share of the history that is seen.
        truth: mean loss of the history's last tenth, in the middle `at`.
        forecast, std: of the laws.
        last: the last loss seen.
        seen: the history before `cut`; its rates are not told.
    """

    cut: float
    truth: float
    forecast: float
    std: float
    last: float
    at: float
    seen: Curve


@dataclass(frozen=True, slots=True)
class Law:
    """The `CurveModel` of the loss laws.

    Attributes:
        laws: names out of `LAWS`; several have equal weights.

    Raises:
        UnknownNameError: there is no such law.
    """

    laws: tuple[str, ...] = LAWS

    def __post_init__(self) -> None:
        for law in self.laws:
            if law not in LAWS:
                raise UnknownNameError.of("loss law", law, LAWS)

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        """Forecasts of `curves` at the offsets `at`, after `schedule`, or else with their last rates going on.

        Where the laws may not act (see `ready`) the answer is the last loss, and a deviation of its own size. Without
        a finite point: mean NaN, infinite deviation.

        Raises:
            ValueError: `curves` and `at` differ in length.
        """
        with np.errstate(all="ignore"):
            examined = _examined(self, tuple(history))
            fitted = None if isinstance(examined, str) else examined
            rows = [_forecast(fitted, curve, float(offset), schedule) for curve, offset in zip(curves, at, strict=True)]
        return _student(at, rows)

    def ready(self, history: Sequence[Curve]) -> str:
        """Why the laws may not act on what follows `history`; "" if they may."""
        with np.errstate(all="ignore"):
            examined = _examined(self, tuple(history))
        return examined if isinstance(examined, str) else ""

    def fit(self, history: Sequence[Curve], probes: Sequence[Curve] = ()) -> Fit | None:
        """The laws fitted jointly to the kept run and to probes from its checkpoints; rates are over the run's peak.

        Probes count from where the kept run does: the first steps of a run follow no law. None if the kept run has
        no finite point, or no rate.
        """
        run = kept_run(history)
        if run is None:
            return None
        branches = (branch(run, probe) for probe in probes)
        late = (one.where(one.steps >= SKIPPED * run.steps[-1]) for one in branches if one is not None)
        return fit([run, *(one for one in late if len(one.steps))], self.laws)

    def back_tests(self, history: Sequence[Curve]) -> tuple[BackTest, ...]:
        """Forecasts of the mean of the history's last tenth from its first half, and from its first three quarters."""
        run = kept_run(history)
        return () if run is None or len(run.steps) < FEWEST else self._back_tests(run)

    def _back_tests(self, run: Observed) -> tuple[BackTest, ...]:
        return tuple(self._tested(run, cut) for cut in _CUTS)

    def _tested(self, run: Observed, cut: float) -> BackTest:
        first, last = run.steps[0], run.steps[-1]
        final = run.steps > last - _JUDGED * (last - first)
        past = run.where(run.steps <= first + cut * (last - first))
        means, deviations = fit([past], self.laws).predict(run.path, run.steps[final])
        forecast, tail = float(means.mean()), past.losses[-max(1, len(past.losses) // 10) :]
        std = float(np.hypot(deviations.mean(), FLOOR * forecast))
        seen = Curve(tuple(past.steps.tolist()), tuple(past.losses.tolist()), (np.nan,) * len(past.steps))
        at, truth = float(run.steps[final].mean()), float(run.losses[final].mean())
        return BackTest(cut, truth, forecast, std, float(tail.mean()), at, seen)

    def _examined(self, history: Sequence[Curve]) -> _Fitted | str:
        """The fit to `history`, or why the laws may not act."""
        if not any(len(curve) for curve in history):
            return "there is no kept run yet"
        if not any(np.isfinite(rate) and rate > 0 for curve in history for rate in curve.rates):
            return "the rates of the kept run are not known"
        run = kept_run(history)
        count = 0 if run is None else len(run.steps)
        if run is None or count < FEWEST:
            return f"the kept run has {count} points of its loss after its first {SKIPPED:.0%}, {FEWEST} are needed"
        start = min(curve.start + min(curve.offsets) for curve in history if len(curve))
        if start > _MISSING * run.steps[-1]:
            return f"the rates of the kept run are not known before step {start:,.0f} of {run.steps[-1]:,.0f}"
        tests = self.back_tests(history)
        ours, theirs = (sum(abs(getattr(test, name) - test.truth) for test in tests) for name in ("forecast", "last"))
        size = max(sum(abs(test.truth) for test in tests), np.finfo(np.float64).tiny)
        if not ours < theirs:
            return (
                "its last tenth, forecast from the first 50 and 75 % of the kept run, is missed by "
                f"{ours / size:.2%}, and by {theirs / size:.2%} if the loss is taken to stay"
            )
        for test in tests:
            if not abs(test.forecast - test.truth) < _FAR * test.std:
                return (
                    f"from the first {test.cut:.0%} of the kept run {test.forecast:.4g} ± {test.std:.2g} is forecast "
                    f"for its last tenth, which is {test.truth:.4g}"
                )
        found = fit([run], self.laws)
        shape = [one for one in parameters(found) if one.name in ("slope", "alpha")]
        if not any(one.identified for one in shape):
            return "; ".join(f"{one.name} is not identified: {one.reason}" for one in shape)
        return _Fitted(found, run)


@lru_cache(maxsize=8)  # whether the laws may act is asked before each forecast, of the same history for all probes
def _examined(law: Law, history: tuple[Curve, ...]) -> _Fitted | str:
    return law._examined(history)


class _Fitted(NamedTuple):
    fit: Fit
    run: Observed


class _Row(NamedTuple):
    """Location and scale, of the log loss where `log` holds."""

    location: float
    scale: float
    log: bool = False


def _forecast(fitted: _Fitted | None, curve: Curve, offset: float, schedule: Schedule | None) -> _Row:
    _, losses, _ = points([curve])
    if not len(losses):
        return _Row(np.nan, np.inf)
    last = float(losses[-max(1, len(losses) // 10) :].mean())
    positive = bool((losses > 0).all())
    unknown = _Row(np.log(last), _UNKNOWN, True) if positive else _Row(last, _UNKNOWN * float(np.abs(losses).max()))
    probe = branch(fitted.run, curve, schedule) if fitted else None
    if not fitted or not probe or probe.path.rates.max() > _HIGHEST:
        return unknown
    known = fitted.fit.updated(probe)
    means, deviations = known.predict(probe.path, np.array([curve.start + offset]))
    mean = float(means[0])
    doubts = (deviations[0], known.misfit * known.size, FLOOR * mean, _DOUBT * (mean - last))
    scale = _SHARPER * float(np.linalg.norm(doubts))
    if not (np.isfinite(mean) and np.isfinite(scale)) or (positive and not mean > 0):
        return unknown
    if positive:  # a spike counts as the law's error, and by its square
        return _Row(np.log(mean), min(scale / mean, _WIDEST), True)
    return _Row(mean, min(scale, _WIDEST * max(abs(mean), float(np.abs(losses).max()))))


def _student(at: Sequence[float], rows: Sequence[_Row]) -> Forecasts:
    location, scale, log = (np.array([row[i] for row in rows]) for i in range(3))
    nothing = np.isnan(location)
    # Tails of losses near the largest float would be no numbers.
    location, scale = np.clip(location, -_MOST, _MOST), np.minimum(np.where(nothing, 1.0, scale), _MOST)
    forecasts = Forecasts.student_t(at, location, scale, DF, log.astype(bool))
    return replace(forecasts, std=np.where(nothing, np.inf, forecasts.std))
