"""The fitted network: a transformer that reads the bins of a curve and answers with a binned density.

Each curve is brought to its own units first, in float64 (`normalise`): time over the observed span, the coordinate
(log loss, or the loss itself where that is not positive) relative to its last level, over its mean deviation from
there. So answers neither depend on the loss's unit nor on the time's, and one network serves log and linear.

Notation
    n, b, c  curves, bins seen, tokens of each curve (of `PATCH` bins)
    q        queries of each curve
    u        offset since the first bin over the observed span: 0..1 for bins, above 1 for queries
    d        (coordinate - last level) / scale
    z        what is forecast: d at a query
    k        bars of the answer

References:
    Müller et al., "Transformers can do Bayesian inference", ICLR 2022, arXiv 2112.10510: attention to the context
    only, Riemann head.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autolrs.errors import SettingError
from autolrs.yamls import as_whole

Array = NDArray[np.float64]

PATCH: Final = 4
"""Neighbouring bins that are read as one token."""

TOKEN_FEATURES: Final = 6 * PATCH + 4
QUERY_FEATURES: Final = 3 + 4
_SETTINGS: Final = ("width", "layers", "heads", "hidden", "bars")
_LARGEST: Final = 2**16  # of the settings
_STRETCHES: Final = np.array([1.0, 8.0, 64.0])  # of d: late in a curve it is a small part of its size at the start
_LEAST: Final = 1e-7  # scale of a curve that does not move at all
_LINEAR: Final = 0.15  # what a linear curve's scale is taken for, that of a usual curve in log loss


@dataclass(frozen=True, slots=True)
class Normalised:
    """Curves in their own units; the bins of shorter curves are padded at the end.

    Attributes:
        tokens: features of the bins, `PATCH` to a token.   (n, c, TOKEN_FEATURES) float32
        queries: features of the queries.                   (n, q, QUERY_FEATURES) float32
        seen: whether a token holds a bin.                  (n, c)
        level, scale: the coordinate is level + scale * z.   (n,) float64
    """

    tokens: Array
    queries: Array
    seen: NDArray[np.bool_]
    level: Array
    scale: Array


def normalise(
    times: Array, values: Array, noise: Array, at: Array, seen: NDArray[np.bool_], log: NDArray[np.bool_]
) -> Normalised:
    """Curves in their own units.

    Args:
        times, values: middles and coordinates of the bins, ascending; anything finite where not `seen`.  (n, b)
        noise: standard deviation of a bin's coordinate at the end; 0: unknown.   (n,)
        at: times asked for.   (n, q)
        seen: whether a bin is one; the seen ones come first.   (n, b)
        log: whether the coordinate is log loss.   (n,)
    """
    n, bins = times.shape
    count = seen.sum(axis=1)
    first, span = times[:, 0], times[np.arange(n), count - 1] - times[:, 0]
    u = np.where(seen, (times - first[:, None]) / span[:, None], 0.0)
    late = seen & (np.arange(bins) >= (count - np.maximum(1, count // 10))[:, None])
    level = (values * late).sum(axis=1) / late.sum(axis=1)
    # Late bins say more of what is to come than the fall from initialisation does.
    weight = seen * (0.1 + u)
    off = np.where(seen, values - level[:, None], 0.0)
    scale = (weight * np.abs(off)).sum(axis=1) / weight.sum(axis=1)
    scale = np.maximum(np.maximum(scale, 0.5 * noise), _LEAST)
    size = np.log(np.where(log, scale, _LINEAR))
    relative = np.where(noise > 0, np.log(np.maximum(noise, 1e-3 * scale) / scale), 0.0)
    shared = np.array([0.4 * size, 0.4 * relative, noise > 0, 0.02 * count]).T[:, None]

    of_bins = np.zeros((n, -(-bins // PATCH) * PATCH, 6))
    held = of_bins[:, :bins]
    held[..., :3] = 0.5 * np.arcsinh((off / scale[:, None])[..., None] * _STRETCHES)
    held[..., 3], held[..., 4], held[..., 5] = 2.0 * u - 1.0, 0.5 * np.log1p(50.0 * u), 1.0
    held[~seen] = 0.0
    ahead = np.maximum((at - first[:, None]) / span[:, None], 0.0)
    of_queries = np.log(np.maximum(ahead, 1e-3)), np.log(0.02 + np.abs(ahead - 1.0)), 1.0 / (1.0 + ahead)

    tokens = np.empty((n, of_bins.shape[1] // PATCH, TOKEN_FEATURES), dtype=np.float32)
    tokens[..., :-4], tokens[..., -4:] = of_bins.reshape(n, -1, 6 * PATCH), shared
    queries = np.empty((*at.shape, QUERY_FEATURES), dtype=np.float32)
    for i, feature in enumerate(of_queries):
        queries[..., i] = feature
    queries[..., -4:] = shared
    return Normalised(tokens, queries, seen[:, ::PATCH], level, scale)


class Block(nn.Module):
    """Attention to the bins, then a perceptron; both on normalised input (pre-norm)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_perceptron = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor, context: int, mask: Tensor | None, *, half: bool, last: bool) -> Tensor:
        """x: (n, c + q, width) to the same, or to (n, q, width) after the `last` block: nobody reads its bins.

        `context`: c; mask: (n, 1, 1, c), which tokens may be attended to; None: all; half: products in bfloat16.
        """
        products = torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext()
        with products:
            normed = self.before_attention(x)
            weight, bias = self.queries_keys_values.weight, self.queries_keys_values.bias
            width = x.shape[2]
            if last:
                x, asking = x[:, context:], normed[:, context:]
            else:
                asking = normed
            queries = F.linear(asking, weight[:width], bias[:width])
            keys, values = F.linear(normed[:, :context], weight[width:], bias[width:]).chunk(2, dim=2)
        # In single precision: on a CPU the backward pass of half-precision attention is many times slower.
        asked, known, told = (self._by_head(part) for part in (queries, keys, values))
        found = F.scaled_dot_product_attention(asked, known, told, attn_mask=mask)
        with products:
            x = x + self.out(found.transpose(1, 2).reshape(x.shape))
            return torch.as_tensor(x + self.down(F.gelu(self.up(self.before_perceptron(x)))))

    def _by_head(self, x: Tensor) -> Tensor:
        """(n, length, width) to (n, heads, length, width / heads) in single precision."""
        n, length, width = x.shape
        return x.float().view(n, length, self.heads, width // self.heads).transpose(1, 2)


class Network(nn.Module):
    """Curves in their own units to logits over bars.

    Attributes:
        edges: edges of the bars in z; beyond the outermost nothing is expected.   (k + 1,)
    """

    edges: Tensor

    def __init__(self, *, width: int, layers: int, heads: int, hidden: int, bars: int) -> None:
        super().__init__()
        self.read_tokens = nn.Linear(TOKEN_FEATURES, width)
        self.read_queries = nn.Linear(QUERY_FEATURES, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, bars)
        self.register_buffer("edges", torch.zeros(bars + 1))

    def forward(self, tokens: Tensor, queries: Tensor, mask: Tensor | None = None, *, half: bool = False) -> Tensor:
        """Logits (n, q, k); `half`: the blocks' products in bfloat16.

        tokens: (n, c, TOKEN_FEATURES), queries: (n, q, QUERY_FEATURES), mask: (n, 1, 1, c), None: all tokens hold bins
        """
        context = tokens.shape[1]
        x = torch.cat([self.read_tokens(tokens), self.read_queries(queries)], dim=1)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, context, mask, half=half, last=number == len(self.blocks))
        return torch.as_tensor(self.head(self.norm(x)))


def network_settings(values: Any) -> dict[str, int]:
    """Keyword arguments of a `Network`, checked; numbers in texts are numbers too.

    Raises:
        SettingError: other keys than these, or a value breaks its rule.
    """
    if not isinstance(values, Mapping) or set(values) != set(_SETTINGS):
        raise SettingError(f"`network` must map {', '.join(_SETTINGS)} to numbers, but got (network={values!r}).")
    found = {key: as_whole(key, values[key]) for key in _SETTINGS}
    for key, value in found.items():
        if not 1 <= value <= _LARGEST:
            raise SettingError(f"`1 <= {key} <= {_LARGEST}` must hold in `network`, but got ({key}={value}).")
    width, heads, bars = found["width"], found["heads"], found["bars"]
    if width % heads:
        raise SettingError(f"`width` must be a multiple of `heads` in `network`, but got ({width=}, {heads=}).")
    if bars % 2:  # half of them lie on either side of 0
        raise SettingError(f"`bars` must be even in `network`, but got ({bars=}).")
    return found


def bar_edges(z: Array, bars: int) -> Array:
    """Edges (bars + 1,) of bars that share |z| equally on either side of 0, with room beyond the outermost."""
    half = np.quantile(np.abs(z), np.linspace(0.0, 1.0, bars // 2 + 1))
    half[0], half[-1] = 0.0, 4.0 * half[-1]
    half = np.maximum.accumulate(half) + 1e-6 * np.arange(len(half))  # every bar has a width
    return np.concatenate([-half[:0:-1], half])
