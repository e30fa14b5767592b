"""What the choices' tables are made of: rows on file, groups of parameters, optima and regrets of responses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny_task
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autolrs.schedules import Schedule
from autolrs.space import SearchSpace
from benchmarks import lengths, momentum, multipliers, probes, shapes
from benchmarks.csvrows import append, read
from benchmarks.plain import PlainSession, train
from benchmarks.tasks import Task, half_decades
from benchmarks.tuned import run as tuned_run

TASK = Task("tiny", "tiny_task", "adamw", half_decades(-6))


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    value: float


@pytest.mark.parametrize("value", [0.1, 1e-300, math.inf, 1 / 3])
def test_rows_come_back_to_the_float(tmp_path: Path, value: float) -> None:
    path, rows = tmp_path / "new" / "rows.csv", [Row("a", 1, value), Row("b, c", -2, 0.0)]
    assert read(Row, path) == []
    for row in rows:
        append(row, path)
    assert read(Row, path) == rows


def test_every_parameter_is_in_one_group_by_what_it_does() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 4)
            self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            self.head = nn.Linear(4, 5)

    model = Model()
    groups = multipliers.groups_of(model)
    assert groups["embeddings"] == [model.words.weight]
    assert groups["head"] == [model.head.weight, model.head.bias]
    assert groups["matrices"] == [model.body[0].weight]
    assert groups["vectors"] == [model.body[0].bias, *model.body[1].parameters()]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_a_multiplier_of_one_is_the_plain_run() -> None:
    schedule = Schedule.build("wsd", rate=0.05, steps=TASK.steps)
    plain = train(TASK, PlainSession(TASK.steps, schedule), 0)
    assert train(TASK, multipliers.Grouped(schedule, "head", 1.0), 0) == plain
    assert train(TASK, multipliers.Grouped(schedule, "head", 4.0), 0) != plain


def test_another_momentum_is_another_momentum_and_nothing_else() -> None:
    model = nn.Linear(4, 1)
    adamw = momentum.with_momentum(0.6)(model, tiny_task.optimizer(model))
    assert adamw.param_groups[0]["betas"] == (0.6, 0.999)
    sgd = momentum.with_momentum(0.6)(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert sgd.param_groups[0]["momentum"] == 0.6


def test_changes_are_paired_by_seed() -> None:
    rows = [multipliers.Row("t", 0.04, *row) for row in (("", 1.0, 1, 2.0), ("", 1.0, 2, 4.0), ("head", 4.0, 2, 5.0))]
    assert multipliers.changes(rows, "t", 0.04, "head", 4.0) == [0.25]
    both = [
        momentum.Row("t", 1.0, of, factor, 10, loss + factor)
        for of, loss in ((0.9, 1.0), (0.8, 0.2))
        for factor in momentum.FACTORS
    ]
    assert momentum.changes(both, "t", 1.0, 0.8) == [pytest.approx(0.8 / 1.6 - 1)]
    assert momentum.changes(both[:-1], "t", 1.0, 0.8) == []  # not all rates were run
    assert multipliers.cell([0.01, 0.03]) == "+2.0% ± 1.4%"
    assert multipliers.cell([0.01, math.nan]) == "diverged"


@given(st.floats(-3, -1), st.floats(0.01, 0.07), st.floats(-1, 1))
def test_the_optimum_of_a_parabola_is_its_own(best: float, curvature: float, away: float) -> None:
    rates = [10 ** (-4 + i / 4) for i in range(17)]
    response = [(rate, math.exp(curvature * (math.log10(rate) - best) ** 2)) for rate in rates]
    assert math.log10(lengths.optimum(response)) == pytest.approx(best, abs=1e-6)
    assert lengths.regret(response, 10 ** (best + away)) == pytest.approx(
        math.expm1(curvature * away**2), rel=1e-5, abs=1e-9
    )


def test_shapes_are_compared_at_their_best_rates_and_only_where_all_were_run() -> None:
    rows = [
        shapes.Row("mnist_cnn", 0.04, shape, factor, seed, loss)
        for seed in (10, 11)
        for shape, losses in (("wsd", (2.0, 1.0, 3.0)), ("linear", (1.3, 1.1, 1.2)))
        for factor, loss in zip(shapes.SHORT[shape], losses, strict=True)
    ]
    assert shapes.changes(rows, "mnist_cnn", 0.04, "linear") == pytest.approx([0.1, 0.1])
    assert shapes.changes(rows[:-1], "mnist_cnn", 0.04, "linear") == pytest.approx([0.1])
    assert shapes.changes(rows, "mnist_cnn", 0.04, "rex") == []
    assert shapes.changes(rows, "char_gpt", 0.04, "linear") == []


def test_every_shape_is_run_at_its_rates_with_the_tasks_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.BEST, "tiny", (0.1,) * len(shapes.SHARES))  # type: ignore[arg-type]
    made = shapes.run(TASK, 1.0, "linear", 2.0, 3)
    schedule = Schedule.build("linear", rate=0.2, steps=TASK.steps, warmup=TASK.warmup)
    assert made.validation_loss == train(TASK, PlainSession(TASK.steps, schedule), 3)[0]


def test_what_a_choice_of_probes_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = [(10 ** (-3 + i / 4), 2 * math.exp(0.05 * (i / 4 - 1) ** 2)) for i in range(9)]
    monkeypatch.setattr(lengths, "whole_run", lambda task: bowl)
    former, now, other, *_ = probes.CHOICES
    rows = [probes.Row("t", former, seed, 0.1, 2.0) for seed in probes.SEEDS]
    assert probes.lost(rows, "t", former) == pytest.approx(math.expm1(0.05), rel=1e-4)
    rows = [probes.Row("t", now, seed, rate, 2.0) for seed, rate in zip(probes.SEEDS, (0.01, 0.001), strict=True)]
    assert probes.lost(rows, "t", now) == pytest.approx(math.expm1(0.05) / 2, rel=1e-4)
    assert probes.lost(rows[:1], "t", now) is None  # a seed is missing
    assert probes.lost([probes.Row("t", other, seed, 0.1, 2.0) for seed in probes.SEEDS], "t", other) is None


def test_a_choice_of_probes_is_run_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probes.CHOICES, "tiny", (0.5, {"length": 0.2}, {"warmup": 0.4}))  # type: ignore[arg-type]
    made = probes.run(TASK, "tiny", 3)
    space = replace(SearchSpace.load(TASK.space), warmup=0.4)
    expected = tuned_run(TASK, "horizon", 3, space=space, budget=0.5, length=0.2)
    assert (made.rate, made.validation_loss) == (expected.rate, expected.validation_loss)
    assert made.validation_loss != tuned_run(TASK, "horizon", 3, budget=0.5, length=0.2).validation_loss
