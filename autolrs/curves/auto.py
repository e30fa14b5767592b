"""`auto`: a Bayesian average of the curve models, weighted by how well each foresaw what is known by now.

Two kinds of back-tests have a known answer: the end of each curve itself, forecast from its first part, and the end
of each curve of the history, forecast from as large a share as is seen of the curves in question. A model's weight is
its prior weight times its predictive densities there. The history also tells how sharp the average should be: a kept
stage begins as the probe did that won it, so the history holds just the earlier probes whose truth is known by now.
Without a history curves are not tested on themselves: that took half of the time, and on real curves it changed log
scores by less than two standard errors (.01). The prior weights were settled with docs/curves.md's regrets in view.

The laws are about whole runs, so they are judged on the run as well: its last tenth, forecast from its first half and
from its first three quarters, by them and by all others. They join only if they win there and on the curves together.

Notation
    k, n, h   models, curves, curves of the history that can be cut
    own       log density of a curve's end, given its first part; 0 if not tested (k, n)
    past      log density of the history's ends, given their first parts         (k, h)
    run       log density of the run's last tenth, given its first parts, summed  (k,)
    z         normal scores of the history's ends in the average's forecasts      (h,)

    log weight = log prior + own + min(1, PAST / h) * sum of past
    width      = sqrt((CALM + sum of z^2) / (CALM + h)) times the average's own

    of the laws: log of all priors + own + largest of the others' past + (run - largest of the others' run, at least 0)

References:
    Hoeting, Madigan, Raftery and Volinsky, "Bayesian model averaging: a tutorial", Statistical Science 14, 1999.
    Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", ICML 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan, log
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.bayes import Bayes
from autolrs.curves.law.law import DF, BackTest, Law
from autolrs.curves.pfn.model import PFN, ROOF
from autolrs.curves.points import FEWEST, ordered
from autolrs.curves.pooled import last
from autolrs.errors import SettingError
from autolrs.forecasts import Forecasts
from autolrs.protocols import CurveModel
from autolrs.records import Curve
from autolrs.schedules import Schedule

Array = NDArray[np.float64]

SEEN: Final = 0.6
"""Share of a curve from which its own end is forecast."""

PAST: Final = 4.0
"""The whole history weighs as much as this many curves at most: it is of other rates and other times."""

CALM: Final = 20.0
"""How many curves of the history the belief counts as that the average's width is right."""

_CLIP: Final = 8.0  # of log densities
_LEAST: Final = float(np.finfo(np.float64).tiny)
_FARTHEST: Final = 3.0  # of normal scores


class _Test(NamedTuple):
    """A back-test: the first part of a curve, and what it came to."""

    curve: Curve
    at: float
    truth: float


@dataclass(frozen=True, slots=True)
class Auto:
    """The `CurveModel` of the module.

    Attributes:
        models: what is averaged.
        priors: their weights before any evidence; any positive sum.
        law: joins where a history and a schedule are given, as long as it says that it may act and foresees the ends
            of the run and of the curves better than each of the others; None: never.
    """

    models: tuple[CurveModel, ...] = field(default_factory=lambda: (Bayes(), PFN()))
    priors: tuple[float, ...] = (0.2, 0.8)
    law: Law | None = field(default_factory=Law)

    def __post_init__(self) -> None:
        if not (0 < len(self.models) == len(self.priors) and min(self.priors) > 0):
            raise SettingError(
                f"`models` and `priors` must be of one length and all priors positive, but got "
                f"({len(self.models)} models, priors={self.priors})."
            )

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        """Forecasts of `curves` at the offsets `at`; points that are not finite are ignored.

        A curve without a finite point has the mean NaN and an infinite deviation.

        Raises:
            ValueError: `curves` and `at` differ in length.
        """
        horizons = [float(offset) for _, offset in zip(curves, at, strict=True)]
        clean = [ordered(curve) for curve in curves]
        tested = clean if history else []
        tails = {i: test for i, curve in enumerate(tested) if (test := _cut(curve, SEEN)) is not None}
        share = _share(clean, horizons)
        cuts = [test for curve in history if (test := _cut(ordered(curve), share)) is not None]
        law = self.law if self.law and schedule and history and not self.law.ready(history) else None
        runs = law.back_tests(history) if law else ()
        tests = [*tails.values(), *cuts, *(_Test(run.seen, run.at, run.truth) for run in runs)]
        asked = _Questions(curves, horizons, tests, schedule, history)

        answers = [asked.answer(model) for model in self.models]
        scores = np.array([asked.scores(answer) for answer in answers])
        ends = len(tails), len(tails) + len(cuts)  # of the tests of the curves, and of the history
        own = scores[:, : ends[0]]
        past = min(1.0, PAST / max(len(cuts), 1)) * scores[:, slice(*ends)].sum(axis=1)
        believed = (np.log(self.priors) + past)[:, None]
        logits = np.repeat(believed, len(curves), axis=1)
        if tails:
            logits[:, list(tails)] += own
        known = [_rows(answer, slice(len(curves) + ends[0], len(curves) + ends[1])) for answer in answers]
        answers = [_rows(answer, slice(len(curves))) for answer in answers]
        if law:
            lawful = _Questions(curves, horizons, list(tails.values()), schedule, history)
            answer = lawful.answer(law)
            score, run = np.array(lawful.scores(answer)), scores[:, ends[1] :].sum(axis=1)
            ahead = sum(_of_laws(runs)) - run
            if (score.sum() + ahead > own.sum(axis=1)).all():
                row = np.full(len(curves), np.log(sum(self.priors)) + past.max() + max(ahead.min(), 0.0))
                row[list(tails)] += score
                answers, logits = [*answers, _rows(answer, slice(len(curves)))], np.vstack([logits, row])
        found = _average(answers, logits)
        if cuts:
            past_average = _average(known, np.repeat(believed, len(cuts), axis=1))
            found = found.widened(_width(past_average, [test.truth for test in cuts]))
        most = np.array([ROOF * max(map(abs, curve.losses), default=np.inf) for curve in clean])
        return replace(found, mean=found.median.clip(-most, most))


@dataclass(frozen=True, slots=True)
class _Questions:
    """What a model is asked in one batch: the curves themselves, then the back-tests."""

    curves: Sequence[Curve]
    at: Sequence[float]
    tests: Sequence[_Test]
    schedule: Schedule | None
    history: Sequence[Curve]

    def answer(self, model: CurveModel) -> Forecasts:
        curves, at = [*self.curves, *(t.curve for t in self.tests)], [*self.at, *(t.at for t in self.tests)]
        return model.extrapolate(curves, at, schedule=self.schedule, history=self.history)

    def scores(self, answer: Forecasts) -> list[float]:
        """Log densities of the tests' truths, each over its own size, clipped."""
        if not self.tests:
            return []
        return _densities(_rows(answer, slice(len(self.curves), None)), [test.truth for test in self.tests])


def _densities(forecasts: Forecasts, truths: Sequence[float]) -> list[float]:
    """Log densities of losses, each over its own size, clipped."""
    found = zip(forecasts.log_prob(truths).tolist(), truths, strict=True)
    densities = [density + log(max(abs(loss), _LEAST)) for density, loss in found]
    return [-_CLIP if isnan(density) else min(max(density, -_CLIP), _CLIP) for density in densities]


def _of_laws(runs: Sequence[BackTest]) -> list[float]:
    """Log densities of the run's ends in the laws' forecasts."""
    at, truths, means, deviations = np.array([(r.at, r.truth, r.forecast, r.std) for r in runs]).reshape(-1, 4).T
    return _densities(Forecasts.student_t(at, means, deviations, DF), truths.tolist())


def _cut(curve: Curve, share: float) -> _Test | None:
    """The first `share` of a curve's points, at least 8, and its last value; None if too little is left to foretell."""
    points = list(zip(curve.offsets, curve.losses, curve.rates, strict=True))
    n = len(points)
    final, seen = max(1, n // 10), max(FEWEST, round(share * n))
    if n - seen < max(final, 2):
        return None
    offsets, losses, rates = zip(*points[:seen], strict=True)
    first = replace(curve, offsets=offsets, losses=losses, rates=rates)
    return _Test(first, sum(offset / final for offset, _, _ in points[-final:]), last(curve)[0])


def _share(curves: Sequence[Curve], at: Sequence[float]) -> float:
    """The share of their horizons that is seen of the curves: the median."""
    spans = [(curve.offsets[-1], ahead) for curve, ahead in zip(curves, at, strict=True) if len(curve)]
    shares = [seen / ahead for seen, ahead in spans if 0 < seen < ahead]
    if len(shares) < 2:  # a median takes longer than all else here
        return shares[0] if shares else SEEN
    return float(np.median(shares))


def _rows(forecasts: Forecasts, rows: slice) -> Forecasts:
    table = None if forecasts.table is None else forecasts.table[rows]
    log = None if forecasts.log is None else forecasts.log[rows]
    return Forecasts(forecasts.at[rows], forecasts.mean[rows], forecasts.std[rows], table, log)


def _average(answers: Sequence[Forecasts], logits: Array) -> Forecasts:
    """Mixture with weights proportional to exp(logits) (k, n); as the first answers where one has no finite answer."""
    if not logits.size:
        return answers[0]
    weights = np.exp(logits - logits.max(axis=0))
    known = np.logical_and.reduce([np.isfinite(x) for answer in answers for x in (answer.mean, answer.std)])
    weights = np.where(known, weights, np.arange(len(answers))[:, None] == 0)
    return Forecasts.mixture(answers, weights, median=True)


def _width(known: Forecasts, truths: Sequence[float]) -> float:
    """By how much forecasts of this kind should be wider, shrunk to 1."""
    from scipy.special import ndtri

    z = np.clip(ndtri(np.clip(known.cdf(truths), 1e-6, 1 - 1e-6)), -_FARTHEST, _FARTHEST)
    return float(np.sqrt((CALM + (z**2).sum()) / (CALM + len(z))))
