"""Where the right photograph shows what a patch of the left one does: convolutional towers with batch normalisation,
whose inner products are compared, on a pair that scikit-image ships, SGD with momentum and weight decay.

References:
    Luo, Schwing, Urtasun: "Efficient Deep Learning for Stereo Matching", CVPR 2016.
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

STEPS = 900
PATCH, PLACES = 9, 17  # pixels
BAND = 20  # rows that are wholly for training, validation or test


@cache
def data() -> tuple[TensorDataset, ...]:
    """Patches of the left photograph (3, 9, 9), strips of the right one (3, 9, 25), and at which of a strip's 17 places
    its patch shows the same. Of five bands of rows one validates and one tests; no patch crosses one."""
    folder = distribution("scikit-image").locate_file("skimage/data")
    photographs = []
    for side in ("left", "right"):
        pixels = np.asarray(Image.open(f"{folder}/motorcycle_{side}.png").convert("RGB"), dtype=np.float32)
        photographs.append(torch.from_numpy(pixels).permute(2, 0, 1))
    left, right = ((each - each.mean()) / each.std() for each in photographs)
    with np.load(f"{folder}/motorcycle_disp.npz") as file:
        moved = torch.from_numpy(file["arr_0"])
    patches = left.unfold(1, PATCH, 1).unfold(2, PATCH, 1).permute(1, 2, 0, 3, 4)
    strips = right.unfold(1, PATCH, 1).unfold(2, PATCH + PLACES - 1, 1).permute(1, 2, 0, 3, 4)
    y, x = torch.cartesian_prod(*map(torch.arange, patches.shape[:2])).unbind(1)
    shift = moved[y + PATCH // 2, x + PATCH // 2]
    seen = shift.isfinite() & (y % BAND <= BAND - PATCH)
    y, x, shift = y[seen], x[seen], shift[seen].round().long()
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(PLACES, shift.shape, generator=generator)
    begin = x - shift - place
    part = (y // BAND % 5 - 2).clamp(min=0)
    splits = []
    for number, size in enumerate((20_000, 3_000, 4_000)):
        inside = ((begin >= 0) & (begin < strips.shape[1]) & (part == number)).nonzero()[:, 0]
        some = inside[torch.randperm(len(inside), generator=generator)[:size]]
        splits.append(TensorDataset(patches[y[some], x[some]], strips[y[some], begin[some]], place[some]))
    return tuple(splits)


class Towers(nn.Module):
    """The same four convolutions of both."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, width, width):
            layers += [nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.tower = nn.Sequential(*layers, nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width))

    def forward(self, patches: Tensor, strips: Tensor) -> Tensor:
        """Logits of the places."""
        products = self.tower(patches) * self.tower(strips)
        return products.sum(1).flatten(1) / products.shape[1] ** 0.5


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of the right places."""
    model.eval()  # `validate` puts training mode back
    patches, strips, places = dataset.tensors
    logits = model(patches, strips)
    return nn.functional.cross_entropy(logits, places).item(), (logits.argmax(1) == places).float().mean().item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4)


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = Towers()
    sgd = optimizer(model)
    session.track(model=model, optimizer=sgd)
    session.validate(lambda: evaluate(model, validation)[0])
    for patches, strips, places in session.batches(DataLoader(training, batch_size=32, shuffle=True)):
        loss = nn.functional.cross_entropy(model(patches, strips), places)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
