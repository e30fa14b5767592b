"""A small GPT on the source text of Python's own standard library, byte by byte, AdamW.

Run: python examples/char_gpt.py [STEPS]     or: autolrs tune examples/char_gpt.py:train --steps 1000 --space adamw
"""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1000
CONTEXT = 64
WIDTH = 64


@cache
def data() -> tuple[TensorDataset, ...]:
    """Windows of CONTEXT + 1 bytes; of each ten files eight are to train on, one to validate, one to test."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    def windows(tenths: set[int]) -> Tensor:
        text = b"".join(file.read_bytes() for number, file in enumerate(files) if number % 10 in tenths)
        count = len(text) // (CONTEXT + 1)
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)[: count * (CONTEXT + 1)].view(count, -1)

    def sample(tokens: Tensor, count: int) -> Tensor:
        return tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:count]]

    splits = windows(set(range(8))), sample(windows({8}), 400), sample(windows({9}), 1600)
    return tuple(TensorDataset(split) for split in splits)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy [nat a byte] of each byte given those before it."""
        tokens = windows.long()
        hidden = self.token(tokens[:, :-1]) + self.place.weight
        logits = self.head(self.blocks(hidden, mask=self.mask, is_causal=True))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())  # no rate: that is what is tuned


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    parts = dataset.tensors[0].split(200)
    return sum(model(part).item() * len(part) for part in parts) / len(dataset)


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = GPT()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation))
    for (windows,) in session.batches(DataLoader(training, batch_size=8, shuffle=True)):
        loss = model(windows)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}


if __name__ == "__main__":
    study = autolrs.tune(train, steps=int(sys.argv[1]) if len(sys.argv) > 1 else STEPS, space="adamw")
    print(study, study.cost, study.result, sep="\n")
