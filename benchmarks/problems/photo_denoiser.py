"""A convolutional network that takes noise out of photographs (five that scikit-image ships), Adam.

It says what the noise is, with batch normalisation (DnCNN), at half the resolution (FFDNet).

References:
    Zhang, Zuo, Chen, Meng, Zhang: "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising",
    IEEE TIP 2017.
    Zhang, Zuo, Zhang: "FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising", IEEE TIP 2018.
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

STEPS = 1400
PHOTOGRAPHS = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
PATCH, TILE = 24, 48  # pixels; a tile is wholly for training, validation or test
NOISE = 0.2  # of a range of 1


@cache
def data() -> tuple[TensorDataset, ...]:
    """Patches (3, 24, 24), those to validate and to test with noisy ones beside them; the noise of training is drawn
    anew for each batch. Of ten tiles two validate and two test; no patch crosses one."""
    folder = distribution("scikit-image").locate_file("skimage/data")
    tiles = []
    for name in PHOTOGRAPHS:
        pixels = np.asarray(Image.open(f"{folder}/{name}").convert("RGB"), dtype=np.float32) / 255
        tiles.append(torch.from_numpy(pixels).unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1))
    every, generator = torch.cat(tiles), torch.Generator().manual_seed(0)
    every = every[torch.randperm(len(every), generator=generator)]
    fifth = len(every) // 5
    training, *others = every.split([len(every) - 2 * fifth, fifth, fifth])
    pairs = []
    for part in others:
        patches = cut(part, 8)
        pairs.append(TensorDataset(patches, patches + NOISE * torch.randn(patches.shape, generator=generator)))
    return TensorDataset(cut(training, 4)), *pairs


def cut(tiles: Tensor, step: int) -> Tensor:
    """Patches (m, 3, 24, 24) from tiles (n, 3, 48, 48), one every few pixels."""
    patches = tiles.unfold(2, PATCH, step).unfold(3, PATCH, step)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


class Denoiser(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2)),
        )

    def forward(self, noisy: Tensor) -> Tensor:
        clean: Tensor = noisy - NOISE * self.layers(noisy)
        return clean


def error(clean: Tensor, patches: Tensor) -> Tensor:
    """Mean squared error, in units of the noise's variance."""
    return nn.functional.mse_loss(clean, patches) / NOISE**2


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    model.eval()  # `validate` puts training mode back
    patches, noisy = dataset.tensors
    return error(model(noisy), patches).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Denoiser()
    adam = optimizer(model)
    session.track(model=model, optimizer=adam)
    session.validate(lambda: evaluate(model, validation))
    for (patches,) in session.batches(DataLoader(training, batch_size=16, shuffle=True)):
        loss = error(model(patches + NOISE * torch.randn_like(patches)), patches)
        adam.zero_grad()
        loss.backward()
        adam.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
