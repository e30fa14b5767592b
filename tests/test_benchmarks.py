"""The benchmark's bookkeeping: which runs are missing, what is chosen, what the table says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import baselines, table
from benchmarks.baselines import FAMILIES, finalists, wanted
from benchmarks.rows import Row, read
from benchmarks.tasks import TASKS, Task, half_decades

TASK = TASKS["mnist_cnn"]


def row(method: str, rate: float, seed: int, validation: float, test: float = 1.0, probe_steps: int = 0) -> Row:
    return Row(TASK.name, method, rate, seed, validation, test, TASK.steps, probe_steps, 2.0, "2", "0", "abc")


def loss(method: str, rate: float, seed: int) -> float:
    """A made-up optimum at 0.0316; wsd is the best family, and rates from 0.316 on diverge."""
    if rate > 0.3:
        return math.nan
    return 0.1 + 0.01 * abs(math.log10(rate / 0.0316)) + 0.001 * (seed - FAMILIES.index(method))


def all_rows(seeds: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """What `run_all` would have done by following `wanted`."""
    rows: list[Row] = []
    while missing := wanted(rows, [TASK], seeds):
        _, method, rate, seed = missing[0]
        value = loss(method, rate, seed)
        rows.append(row(method, rate, seed, value, 2 * value))
    return rows


def test_rates_include_the_default_and_are_half_decades_apart() -> None:
    for task in TASKS.values():
        assert task.default_rate in task.rates
        assert len(task.rates) == 7
        for low, high in zip(task.rates[:-1], task.rates[1:], strict=True):
            assert high / low == pytest.approx(math.sqrt(10), rel=2e-3)
    assert half_decades(-2, 2) == (0.1, 0.316)


def test_all_rates_first_then_the_finalists_and_the_default() -> None:
    rows = all_rows()
    assert [(r.method, r.rate) for r in rows[:21]] == [(f, rate) for f in FAMILIES for rate in TASK.rates]
    assert {r.seed for r in rows[:21]} == {0}
    for seed in (1, 2):
        later = {(r.method, r.rate) for r in rows[21:] if r.seed == seed}
        assert later == {(family, rate) for family in FAMILIES for rate in (0.0316, 0.01)} | {("cosine", 1e-3)}
    assert len(rows) == 21 + 2 * 7
    assert finalists(rows, TASK, "wsd", 0) == [0.0316, 0.01]
    assert wanted(rows, [TASK], (0, 1, 2)) == []


def test_rows_survive_the_file_and_a_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "rows.csv"
    monkeypatch.setattr(baselines, "BASELINES", path)
    done: list[Row] = []

    def run(task: Task, method: str, rate: float, seed: int) -> Row:
        if len(done) in (5, 23):
            done.append(done[-1])
            raise KeyboardInterrupt
        done.append(row(method, rate, seed, loss(method, rate, seed)))
        return done[-1]

    monkeypatch.setattr(baselines, "run", run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            baselines.run_all([TASK], (0, 1), 60)
    baselines.run_all([TASK], (0, 1), 60)
    rows = read([path, tmp_path / "none.csv"])
    assert len(rows) == 21 + 7
    assert len({(r.key, r.rate) for r in rows}) == len(rows)
    assert repr(rows[-1]) == repr(done[-1])
    assert any(math.isnan(r.validation_loss) for r in rows)


def test_the_budget_stops_before_a_run_that_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "BASELINES", tmp_path / "rows.csv")
    monkeypatch.setattr(baselines, "run", lambda _, *run: replace(row(*run, validation=1.0), wall_seconds=90.0))
    baselines.run_all([TASK], (0,), budget_minutes=1)
    assert len(read([tmp_path / "rows.csv"])) == 1


def test_the_table_chooses_on_validation_and_compares_equal_seeds() -> None:
    rows = all_rows()
    rows += [row("horizon", 0.02, seed, 0.05, 0.15 + 0.02 * seed, probe_steps=200 + 2 * seed) for seed in (0, 1)]
    best = table.fixed(rows, TASK, "wsd")
    assert best is not None
    assert {r.rate for r in best.rows} == {0.0316}
    assert best.label == "wsd, best of 7 rates"
    assert best.search_steps == 6 * TASK.steps
    lines = [line[2:-2].split(" | ") for line in table.section(rows, TASK).splitlines() if line.startswith("| ")]
    cells = {line[0]: dict(zip(table.COLUMNS, line, strict=False)) for line in lines}
    horizon = cells["**autolrs**, `horizon`"]
    # Over seeds 0 and 1 only, those that horizon was run with; the made-up test loss is twice the validation loss.
    other = (loss("wsd", 0.0316, 0) + loss("wsd", 0.0316, 1)) / 2
    ratios = [float(horizon[f"{split} to best"]) for split in ("validation", "test")]
    assert ratios == pytest.approx([0.05 / other, 0.16 / (2 * other)], abs=6e-4)
    assert (horizon["seeds"], horizon["validation"], horizon["search steps"]) == ("0, 1", "0.05000", "201")
    assert cells["cosine, default rate"]["test to untuned"] == "1.000"
    curve = next(line for line in lines if line[0] == "wsd")
    assert curve[1:] == [f"{loss('wsd', rate, 0):.4f}" for rate in TASK.rates]
    assert {len(line) for line in lines} == {len(table.COLUMNS), 1 + len(TASK.rates)}
