"""Optuna with autolrs's curve pruner: a network for the 1,797 digits of scikit-learn; Optuna proposes, we stop early.

Run: python examples/curve_pruner.py [TRIALS]
"""

from __future__ import annotations

import sys

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

from autolrs.integrations.optuna import CurvePruner

TRIALS = 30
EPOCHS = 40


def data() -> tuple[torch.Tensor, ...]:
    """Images and labels, 1,200 to train on and the rest to validate on."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def objective(trial: optuna.Trial) -> float:
    """Validation loss after the last epoch; reported after each, so that the pruner sees a curve."""
    x, y, validation_x, validation_y = data()
    torch.manual_seed(0)
    width = trial.suggest_int("width", 16, 128, log=True)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(trial.suggest_float("dropout", 0, 0.6)))
    model.append(nn.Linear(width, 10))
    rate, decay = (trial.suggest_float(name, 1e-5, 1, log=True) for name in ("rate", "weight_decay"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    loss = torch.tensor(torch.inf)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(validation_x), validation_y)
        trial.report(loss.item(), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss.item()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=CurvePruner())
    study.optimize(objective, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
    epochs = sum(len(trial.intermediate_values) for trial in study.trials)
    pruned = len(study.get_trials(states=(optuna.trial.TrialState.PRUNED,)))
    print(f"best validation loss {study.best_value:.4f} with {study.best_params}")
    print(f"{pruned} of {len(study.trials)} trials were stopped early: {epochs} epochs of {EPOCHS * len(study.trials)}")
