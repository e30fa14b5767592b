"""Training curves of our own tasks -> benchmarks/results/curves/.

Run: python -m benchmarks own-curves. It records what is missing, then judges the curve models (`benchmarks.unseen`). No
setting, weight or prior of a curve model has ever been chosen on these curves, and none is to be.

Curves of a task start from the same weights and see the same batches. Runs have half of the task's steps:
    whole runs  at the task's seven rates, constant from the first step
    forks       the run at the middle rate, which from 35 % of its steps on goes on at another rate for 25 % of them;
                the whole run itself is the seventh of these siblings
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch

from benchmarks.plain import PlainSession
from benchmarks.rows import RESULTS, commit
from benchmarks.tasks import TASKS, Task, seed_all

FOLDER: Final = RESULTS / "curves"
SEED: Final = 30
"""One that no other benchmark has."""

LENGTH: Final = 0.5
"""Of a run, over the task's steps."""

FORK, PROBE = 0.35, 0.25
"""Shares of the run: where probes leave it, and their length."""

FACTORS: Final = tuple(10 ** (i / 3) for i in (-3, -2, -1, 1, 2, 3))
"""Of the probes' rates over the run's."""

_BITS = 13  # of a mantissa, as of the shared curves


class Recorder(PlainSession):
    """Keeps the loss of each step."""

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__(len(rates), rates.__getitem__)
        self.losses: list[float] = []

    def after(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())


def record(tasks: Iterable[Task] = (task for task in TASKS.values() if task.times == 1), folder: Path = FOLDER) -> None:
    """Record the tasks that `folder` has no curves of."""
    folder.mkdir(parents=True, exist_ok=True)
    path, made_by = folder / "meta.parquet", commit()
    for task in tasks:
        meta = pd.read_parquet(path) if path.exists() else None
        if meta is not None and task.name in set(meta.source):
            continue
        task.load()
        tables = [_table(task, name, rates) for name, rates in curves_of(task)]
        save(pd.concat(tables), folder / f"{task.name}.parquet")
        about = {"source": task.name, "group": "start", "model": task.name, "seed": SEED}
        made = pd.DataFrame([about | {"curve_id": t.curve_id.iloc[0], "steps_full": t.step.iloc[-1]} for t in tables])
        made = made.assign(torch=version("torch"), commit=made_by)
        pd.concat([made] if meta is None else [meta, made]).to_parquet(path, index=False)
        print(f"{task.name}: {len(tables)} curves", flush=True)


def curves_of(task: Task) -> Iterator[tuple[str, list[float]]]:
    """Names, and the rate of each step."""
    steps = round(LENGTH * task.steps)
    for rate in task.rates:
        yield f"{rate:g}", [rate] * steps
    trunk, before, length = task.rates[len(task.rates) // 2], round(FORK * steps), round(PROBE * steps)
    for factor in FACTORS:
        rate = float(f"{factor * trunk:.3g}")
        yield f"fork {rate:g}", [trunk] * before + [rate] * length


def losses_of(task: Task, rates: Sequence[float]) -> list[float]:
    """The loss of each step of one run."""
    seed_all(SEED)
    session = Recorder(rates)
    task.train(session)
    return session.losses


def save(table: pd.DataFrame, path: Path) -> None:
    """Half the size of pandas' default."""
    table.to_parquet(
        path,
        index=False,
        compression="zstd",
        compression_level=19,
        use_dictionary=["curve_id", "lr", "val_loss"],
        column_encoding={"step": "DELTA_BINARY_PACKED", "train_loss": "BYTE_STREAM_SPLIT"},
    )


def _table(task: Task, name: str, rates: Sequence[float]) -> pd.DataFrame:
    mantissa, exponent = np.frexp(np.asarray(losses_of(task, rates)))
    losses = np.ldexp(np.round(mantissa * 2.0**_BITS) / 2.0**_BITS, exponent)
    return pd.DataFrame(
        {
            "curve_id": name,
            "step": np.arange(len(losses), dtype=np.int32),
            "lr": np.asarray(rates, dtype=np.float32),
            "train_loss": losses.astype(np.float32),
            "val_loss": np.float32(np.nan),
        }
    )
