"""`pfn`: curves forecast by one forward pass of a network fitted to a prior of probe curves.

How the network was fitted, and to what, is in the data card beside this file. It reads at most 64 bins of a curve in
log loss, or in the loss itself where that is not positive.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from autolrs.curves.pfn.stored import WEIGHTS, check, read
from autolrs.curves.points import MOST, Points, points_of
from autolrs.errors import CheckpointError, SettingError
from autolrs.forecasts import LEVELS, Forecasts, bar_quantiles
from autolrs.records import Curve
from autolrs.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from autolrs.curves.pfn.network import Network

Array = NDArray[np.float64]

SHIPPED: Final = Path(__file__).with_name("small.safetensors")
SHA256: Final = "a2b13f3d1e63093059c4392cdb3d351433ab47757076b8095158275d9c1ac846"

ROOF: Final = 5.0
"""Point forecasts are at most so many times the largest |loss| seen: what blows up has no median."""

_FARTHEST = 30.0  # observed spans; the network has seen little beyond
_WIDE = 0.5  # relative spread where no shape can be made out
_STUCK = 1e-3  # and of losses that are all the same, which the prior does not hold
_NOISIEST = 3.0  # noise over the last loss
_MOST = sys.float_info.max / 4  # differences of such losses are numbers, too
_TRAIN: Final = f"Give a {WEIGHTS} that `autolrs pfn train` wrote, or train it again."
_INSTALL: Final = "Install autolrs again."
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
            CheckpointError: the weights are missing, damaged or not those that were shipped.
        """
        points = [points_of(curve) for curve, _ in zip(curves, at, strict=True)]
        n = len(points)
        table, log, scale = np.full((n, len(LEVELS)), np.nan), np.zeros(n, dtype=bool), np.ones(n)
        shapes = []
        for i, of_one in enumerate(points):
            if of_one is None:
                continue
            log[i], scale[i] = of_one.positive, of_one.scale
            if of_one.few or of_one.y.min() == of_one.y.max():
                table[i] = _last(of_one)
            else:
                shapes.append((i, of_one))
        if shapes:
            rows = [i for i, _ in shapes]
            ahead = np.array([of_one.ahead(float(at[i])) for i, of_one in shapes])
            quantiles = _quantiles(network(self.weights), [of_one for _, of_one in shapes], ahead)
            middle = quantiles[:, len(LEVELS) // 2, None]
            table[rows] = middle + self.widening * (quantiles - middle)
        # In log loss the unit is a shift, in loss a factor.
        shift, factor = np.where(log, np.log(scale), 0.0)[:, None], np.where(log, 1.0, scale)[:, None]
        low, high = np.where(log[:, None], _LOGS, (-_MOST, _MOST)).T[:, :, None]
        with np.errstate(over="ignore"):
            found = Forecasts.tabulated(at, (table * factor + shift).clip(low, high), log, median=True)
            # Bars far out hold little probability but a lot of mean. Of a curve that explodes no number is a forecast.
            most = np.minimum(ROOF * scale, _MOST)
        return replace(found, mean=found.mean.clip(-most, most))


def network(weights: Path | None = None) -> Network:
    """The network of a file of weights, ready to be asked; None: the shipped one.

    A file is read once, and again after it was written anew.

    Raises:
        CheckpointError: the file is missing, damaged, not one of weights, or not the one that was shipped.
    """
    if weights is None:
        return _loaded(None)
    try:
        state = Path(weights).stat()
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        raise CheckpointError(f"cannot read the weights {weights}: {error}. {_TRAIN}") from error
    return _loaded(Path(weights), (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=8)
def _loaded(weights: Path | None, version: tuple[int, ...] = ()) -> Network:
    """See `network`; `version`: tells a file from what was at its path before."""
    import torch

    from autolrs.curves.pfn.network import Network

    try:
        tensors, settings = _read(weights)
        with torch.device("meta"):  # draws no weights, so that no generator moves
            loaded = Network(**settings)
        check(weights or SHIPPED, tensors, {name: tuple(value.shape) for name, value in loaded.state_dict().items()})
    except CheckpointError as error:
        raise CheckpointError(f"cannot read the weights {error}. {_TRAIN if weights else _INSTALL}") from error
    loaded.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return loaded.eval()


def _read(weights: Path | None) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of a file of weights, and the keyword arguments of their `Network`."""
    from autolrs.curves.pfn.network import network_settings

    path = weights or SHIPPED
    tensors, about = read(path, SHA256 if weights is None else None)
    if "step" in about:
        raise CheckpointError(f"{path}: it is a checkpoint of a training, not its weights")
    try:
        return tensors, network_settings(about["config"]["network"])
    except (LookupError, TypeError, SettingError) as error:
        raise CheckpointError(f"{path}: it does not say of which network it holds the weights ({error})") from error


def _quantiles(network: Network, points: Sequence[Points], ahead: Array) -> Array:
    """Quantiles of the curves' log y where that is known, else of y.   (n, K)"""
    from autolrs.curves.pfn.forward import forward, normalise

    n = len(points)
    u, values, noise = np.zeros((n, MOST)), np.zeros((n, MOST)), np.zeros(n)
    log, count = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.intp)
    for i, of_one in enumerate(points):
        log[i], count[i] = of_one.positive, len(of_one)
        u[i, : count[i]] = of_one.u
        values[i, : count[i]] = np.log(of_one.y) if log[i] else of_one.y
        noise[i] = min(of_one.noise / of_one.last, _NOISIEST) if log[i] else of_one.noise
    seen = np.arange(MOST) < count[:, None]
    curves = normalise(u, values, noise, np.minimum(ahead, _FARTHEST)[:, None], seen, log)
    ready = forward(network)
    return bar_quantiles(curves.level[:, None] + curves.scale[:, None] * ready.edges, ready.densities(curves))


def _last(points: Points) -> Array:
    """The last loss: quantiles of its log where that is known, else of itself. Wide, unless it never moved.   (K,)"""
    from scipy.special import stdtrit

    heavy = np.asarray(stdtrit(3.0, LEVELS))
    relative = _WIDE if points.few else _STUCK
    if points.positive:
        return math.log(points.last) + relative * heavy
    return points.last + max(float(np.ptp(points.y)), points.noise, relative * abs(points.last)) * heavy
