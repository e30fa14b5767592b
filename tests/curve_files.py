"""Synthetic curves in files like those of real ones, for the tests of `benchmarks`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

RATES = (0.01, 0.1, 1.0)
N = 1000
"""Last step."""


def falling(steps, rate):
    return 1 + np.exp(-rate * steps / 50)


def write_curves(path: Path) -> None:
    """Two sources: DeepOBS-like siblings, one of which blows up and one of which stops; and a trunk with forks."""
    steps = np.arange(N + 1)
    tables, meta = {"deepobs": [], "trunk": []}, []

    def add(source, curve_id, losses, rates, *, column="train_loss", group="g", model="m", seed=np.nan, full=np.nan):
        n = len(losses)
        tables[source].append(
            pd.DataFrame(
                {
                    "source": source,
                    "curve_id": curve_id,
                    "step": steps[:n],
                    "lr": rates * np.ones(n),
                    "train_loss": np.nan,
                    "val_loss": np.nan,
                }
            ).assign(**{column: losses})
        )
        meta.append(
            {"source": source, "curve_id": curve_id, "group": group, "model": model, "seed": seed, "steps_full": full}
        )

    for rate in RATES:
        add("deepobs", f"lr{rate}", falling(steps, rate), rate, seed=42, full=N)
    add("deepobs", "seed", falling(steps, 0.1) + 0.01, 0.1, seed=43, full=N)
    add("deepobs", "blown", np.where(steps < 500, 2.0, 1e6), 10.0, seed=42, full=N)
    add("deepobs", "stopped", [2.0, 2.0, 2.0, 50.0, math.nan], 100.0, seed=42, full=N)
    # A row of a validation loss alone is no point of the training loss.
    tables["deepobs"][0].loc[5, ["train_loss", "val_loss"]] = [math.nan, 7.0]
    for after in (1.0, 0.5, 0.1):
        rates = np.where(steps <= 400, 1.0, after)
        losses = falling(steps, 0.1) - np.where(steps <= 400, 0.0, 0.1 * (1 - after))
        add("trunk", f"to{after}", losses, rates, column="val_loss", group="t")
    add("trunk", "decay", falling(steps, 0.2), 1 - steps / (N + 1), column="val_loss", group="t")
    for source, parts in tables.items():
        pd.concat(parts).to_parquet(path / f"{source}.parquet")
    pd.DataFrame(meta).to_parquet(path / "meta.parquet")
