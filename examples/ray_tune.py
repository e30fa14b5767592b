"""autolrs inside Ray Tune: Tune varies batch size and weight decay, autolrs finds each trial's learning-rate schedule.

python examples/ray_tune.py [STEPS [TRIALS]]
"""

from __future__ import annotations

import sys
import tempfile

import ray
import torch
from ray import tune
from torch import nn

import autolrs
from autolrs.integrations.ray_tune import bundles

STEPS, TRIALS = (int(word) for word in (*sys.argv[1:], *("200", "4")[len(sys.argv) - 1 :]))


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 8, generator=generator)
    return x, x.sin().sum(1, keepdim=True) + 0.1 * torch.randn(2000, 1, generator=generator)


def train(session: autolrs.Session) -> None:
    """An ordinary loop; what Tune varies is in `session.args`."""
    (x, y), held_out = data(0), data(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=session.args["weight_decay"])
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, session.args["batch_size"], shuffle=True)
    session.track(model=model, optimizer=optimizer)
    session.validate(lambda: nn.functional.mse_loss(model(held_out[0]), held_out[1]))
    for inputs, targets in session.batches(loader):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)


def trial(config: dict[str, float]) -> None:
    """A Tune trial: one tuned run, whose worker is in the trial's placement group."""
    with tempfile.TemporaryDirectory() as folder:
        study = autolrs.tune(train, steps=STEPS, space="adamw", executor="ray", args=config, storage=folder)
    tune.report({"loss": study.final_loss, "rate": study.stages[0].rate, "search_cost": study.cost.search_cost})


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False)
    space = {"batch_size": tune.choice([25, 50, 100]), "weight_decay": tune.loguniform(1e-4, 1e-1)}
    settings = tune.TuneConfig(metric="loss", mode="min", num_samples=TRIALS, max_concurrent_trials=1)
    results = tune.Tuner(tune.with_resources(trial, bundles(1)), param_space=space, tune_config=settings).fit()
    best = results.get_best_result()
    print(f"best: {best.config}, loss {best.metrics['loss']:.4g}, rate {best.metrics['rate']:.3g}")
