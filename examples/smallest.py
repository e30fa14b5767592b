"""The smallest loop: a network on scikit-learn's 1,797 handwritten digits, tuned inside a loop of your own.

Run: python examples/smallest.py [STEPS]     and again to continue a run that was stopped
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolrs

STEPS = 1000


def main(steps: int) -> autolrs.Study:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    with autolrs.attach(model=model, optimizer=optimizer, steps=steps, space="sgd") as session:
        for inputs, targets in session.batches(DataLoader(data, batch_size=32, shuffle=True)):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.report(loss)
    return session.study


if __name__ == "__main__":
    study = main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
    print(study, study.cost, sep="\n")
