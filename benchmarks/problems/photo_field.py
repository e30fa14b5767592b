"""A photograph as a function: an MLP on random Fourier features, from the place of a pixel to its colour, on a cat that
scikit-image ships, Adam.

References:
    Tancik, Srinivasan, Mildenhall, Fridovich-Keil, Raghavan, Singhal, Ramamoorthi, Barron, Ng: "Fourier Features Let
    Networks Learn High Frequency Functions in Low Dimensional Domains", NeurIPS 2020.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from math import tau

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 3000
SCALE = 10.0  # standard deviation of the frequencies, in periods a picture


@cache
def data() -> tuple[TensorDataset, ...]:
    """Places (n, 2) from 0 to 1 and standardised colours (n, 3) of the 135,300 pixels; of ten one validates and one
    tests."""
    file = distribution("scikit-image").locate_file("skimage/data/chelsea.png")
    pixels = torch.from_numpy(np.asarray(Image.open(str(file)).convert("RGB"), dtype=np.float32))
    rows, columns = (torch.arange(size) / size for size in pixels.shape[:2])
    places, colours = torch.cartesian_prod(rows, columns), pixels.flatten(0, 1)
    colours = (colours - colours.mean(0)) / colours.std(0)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
    tenth = len(order) // 10
    sizes = [len(order) - 2 * tenth, tenth, tenth]
    return tuple(map(TensorDataset, places[order].split(sizes), colours[order].split(sizes)))


class Field(nn.Module):
    frequencies: Tensor

    def __init__(self, frequencies: int = 64, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", tau * SCALE * torch.randn(2, frequencies))
        self.layers = nn.Sequential(
            *(nn.Linear(2 * frequencies, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)),
        )

    def forward(self, places: Tensor) -> Tensor:
        phases = places @ self.frequencies
        colours: Tensor = self.layers(torch.cat([phases.sin(), phases.cos()], 1))
        return colours


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error, in units of the colours' variance."""
    places, colours = dataset.tensors
    return nn.functional.mse_loss(model(places), colours).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Field()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for places, colours in session.batches(DataLoader(training, batch_size=512, shuffle=True)):
        loss = nn.functional.mse_loss(model(places), colours)
        adam.zero_grad()
        loss.backward()
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
