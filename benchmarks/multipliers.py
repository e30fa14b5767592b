"""What rate multipliers for groups of parameters are worth, and whether miniatures can tell -> docs/choices.md.

Run: python -m benchmarks multipliers

Each group's rate is the schedule's times one number: in miniatures of 4 and 8 % of a run (warm-up 10 %, decay 40 %) and
in whole runs, on seeds that the benchmark does not report, always beside the run without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

from torch import nn
from torch.optim import Optimizer

from autolrs.schedules import Schedule
from benchmarks import paired
from benchmarks.csvrows import append, read
from benchmarks.paired import cell, named
from benchmarks.plain import PlainSession, train
from benchmarks.rows import RESULTS
from benchmarks.tasks import EXAMPLES, TASKS, Task

ROWS: Final = RESULTS / "multipliers.csv"
GROUPS: Final = ("embeddings", "head", "matrices", "vectors")
FACTORS: Final = (0.25, 4.0)
SHARES: Final[Mapping[float, tuple[int, ...]]] = {0.04: (10, 11, 12), 0.08: (10, 11, 12), 1.0: (10, 11)}
"""Share of the run -> seeds."""

BEST: Final[Mapping[str, Mapping[float, float]]] = {
    "mnist_cnn": {0.04: 0.06, 0.08: 0.051, 1.0: 0.0316},
    "char_gpt": {0.04: 0.0065, 0.08: 0.0055, 1.0: 0.00237},
    "tabular_mlp": {0.04: 0.012, 0.08: 0.0102, 1.0: 0.01},
}
"""About the best rate of a length (docs/choices.md, the best rate by length)."""


@dataclass(frozen=True, order=True)
class Row:
    task: str
    share: float
    group: str
    factor: float
    seed: int
    validation_loss: float


def groups_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The model's parameters by kind: of embeddings; of the last linear layer, the head; matrices and up; vectors."""
    modules = list(model.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    kinds: dict[nn.Parameter, str] = {}
    for module in modules:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            kinds[module.weight] = "embeddings"
    for parameter in linear[-1].parameters() if linear else ():
        kinds[parameter] = "head"
    found: dict[str, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        kind = kinds.get(parameter) or ("vectors" if parameter.ndim < 2 else "matrices")
        found.setdefault(kind, []).append(parameter)
    return found


class Grouped(PlainSession):
    """A plain session whose optimizer has a parameter group for each kind, one of them at `factor` times the rate."""

    def __init__(self, schedule: Schedule, group: str, factor: float) -> None:
        super().__init__(schedule.steps, schedule)
        self.group, self.factor = group, factor

    def track(self, *, model: nn.Module, optimizer: Optimizer) -> None:
        (own,) = optimizer.param_groups
        common = {key: value for key, value in own.items() if key != "params"}
        optimizer.param_groups.clear()
        for kind, parameters in groups_of(model).items():
            optimizer.add_param_group({**common, "params": parameters, "kind": kind})
        super().track(model=model, optimizer=optimizer)

    def set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (self.factor if group["kind"] == self.group else 1.0)


def run(task: Task, share: float, group: str, factor: float, seed: int) -> Row:
    steps = round(share * task.steps)
    warmup, decay = (round(0.1 * steps), 0.4) if share < 1 else (task.warmup, 0.2)
    schedule = Schedule.build("wsd", rate=BEST[task.name][share], steps=steps, warmup=warmup, decay=decay)
    validation, _ = train(task, Grouped(schedule, group, factor), seed)
    return Row(task.name, share, group, factor, seed, validation)


def wanted() -> Iterator[tuple[str, float, str, float, int]]:
    for share, seeds in SHARES.items():
        for task, seed in product(EXAMPLES, seeds):
            yield task, share, "", 1.0, seed
            for group, factor in product(GROUPS, FACTORS):
                if group != "embeddings" or task != "mnist_cnn":
                    yield task, share, group, factor, seed


def run_all() -> None:
    """Run what is missing."""
    done = {(row.task, row.share, row.group, row.factor, row.seed) for row in read(Row, ROWS)}
    for task, share, group, factor, seed in wanted():
        if (task, share, group, factor, seed) not in done:
            append(run(TASKS[task], share, group, factor, seed), ROWS)


def changes(rows: list[Row], task: str, share: float, group: str, factor: float) -> list[float]:
    """Relative changes of the validation loss against the run without a multiplier, seed by seed."""

    def of(group: str, factor: float) -> Callable[[Row], bool]:
        return lambda row: (row.task, row.share, row.group, row.factor) == (task, share, group, factor)

    return paired.changes(rows, of(group, factor), of("", 1.0), (1, 1))


def section() -> list[str]:
    """Lines of Markdown."""
    rows = read(Row, ROWS)
    lines = [
        "## Rate multipliers for groups of parameters",
        "",
        "Written by `python -m benchmarks multipliers`. Change of the validation loss if one group's rate is four",
        "times, or a quarter of, the schedule's: in miniatures of 4 and 8 % and in whole runs (mean ± sd over seeds,",
        "paired). Miniatures have many of the signs wrong: what helps a short run is not what helps a long one.",
        "",
        f"| task | group | factor | {' | '.join(map(named, SHARES))} |",
        "| --- " * (3 + len(SHARES)) + "|",
    ]
    for task, group, factor in product(EXAMPLES, GROUPS, FACTORS):
        cells = [cell(changes(rows, task, share, group, factor)) for share in SHARES]
        if any(cells):
            lines.append(f"| {task} | {group} | {factor:g} | {' | '.join(cells)} |")
    return lines
