"""What `horizon`'s defaults were chosen among -> docs/choices.md. Run: python -m benchmarks choices

On seeds that the benchmark does not report. Each line changes one thing.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from autolrs.space import SearchSpace
from benchmarks import lengths, momentum, multipliers, probes, shapes
from benchmarks.rows import RESULTS, Row, append, read
from benchmarks.tasks import EXAMPLES, TASKS
from benchmarks.tuned import run

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "choices.md"
ROWS: Final = RESULTS / "choices.parquet"
SEEDS: Final = (10, 11, 12, 13)
REFERENCE: Final = "reference"
"""The first version's defaults, which each other line changes in one thing."""

ABRUPT: Final[dict[str, Any]] = {"gamma": 0.32, "length": 0.04, "warmup": 0.1, "decay": 0.4}
"""What the reference's probes were."""

BUDGET: Final = 0.24
"""Probe steps a kept step that the first version's only search could spend."""

GENTLE: Final[dict[str, Any]] = {"gamma": 0.25, "warmup": 0.5, "decay": 0.5}

CHOICES: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    REFERENCE: ("WSD, 20 % decay; restart from the checkpoint; probes of 4 %; gamma 0.32", {}, {}),
    "linear": ("base schedule linear", {"schedule": "linear"}, {}),
    "adopt": ("the winner's plateau adopted as training", {}, {"adopt": True}),
    "length": ("probes of 6 %", {}, {"length": 0.06}),
    "chance": ("losers stopped by the curve model's chance to win", {}, {"stop": "chance"}),
    "gamma": ("gamma 0: the miniature's best rate as it is", {}, {"gamma": 0.0}),
    "default": ("gamma 0.25: the second default", {}, {"gamma": 0.25}),
    "momentum": ("the same, and a space that names a momentum of 0.8", {"momentum": (0.8,)}, {"gamma": 0.25}),
    "later": (
        "gamma 0.25; a second search at a tenth of the run, probes of 3 %, any gain counts",
        {},
        {"gamma": 0.25, "length": 0.03, "first_share": 0.45, "later": (0.1,), "clear": 0.0},
    ),
    "warmup": ("gamma 0.25; probes warm up over half of their steps, and decay: the third default", {}, GENTLE),
}
"""Name -> (what it is, changes of the space, options of the strategy)."""


def run_all() -> None:
    """Run what is missing, then write the document."""
    done = {(row.task, row.method, row.seed) for row in read(ROWS)}
    for seed, task, name in product(SEEDS, map(TASKS.__getitem__, EXAMPLES), CHOICES):
        if (task.name, name, seed) not in done:
            _, changes, options = CHOICES[name]
            space = replace(SearchSpace.load(task.space), **{"momentum": (), **changes})
            budget = None if "later" in options else BUDGET
            row = run(task, "horizon", seed, label=name, space=space, budget=budget, **{**ABRUPT, **options})
            append(row, ROWS)
            print(f"{task.name} {name} seed {seed}: test {row.test_loss:.5f}", flush=True)
    write(read(ROWS))


def write(rows: list[Row], path: Path = DOCUMENT) -> None:
    tasks = list(EXAMPLES)

    def loss(name: str, task: str) -> float:
        return fmean(row.test_loss for row in rows if (row.method, row.task) == (name, task))

    lines = [
        "# Choices",
        "",
        "Written by `python -m benchmarks choices`; edit nothing here by hand. Test loss after one tuned run, mean of",
        f"seeds {SEEDS}, which the benchmark does not report; in brackets, over that of the first line. *all*:",
        "geometric mean of these ratios. A run of the CNN varies by 3 % from seed to seed, of the GPT by 1 %, of the",
        "MLP by 3 %. Each line was run with the sampler and the rule for stopping probes that `horizon` had then.",
        "",
        "| changed | " + " | ".join(tasks) + " | all | extra steps a kept step |",
        "| --- " * (len(tasks) + 3) + "|",
    ]
    for name, (what, _, _) in CHOICES.items():
        if sum(row.method == name for row in rows) < len(SEEDS) * len(tasks):
            continue  # its runs are still to be made
        ratios = [loss(name, task) / loss(REFERENCE, task) for task in tasks]
        extra = fmean(row.probe_steps / row.kept_steps for row in rows if row.method == name)
        cells = [f"{loss(name, task):.4g} ({ratio:.3f})" for task, ratio in zip(tasks, ratios, strict=True)]
        mean = exp(fmean(map(log, ratios)))
        lines.append(f"| {what} | {' | '.join(cells)} | {mean:.3f} | {extra:.2f} |")
    lines += [
        "",
        "WSD, restarting and gamma 0.32 each gain 4 to 5 % on the whole, more than the noise on two of three tasks.",
        "Restarting costs the plateau's 2.4 % of the steps, and spares the run a plateau at the miniature's rate.",
        "Probes of 6 %, the curve model's chance and gamma 0.25 make no difference that these seeds can tell.",
        "A momentum of 0.8, tried at the rate found and kept where its miniature ends lowest, gains 1.5 %.",
        "",
        *probes.section(),
        "",
        *lengths.section(),
        "",
        *multipliers.section(),
        "",
        *momentum.section(),
        "",
        *shapes.section(),
    ]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))
