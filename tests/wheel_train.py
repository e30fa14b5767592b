"""A training loop that needs nothing but autolrs's own dependencies: a line through noisy points."""

import torch
from torch import nn

import autolrs


def train(session: autolrs.Session) -> dict[str, float]:
    x = torch.linspace(-1, 1, 256).view(-1, 1)
    y = 3 * x - 1 + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    session.track(model=model, optimizer=optimizer)
    session.validate(lambda: nn.functional.mse_loss(model(x), y))
    for inputs, targets in session.batches(loader):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)
    return {"slope": model.weight.item()}
