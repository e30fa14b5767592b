"""Which of seven kinds a film is of, several at once: the mean of its title's words, beside its year, length and votes,
and an MLP on the 58,788 films of the package pydataset, SGD with momentum and weight decay.

References:
    Joulin, Grave, Bojanowski, Mikolov: "Bag of Tricks for Efficient Text Classification", EACL 2017 (the titles).
    Internet Movie Database, 2005 (the data).
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 3000
WORDS, MOST = 4000, 8  # known words; words of a title that are read
KINDS = ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short"]
NUMBERS = ["year", "length", "rating", "votes", *(f"r{grade}" for grade in range(1, 11))]


@cache
def data() -> tuple[TensorDataset, ...]:
    """Standardised numbers (n, 14), words of the title (n, 8), 0 where there is none, and the kinds (n, 7); 6,000 films
    to validate and to test."""
    # Importing the package would unpack all its tables into the home folder.
    file = distribution("pydataset").locate_file("pydataset/resources.tar.gz")
    with tarfile.open(str(file)) as tables:
        table = pandas.read_csv(tables.extractfile("resources/rdata/csv/ggplot2/movies.csv"))  # type: ignore[arg-type]
    table = table.iloc[torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).tolist()]
    titles = [re.findall(r"\w+", title.lower())[:MOST] for title in table["title"]]
    counts = Counter(word for title in titles[12_000:] for word in title)
    codes = {word: 2 + code for code, (word, _) in enumerate(counts.most_common(WORDS - 2))}  # 1: unknown
    words = torch.zeros(len(table), MOST, dtype=torch.int64)
    for row, title in enumerate(titles):
        words[row, : len(title)] = torch.tensor([codes.get(word, 1) for word in title], dtype=torch.int64)
    numbers = torch.tensor(table[NUMBERS].to_numpy(), dtype=torch.float32)
    numbers[:, [1, 3]] = numbers[:, [1, 3]].log()
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    kinds = torch.tensor(table[KINDS].to_numpy(), dtype=torch.float32)
    sizes = [6_000, 6_000, len(table) - 12_000]
    validation, test, training = (
        TensorDataset(*parts)
        for parts in zip(*(tensor.split(sizes) for tensor in (numbers, words, kinds)), strict=True)
    )
    return training, validation, test


class Network(nn.Module):
    def __init__(self, each: int = 64, width: int = 256) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, each, padding_idx=0)
        self.layers = nn.Sequential(
            *(nn.Linear(each + len(NUMBERS), width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(KINDS))),
        )

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        """Logits of the kinds."""
        logits: Tensor = self.layers(torch.cat([numbers, self.words(words)], 1))
        return logits


def cross_entropy(logits: Tensor, kinds: Tensor) -> Tensor:
    """The sum over the kinds, a film's mean."""
    return nn.functional.binary_cross_entropy_with_logits(logits, kinds, reduction="sum") / len(kinds)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Cross-entropy and share of the right answers."""
    numbers, words, kinds = dataset.tensors
    logits = model(numbers, words)
    return cross_entropy(logits, kinds).item(), ((logits > 0) == (kinds > 0)).float().mean().item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-4)


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Network()
    sgd = optimizer(model)
    session.track(model=model, optimizer=sgd)
    session.validate(lambda: evaluate(model, validation)[0])
    for numbers, words, kinds in session.batches(DataLoader(training, batch_size=128, shuffle=True)):
        loss = cross_entropy(model(numbers, words), kinds)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
