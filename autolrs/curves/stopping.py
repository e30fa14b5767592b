"""Early stopping: how probable it is that a curve will still beat the best of its finished siblings.

Two things speak about what a curve will still gain from its last value to the horizon: its own forecast, unless it is
of fewer than eight points, and what finished siblings gained from the same offset on. As rates that are slow at first
often gain more than all before them, a sibling's gain is a weak witness, and the best of them is heard.

Notation
    l        last value: mean of the last tenth of what was seen, as a coordinate
    g, v     own gain forecast, and its variance
    h        gains of the finished siblings from the same offset on                       (k,)
    w        variance of the gain given h: (PRIOR * (SPREAD * range * share left)^2 + sum of (h - best of h)^2)
             / (PRIOR + k)
    m, s^2   product of the two normals: s^-2 = v^-1 + w^-1, m = s^2 * (g / v + best of h / w)

The chance is that of l + m + s * T lying below the best, T Student-t of 3 degrees of freedom: real curves fall late
more often than a normal allows. The coordinate is the log loss where all losses are positive, else the loss over the
range of all losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

import numpy as np

from autolrs.curves.points import FEWEST
from autolrs.curves.pooled import half_width, last
from autolrs.forecasts import Forecasts
from autolrs.records import Curve

PRIOR: Final = 2.0
"""How many siblings the prior deviation of a gain counts as."""

SPREAD: Final = 2.0
"""Prior deviation of a gain over the whole length, in units of the range of all losses; in log loss, of that range over
the largest loss."""

DF: Final = 3.0

_LEAST: Final = 1e-9  # deviation of a gain


def chance(curve: Curve, forecast: Forecasts, best: float, rivals: Sequence[Curve] = ()) -> float:
    """Probability that the loss of `curve` at the horizon lies below `best`; .5 if nothing is known.

    Args:
        curve: what was seen so far, offsets ascending from the start.
        forecast: the curve model's answer for this one curve; the horizon is its `at`.
        best: the loss to beat, at the same horizon.
        rivals: whole curves of siblings that ran to the horizon; points that are not finite are ignored.

    Raises:
        ValueError: `forecast` is not of one curve, or `best` is NaN.
    """
    if len(forecast) != 1 or np.isnan(best):
        raise ValueError(f"one forecast and a best loss are needed, but got ({len(forecast)=}, {best=}).")
    level = last(curve)[0]
    if not np.isfinite(level):
        return 0.5
    offset = curve.offsets[-1]
    there = [(last(_until(rival, offset))[0], last(rival)[0]) for rival in rivals]
    then, end = np.array([pair for pair in there if np.isfinite(pair).all()]).reshape(-1, 2).T
    with np.errstate(all="ignore"):  # of losses at the ends of the number range
        band = forecast.quantiles((0.16, 0.5, 0.84))
        losses = [loss for each in (curve, *rivals) for loss in each.losses if np.isfinite(loss)]
        if min(best, *losses) > 0:
            level, best, band = float(np.log(level)), float(np.log(best)), np.log(np.maximum(band, 0.0))
            gains, span = np.log(end) - np.log(then), float(np.ptp(losses)) / max(losses)
        else:
            unit = float(np.ptp(losses)) or 1.0
            level, best, band, gains, span = level / unit, best / unit, band / unit, (end - then) / unit, 1.0

        witnesses = []
        if len(gains):
            left = float(np.clip(1.0 - offset / forecast.at[0], 0.0, 1.0)) if forecast.at[0] > 0 else 0.0
            spread = PRIOR * (SPREAD * span * left) ** 2 + float(((gains - gains.min()) ** 2).sum())
            witnesses.append((float(gains.min()), spread / (PRIOR + len(gains))))
        if sum(map(np.isfinite, curve.losses)) >= FEWEST:
            witnesses.append((float(band[0, 1]) - level, float(np.square(half_width(band)[0]))))
        gain, variance = np.array([pair for pair in witnesses if np.isfinite(pair).all()]).reshape(-1, 2).T
        precision = 1.0 / np.maximum(variance, _LEAST**2)
        z = (best - level - precision @ gain / precision.sum()) * np.sqrt(precision.sum())
    from scipy.special import stdtr

    return float(stdtr(DF, z)) if len(gain) and not np.isnan(z) else 0.5


def _until(curve: Curve, offset: float) -> Curve:
    """The points of a curve up to an offset."""
    n = sum(1 for _ in takewhile(lambda t: t <= offset, curve.offsets))
    return Curve(curve.offsets[:n], curve.losses[:n], curve.rates[:n], noise=curve.noise)
