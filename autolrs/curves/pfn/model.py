"""`pfn`: curves forecast by one forward pass of a network fitted to a prior of probe curves.

How the network was fitted, and to what, is in the data card beside this file. It reads at most 64 bins of a curve in
log loss, or in the loss itself where that is not positive.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.points import MOST, Points, points_of
from autolrs.errors import CheckpointError
from autolrs.forecasts import LEVELS, Forecasts, bar_quantiles
from autolrs.records import Curve
from autolrs.schedules import Schedule

if TYPE_CHECKING:
    from autolrs.curves.pfn.network import Network

Array = NDArray[np.float64]

SHIPPED: Final = Path(__file__).with_name("small.safetensors")
SHA256: Final = "a2b13f3d1e63093059c4392cdb3d351433ab47757076b8095158275d9c1ac846"

ROOF: Final = 5.0
"""Point forecasts are at most so many times the largest |loss| seen: what blows up has no median."""

_FEWEST_ROWS = 4  # of a product, see `_quantiles`
_FARTHEST = 30.0  # observed spans; the network has seen little beyond
_WIDE = 0.5  # relative spread where no shape can be made out
_STUCK = 1e-3  # and of losses that are all the same, which the prior does not hold
_NOISIEST = 3.0  # noise over the last loss
_MOST = sys.float_info.max / 4  # differences of such losses are numbers, too
_LOGS = (math.log(sys.float_info.min), math.log(_MOST))


@dataclass(frozen=True, slots=True)
class PFN:
    """The `CurveModel` of the fitted network.

    Attributes:
        weights: file written by `autolrs pfn train`; None: the shipped one, whose checksum is checked.
        widening: factor of the distance of all quantiles from the median. Real curves are a little less certain
            than the prior's; 1: as the network says.
    """

    weights: Path | None = None
    widening: float = 1.1

    def extrapolate(
        self,
        curves: Sequence[Curve],
        at: Sequence[float],
        *,
        schedule: Schedule | None = None,
        history: Sequence[Curve] = (),
    ) -> Forecasts:
        """Forecasts of `curves` at the offsets `at`; points that are not finite are ignored.

        Farther ahead than 30 observed spans nothing is expected to change. A curve without a finite point has the
        mean NaN and an infinite deviation.

        Raises:
            ValueError: `curves` and `at` differ in length.
            CheckpointError: the weights are missing or not those that were shipped.
        """
        points = [points_of(curve) for curve, _ in zip(curves, at, strict=True)]
        table, log = np.full((len(points), len(LEVELS)), np.nan), np.zeros(len(points), dtype=bool)
        shapes = []
        for i, of_one in enumerate(points):
            if of_one is None:
                continue
            log[i] = of_one.positive
            if of_one.few or np.ptp(of_one.y) == 0:
                table[i] = _last(of_one)
            else:
                shapes.append((i, of_one))
        if shapes:
            rows = [i for i, _ in shapes]
            ahead = np.array([of_one.ahead(float(at[i])) for i, of_one in shapes])
            quantiles = _quantiles(network(self.weights), [of_one for _, of_one in shapes], ahead)
            middle = quantiles[:, len(LEVELS) // 2, None]
            table[rows] = middle + self.widening * (quantiles - middle)
        scale = np.array([1.0 if of_one is None else of_one.scale for of_one in points])
        with np.errstate(over="ignore"):
            linear = np.clip(table * scale[:, None], -_MOST, _MOST)
        table = np.where(log[:, None], np.clip(table + np.log(scale)[:, None], *_LOGS), linear)
        found = Forecasts.tabulated(at, table, log)
        # The median is the better point forecast: bars far out hold little probability but a lot of mean. Of a curve
        # that explodes no number is a forecast.
        with np.errstate(over="ignore"):
            most = np.minimum(ROOF * scale, _MOST)
        return replace(
            found, mean=np.clip(found.median, -most, most), std=np.where(np.isnan(found.std), np.inf, found.std)
        )


@cache
def network(weights: Path | None = None) -> Network:
    """The network of a file of weights, ready to be asked; None: the shipped one.

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that was shipped.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    from autolrs.curves.pfn.network import Network

    path = weights or SHIPPED
    try:
        data = path.read_bytes()
        if weights is None and (found := hashlib.sha256(data).hexdigest()) != SHA256:
            raise CheckpointError(f"{path}: its SHA-256 is {found}, not {SHA256}. Install autolrs again.")
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = {name: tensor.float() for name, tensor in load(data).items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"cannot read the weights {path}: {error}.") from error
    with torch.device("meta"):  # draws no weights, so that no generator moves
        loaded = Network(**about["config"]["network"])
    loaded.load_state_dict(tensors, assign=True)
    return loaded.eval()


def _quantiles(network: Network, points: Sequence[Points], ahead: Array) -> Array:
    """Quantiles of the curves' log y where that is known, else of y.   (n, K)"""
    import torch

    from autolrs.curves.pfn.network import normalise

    # All batches have one shape but for their length, and ask each question four times: so sums are rounded in the
    # same order for one curve as for many. (Products of fewer than four rows have kernels of their own.)
    n, bins = len(points), MOST
    u, values, noise = np.zeros((n, bins)), np.zeros((n, bins)), np.zeros(n)
    log = np.array([of_one.positive for of_one in points])
    for i, of_one in enumerate(points):
        u[i, : len(of_one)] = of_one.u
        values[i, : len(of_one)] = np.log(of_one.y) if log[i] else of_one.y
        noise[i] = min(of_one.noise / of_one.last, _NOISIEST) if log[i] else of_one.noise
    seen = np.arange(bins) < np.array([len(of_one) for of_one in points])[:, None]
    at = np.repeat(np.minimum(ahead, _FARTHEST)[:, None], _FEWEST_ROWS, axis=1)
    curves = normalise(u, values, noise, at, seen, log)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        mask = torch.from_numpy(curves.seen)[:, None, None]
        logits = network(torch.from_numpy(curves.tokens), torch.from_numpy(curves.queries), mask, copies=_FEWEST_ROWS)
        probabilities = logits[:, 0].double().softmax(dim=-1).numpy()
        z = network.edges.double().numpy()
    edges = curves.level[:, None] + curves.scale[:, None] * z
    return bar_quantiles(edges, probabilities)


def _last(points: Points) -> Array:
    """The last loss: quantiles of its log where that is known, else of itself. Wide, unless it never moved.   (K,)"""
    from scipy.special import stdtrit

    heavy = np.asarray(stdtrit(3.0, LEVELS))
    relative = _WIDE if points.few else _STUCK
    if points.positive:
        return math.log(points.last) + relative * heavy
    return points.last + max(float(np.ptp(points.y)), points.noise, relative * abs(points.last)) * heavy
