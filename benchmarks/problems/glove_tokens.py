"""No network: GloVe, a weighted factorisation of how often tokens of the standard library's source stand together.

Adagrad, as in the paper. A held-out tenth of the counts validates, another tests.

References:
    Pennington, Socher, Manning: "GloVe: Global Vectors for Word Representation", EMNLP 2014, equations 8 and 9.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 4000
WORDS, WIDTH, NEAR = 3000, 24, 5
MOST, POWER = 100.0, 0.75  # x_max and alpha of equation 9


@cache
def data() -> tuple[TensorDataset, ...]:
    """Pairs of tokens (n, 2) and their counts, weighted by 1 / distance, at distances up to 5."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = [re.findall(r"\w+|[^\w\s]", file.read_text(encoding="utf-8", errors="replace")) for file in files]
    common = Counter(token for tokens in text for token in tokens).most_common(WORDS)
    number = {token: i for i, (token, _) in enumerate(sorted(common))}
    keys, weights = [], []
    for tokens in text:
        ids = torch.tensor([number.get(token, -1) for token in tokens])
        for distance in range(1, NEAR + 1):
            pairs = torch.stack([ids[:-distance], ids[distance:]])
            pairs = pairs[:, (pairs >= 0).all(0)]
            keys += [pairs[0] * WORDS + pairs[1], pairs[1] * WORDS + pairs[0]]
            weights += [torch.full((2 * pairs.shape[1],), 1.0 / distance)]
    cells, where = torch.unique(torch.cat(keys), return_inverse=True)
    counts = torch.zeros(len(cells)).index_add_(0, where, torch.cat(weights))
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    pairs, counts = torch.stack([cells // WORDS, cells % WORDS], 1)[order], counts[order]
    tenth = len(order) // 10
    sizes = [len(order) - 2 * tenth, tenth, tenth]
    return tuple(TensorDataset(*parts) for parts in zip(pairs.split(sizes), counts.split(sizes), strict=True))


class GloVe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.contexts = (nn.Embedding(WORDS, WIDTH) for _ in range(2))
        self.biases = nn.ModuleList(nn.Embedding(WORDS, 1) for _ in range(2))
        for embedding in (self.words, self.contexts, *self.biases):
            nn.init.uniform_(embedding.weight, -0.5 / WIDTH, 0.5 / WIDTH)

    def forward(self, pairs: Tensor, counts: Tensor) -> Tensor:
        """Mean weighted squared error of the log counts (equation 8)."""
        i, j = pairs.unbind(1)
        product = (self.words(i) * self.contexts(j)).sum(1)
        error = product + self.biases[0](i)[:, 0] + self.biases[1](j)[:, 0] - counts.log()
        return ((counts / MOST).clamp(max=1.0) ** POWER * error.square()).mean()


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    return model(*dataset.tensors).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = GloVe()
    adagrad = optimizer(model)
    session.track(model=model, optimizer=adagrad)
    session.validate(lambda: evaluate(model, validation))
    for pairs, counts in session.batches(DataLoader(training, batch_size=512, shuffle=True)):
        loss = model(pairs, counts)
        adagrad.zero_grad()
        loss.backward()
        adagrad.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
