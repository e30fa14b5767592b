"""Curve models whose settings never saw the source that they are judged on -> rows of docs/curves.md.

For each source in turn the candidate is taken that has the best log score on the others. DeepOBS's problems come from
one benchmark, but differ in data and network: each is left out by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np

from autolrs.curves.auto import Auto
from autolrs.curves.bayes import Bayes
from autolrs.curves.pfn.model import PFN
from autolrs.forecasts import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Schedule
from benchmarks.windows import Window, log_scores

SETTINGS: Final = tuple(Bayes(misfit=m, reach=r) for m, r in product((0.15, 0.3, 0.6), (1.0, 2.0, 4.0)))
"""Candidates of `bayes`, each with every one of `WIDTHS`."""

WIDTHS: Final = (0.8, 1.0, 1.25)

PRIORS: Final = (0.5, 0.65, 0.8, 0.9)
"""Of the network in `auto`; `bayes` has the rest."""

WIDENINGS: Final = (1.0, 1.1, 1.2)
"""Of the network in `auto`."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A model that was asked before: averages over the same answers are cheap."""

    answer: Forecasts

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        return self.answer


def bayes(found: Sequence[Window]) -> Forecasts:
    """Forecasts of `Bayes`, settings and width left out."""
    curves, at = [w.curve for w in found], [w.at for w in found]
    answers = [setting.extrapolate(curves, at) for setting in SETTINGS]
    chosen = best_elsewhere([answer.widened(width) for answer in answers for width in WIDTHS], found)
    return replace(chosen, mean=chosen.median)


def auto(found: Sequence[Window]) -> Forecasts:
    """Forecasts of `Auto`, prior weights and the network's widening left out.

    Not left out are the network's weights, whose prior was matched to all sources, and the settings of its `Bayes`.
    """
    curves, at = [w.curve for w in found], [w.at for w in found]
    shapes = _Told(Bayes().extrapolate(curves, at))
    networks = [_Told(PFN(widening=widening).extrapolate(curves, at)) for widening in WIDENINGS]
    averages = [Auto((shapes, network), (1 - prior, prior)) for network in networks for prior in PRIORS]
    return best_elsewhere([average.extrapolate(curves, at) for average in averages], found)


def best_elsewhere(candidates: Sequence[Forecasts], found: Sequence[Window]) -> Forecasts:
    """For each source the forecasts of the candidate that has the best log score on the other sources."""
    scores = np.array([log_scores(forecasts, found) for forecasts in candidates])
    scores[:, [w.blow_up for w in found]] = 0.0
    source = np.array([w.source for w in found])
    choice = np.empty(len(found), dtype=int)
    for name in np.unique(source):
        # Every other source weighs the same.
        others = [scores[:, source == other].mean(axis=1) for other in np.unique(source) if other != name]
        choice[source == name] = np.mean(others, axis=0).argmin()
    rows = choice, np.arange(len(found))
    tables, means = (np.array([getattr(each, name) for each in candidates])[rows] for name in ("table", "mean"))
    return replace(Forecasts.tabulated(candidates[0].at, tables, candidates[0].log), mean=means)
