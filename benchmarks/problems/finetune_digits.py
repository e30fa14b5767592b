"""Fine-tuning: a network trained on the digits 0 to 4 learns 5 to 9 from 600 examples, AdamW from a low rate.

The weights to start from are trained here, by plain Adam, once a process and always the same.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs
from examples.mnist_cnn import data as digits_data
from examples.mnist_cnn import evaluate

STEPS = 2000
EXAMPLES = 600


def model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 5)),
    )


@cache
def data() -> tuple[TensorDataset, ...]:
    """The digits 5 to 9, as classes 0 to 4: 600 to train on, and those of the example's other splits."""
    splits = []
    for split in digits_data():
        images, digits = split.tensors
        splits.append(TensorDataset(images[digits >= 5], digits[digits >= 5] - 5))
    return TensorDataset(*(tensor[:EXAMPLES] for tensor in splits[0].tensors)), *splits[1:]


@cache
def pretrained() -> dict[str, Tensor]:
    """Weights after 300 steps of Adam on the training digits 0 to 4; leaves the global generator alone."""
    images, digits = digits_data()[0].tensors
    images, digits = images[digits < 5], digits[digits < 5]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model()
        adam = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(300):
            batch = torch.randint(len(digits), (64,))
            adam.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), digits[batch]).backward()
            adam.step()
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def train(session: autolrs.Session) -> dict[str, float]:
    training, validation, test = data()
    network = model()
    fresh = network[-1].state_dict()
    network.load_state_dict({**pretrained(), **{f"{len(network) - 1}.{name}": value for name, value in fresh.items()}})
    adamw = optimizer(network)
    session.track(model=network, optimizer=adamw)
    session.validate(lambda: evaluate(network, validation)[0])
    for images, digits in session.batches(DataLoader(training, batch_size=32, shuffle=True)):
        loss = nn.functional.cross_entropy(network(images), digits)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        session.report(loss)
    test_loss, accuracy = evaluate(network, test)
    return {"test_loss": test_loss, "test_accuracy": accuracy}
