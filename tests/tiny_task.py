"""A task of the benchmark's kind that takes milliseconds: a linear regression."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 120


@cache
def data() -> tuple[TensorDataset, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(300, generator=generator)
    return tuple(TensorDataset(*parts) for parts in zip(x.split(100), y.split(100), strict=True))


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session):
    training, validation, test = data()
    model = nn.Linear(4, 1)
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)

    def loss_of(dataset):
        with torch.no_grad():
            return nn.functional.mse_loss(model(dataset.tensors[0])[:, 0], dataset.tensors[1]).item()

    session.validate(lambda: loss_of(validation))
    for x, y in session.batches(DataLoader(training, batch_size=20, shuffle=True)):
        loss = nn.functional.mse_loss(model(x)[:, 0], y)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    return {"test_loss": loss_of(test)}
