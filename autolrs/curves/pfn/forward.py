"""One forward pass of the fitted network for curves of different lengths, as quick for one curve as it can be.

The answers are those of `Network`, to rounding, in fewer calls and without padding: the rows of all curves, the tokens
of each and then its question, lie below each other; only in the attention are they padded. A curve's answer is the
same, to the last bit, whatever else is asked with it: products round each row by itself if they have four or more, and
attention is always to as many tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autolrs.curves.pfn.network import PATCH, TOKEN_FEATURES, Array, Block, Network, Normalised, normalise
from autolrs.curves.points import MOST

__all__ = ["CONTEXT", "Forward", "forward", "normalise"]

CONTEXT: Final = -(-MOST // PATCH)
"""Tokens of the longest curve."""

_FEWEST: Final = 4  # rows of a product: fewer have kernels of their own, which round in another order

_Affine = tuple[Tensor, Tensor]  # weight, bias


class _Layer(NamedTuple):
    """The tensors of a `Block`, under its names for them."""

    before_attention: _Affine
    queries_keys_values: _Affine
    out: _Affine
    before_perceptron: _Affine
    up: _Affine
    down: _Affine


@lru_cache(maxsize=8)
def forward(network: Network) -> Forward:
    """A network that does not change any more, laid out once."""
    return Forward(network)


class Forward:
    """A network's weights, laid out for `densities`.

    Attributes:
        edges: of the bars in z.   (k + 1,)
    """

    def __init__(self, network: Network) -> None:
        self.edges = network.edges.double().numpy()
        blocks = [block for block in network.blocks if isinstance(block, Block)]
        self._layers = [_Layer(*(_affine(getattr(block, name)) for name in _Layer._fields)) for block in blocks]
        self._heads = blocks[0].heads
        self._norm, self._head = _affine(network.norm), _affine(network.head)
        # One product reads both kinds of rows: each has zeros in the other's columns, and a 1 for the bias of its own.
        read = _affine(network.read_tokens), _affine(network.read_queries)
        self._read = torch.cat([*(weight for weight, _ in read), *(bias[:, None] for _, bias in read)], dim=1)

    def densities(self, curves: Normalised) -> Array:
        """Probabilities of the bars for the first question about each curve.   (n, k)"""
        n, padded = len(curves.tokens), CONTEXT + 1
        features = np.zeros((n, padded, self._read.shape[1]), dtype=np.float32)
        features[:, :CONTEXT, :TOKEN_FEATURES] = curves.tokens
        features[:, CONTEXT, TOKEN_FEATURES:-2] = curves.queries[:, 0]
        features[:, :CONTEXT, -2] = features[:, CONTEXT, -1] = 1.0
        held = np.ones((n, padded), dtype=bool)
        held[:, :CONTEXT] = curves.seen
        kept = np.flatnonzero(held)
        row = np.zeros(n * padded, dtype=np.intp)  # of what is not held: any
        row[kept] = np.arange(len(kept))
        asking = row[CONTEXT::padded]
        kept, asking, asker = (_enough(i) for i in (kept, asking, np.arange(n)))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            rows = F.linear(torch.from_numpy(features.reshape(n * padded, -1)[kept]), self._read)
            index = tuple(torch.from_numpy(i) for i in (kept, row, asking, asker))
            logits = self._logits(rows, torch.from_numpy(held[:, None, None, :CONTEXT]), *index)[:n]
            return np.asarray(logits.double().softmax(dim=-1).numpy())

    def _logits(self, x: Tensor, mask: Tensor, kept: Tensor, row: Tensor, asking: Tensor, asker: Tensor) -> Tensor:
        """Logits of what is asked.   (len(asking), k)

        Args:
            x: rows that hold something, over again from the first if there are too few.   (r, width)
            mask: which tokens hold something.   (n, 1, 1, CONTEXT)
            kept: places of the rows in the padded order.   (r,)
            row: rows of the padded places.   (n * (CONTEXT + 1),)
            asking: rows of the questions, the same.
            asker: curves that they are about.
        """
        n, width = len(mask), x.shape[1:]
        for layer in self._layers:
            known = F.linear(torch.layer_norm(x, width, *layer.before_attention), *layer.queries_keys_values)
            by_head = known.index_select(0, row).view(n, CONTEXT + 1, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            asked, keys, values = by_head.unbind()
            last = layer is self._layers[-1]
            asked = asked[:, :, CONTEXT:] if last else asked  # nobody reads its tokens
            keys, values = keys[:, :, :CONTEXT], values[:, :, :CONTEXT]
            found = F.scaled_dot_product_attention(asked, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
            if last:
                x, found = x.index_select(0, asking), found[:, 0].index_select(0, asker)
            else:
                found = found.view(-1, *width).index_select(0, kept)
            x = x + F.linear(found, *layer.out)
            up = F.gelu(F.linear(torch.layer_norm(x, width, *layer.before_perceptron), *layer.up))
            x = x + F.linear(up, *layer.down)
        return F.linear(torch.layer_norm(x, width, *self._norm), *self._head)


def _enough(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """At least `_FEWEST` rows: over again from the first."""
    return rows if len(rows) >= _FEWEST else np.resize(rows, _FEWEST)


def _affine(module: nn.Module) -> _Affine:
    return module.get_parameter("weight").detach(), module.get_parameter("bias").detach()
