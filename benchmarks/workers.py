"""What several workers bring, and what they cost -> docs/workers.md. Run: python -m benchmarks workers

Steps are simulated: each sleeps, so that more workers than cores can be tried. Everything else is real: Ray, processes,
checkpoints, the search. Beginning (Ray, processes, imports) is not counted; it takes some seconds once.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

import autolrs
from autolrs.snapshot import seed_everything
from benchmarks import idle, overheads
from benchmarks.clocks import CPUS, Clock, ray_with_room

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "workers.md"
STEP_SECONDS: Final = 0.02
STEPS: Final = 1500
WORKERS: Final = (1, 2, 4, 8)


def simulated(session: autolrs.Session) -> float:
    """A loop whose steps take `session.args["seconds"]` each, on a noisy quadratic bowl."""
    weights = nn.Parameter(torch.full((20,), 3.0))
    scales = torch.logspace(-2, 0, 20)
    optimizer = torch.optim.SGD([weights], lr=0.1)
    session.track(weights=weights, optimizer=optimizer)
    assemble(Path(session.args["meet"]), session.args["workers"])
    for _ in session.batches([0] * 1000):
        time.sleep(session.args["seconds"])
        loss = (scales * (weights + 0.5 * torch.randn(20)).square()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)
    return float((scales * weights.detach().square()).sum())


def assemble(folder: Path, workers: int) -> None:
    """Wait until all workers' processes have come here: how long they take to begin is not what is measured."""
    folder.joinpath(str(os.getpid())).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.02)


def tuned(clock: Clock, workers: int, **settings: Any) -> autolrs.Study:
    """A run of `simulated` in a folder of its own."""
    with TemporaryDirectory() as folder, TemporaryDirectory() as meet:
        given = {"steps": STEPS, "executor": "ray", "workers": workers, "resources_per_worker": {"CPU": CPUS}}
        return autolrs.tune(
            simulated,
            storage=folder,
            space="sgd",
            callbacks=[clock],
            args={"seconds": STEP_SECONDS, "meet": meet, "workers": workers},
            **{**given, **settings},
        )


def scaling(deterministic: bool) -> str:
    """A table of wall-clock and search efficiency by number of workers."""
    lines = [
        "| workers | probes | search [s] | bound, ceil(P/W) probes [s] | efficiency | run [s] | of plain training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with ray_with_room():
        clock = Clock()
        tuned(clock, 1, search_budget=0)
        plain = clock.last("Finished") - clock.first("Opened")
        lines.append(f"| 1, no search | 0 | | | | {plain:.1f} | 1 |")
        for workers in WORKERS if deterministic else WORKERS[1:]:
            clock = Clock()
            study = tuned(clock, workers, deterministic=deterministic)
            (stage,) = study.stages
            search = clock.first("Decided") - clock.first("Opened")
            whole = clock.last("Finished") - clock.first("Opened")
            bound = ideal([trial.steps for trial in stage.trials], workers) * STEP_SECONDS
            lines.append(
                f"| {workers} | {len(stage.trials)} | {search:.2f} | {bound:.2f} | {bound / search:.2f} "
                f"| {whole:.1f} | {whole / plain:.3f} |"
            )
    return "\n".join(lines)


def ideal(steps: Sequence[int], workers: int) -> int:
    """Steps one after the other if batches of `workers` probes cost what their longest one does."""
    return sum(max(steps[i : i + workers]) for i in range(0, len(steps), workers))


# What batches cost in quality


def batching(problems: int = 60) -> str:
    """Final loss of the run that the search chose, on closed-form problems, by number of workers."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the trainer without torch, and its crew, are
    from synthetic import Problem, settings_of
    from test_in_flight import Crew

    from autolrs.strategies.horizon import Horizon

    lines = ["| workers | loss above that of one worker, median | mean | worst |", "| --- | --- | --- | --- |"]
    losses = {}
    for workers in WORKERS:
        found = []
        for seed in range(problems):
            crew = Crew(settings_of(steps=1000, budget=0.3, seed=seed), Horizon(), workers, min, batch=workers)
            crew.problem = Problem(rate_unit=10 ** random.Random(seed).uniform(-2, 2))  # where the best rate lies
            found.append(crew.run().final_loss or math.inf)
        losses[workers] = found
    for workers in WORKERS[1:]:
        excess = [a / b - 1 for a, b in zip(losses[workers], losses[1], strict=True)]
        lines.append(
            f"| {workers} | {statistics.median(excess):+.2%} | {statistics.fmean(excess):+.2%} | {max(excess):+.2%} |"
        )
    return "\n".join(lines)


SECTIONS: Final[dict[str, tuple[str, str, Callable[[], str]]]] = {
    "scaling": (
        "By number of workers",
        f"`horizon`, {STEPS:,} steps of {STEP_SECONDS * 1e3:.0f} ms each (asleep), at its own budget of 0.3, in "
        "batches\n(`deterministic=True`). How long processes take to begin is not counted. The bound lets a batch cost "
        "what its longest\nprobe does.",
        lambda: scaling(deterministic=True),
    ),
    "asynchronous": (
        "The same without waiting for each other",
        "`deterministic=False`.",
        lambda: scaling(deterministic=False),
    ),
    "batching": (
        "What proposing in batches costs",
        "The final loss of the run that `horizon` chose on 60 closed-form problems whose best rates lie up to four "
        "decades apart.",
        batching,
    ),
    "idle": (
        "What idle workers could do while the kept run trains",
        "`horizon` on four workers, 60 closed-form problems; and, for racing, searches on recorded miniatures whose "
        "candidates'\nwhole runs were recorded too (`benchmarks/results/lengths.csv`, nine tasks).",
        idle.table,
    ),
    "overheads": (
        "Overheads",
        overheads.TEXT,
        overheads.table,
    ),
}
"""By name: title, what it is, what makes its table."""


def write(names: Sequence[str] = ()) -> None:
    """Measure those sections again, or all; the others stay as they are."""
    seed_everything(0)
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    parts = ["# Several workers: what they bring and cost\n\nWritten by `python -m benchmarks workers`"]
    parts[0] += f" (torch {torch.__version__}, {os.cpu_count()} cores shared with other\nwork). "
    parts[0] += "Edit nothing here by hand.\n"
    for name, (title, what, table) in SECTIONS.items():
        old = text.partition(f"## {title}\n")[2].partition("\n## ")[0].strip()
        body = f"{what}\n\n{table()}" if name in names or not names else old
        if body:
            parts.append(f"## {title}\n\n{body}\n")
    DOCUMENT.write_text("\n".join(parts), encoding="utf-8")
