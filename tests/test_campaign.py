"""The benchmark's bookkeeping: which runs are missing, what is chosen, what a stop leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.campaign import finalists, missing, run_all
from benchmarks.methods import ADAMS, METHODS, Method, Settings
from benchmarks.rows import Row, append, read, settings_key
from benchmarks.tasks import CONFIRMATION, EXAMPLES, TASKS, Task, half_decades

TASK = TASKS["mnist_cnn"]
RATES = TASK.rates


def made(task: Task, method: str, settings: Settings, seed: int, validation: float = 1.0) -> Row:
    rate = settings.get("rate", 0.01)
    return Row(
        task.name,
        method,
        settings_key(settings),
        seed,
        rate,
        validation,
        2 * validation,
        100,
        0,
        1,
        2.0,
        "2",
        "0",
        "abc",
    )


def loss(settings: Settings, seed: int) -> float:
    """A made-up optimum at 0.0316; rates from 0.3 on diverge."""
    rate = settings.get("rate", 0.0316)
    return math.nan if rate > 0.3 else 0.1 + 0.01 * abs(math.log10(rate / 0.0316)) + 0.001 * seed


def method(name: str, rates: tuple[float, ...] = RATES) -> Method:
    def run(task: Task, settings: dict[str, float], seed: int) -> Row:
        return made(task, name, settings, seed, loss(settings, seed))

    return Method(name, "fixed", run, lambda task: [{"rate": rate} for rate in rates])


def test_tasks_are_as_the_benchmark_says() -> None:
    assert len(EXAMPLES) == 3
    assert CONFIRMATION[:4] == ("stereo_matching", "few_computers", "word_ends", "molecules_graph")
    assert CONFIRMATION[4:] == ("folk_tunes", "relief_unet", "movie_genres", "language_names")
    assert not {*EXAMPLES} & {*CONFIRMATION}
    assert all(TASKS[name].development for name in EXAMPLES)
    assert half_decades(-2, 2) == (0.1, 0.316)
    for task in TASKS.values():
        assert len(task.rates) == (7 if task.times == 1 else 3)
        assert task.default_rate in task.rates or task.times > 1
        for low, high in zip(task.rates[:-1], task.rates[1:], strict=True):
            assert high / low == pytest.approx(math.sqrt(10), rel=2e-3)


def test_a_longer_setting_has_four_times_the_steps() -> None:
    assert TASKS["mnist_cnn@4"].steps == 4 * TASK.steps
    assert TASKS["mnist_cnn@4"].warmup == 4 * TASK.warmup
    assert TASKS["mnist_cnn@4"].rates == (0.01, 0.0316, 0.1)  # about the short one's best
    assert "stress_lstm@4" not in TASKS


def test_all_methods_have_settings_for_all_tasks() -> None:
    for each in METHODS.values():
        for task in TASKS.values():
            keys = [settings_key(settings) for settings in each.settings(task)]
            assert len(keys) == len(set(keys))
            assert keys or (each.name == "wsd-lookahead" and task.space not in ADAMS)


def test_all_settings_first_then_the_finalists() -> None:
    methods, rows = [method("a"), method("b", RATES[:1])], list[Row]()
    while run := next(missing(rows, [TASK], methods, (5, 0, 1)), None):
        task, of, settings, seed = run
        rows.append(of.run(task, dict(settings), seed))
    assert [row.seed for row in rows[:8]] == [5] * 8
    assert [row.settings for row in rows[:7]] == [settings_key({"rate": rate}) for rate in RATES]
    for seed in (0, 1):
        chosen = {row.settings for row in rows if row.seed == seed and row.method == "a"}
        assert chosen == {settings_key({"rate": rate}) for rate in (0.0316, 0.01)}
        assert [row.method for row in rows if row.seed == seed].count("b") == 1
    assert len(rows) == 8 + 2 * 3
    assert finalists(rows, TASK, methods[0], 5) == [{"rate": 0.0316}, {"rate": 0.01}]


def test_what_diverged_is_chosen_last() -> None:
    rows = [made(TASK, "a", {"rate": rate}, 0, value) for rate, value in ((0.1, math.nan), (0.01, 9.0), (1.0, 8.0))]
    assert finalists(rows, TASK, method("a"), 0) == [{"rate": 1.0}, {"rate": 0.01}]


def test_a_stopped_campaign_goes_on(tmp_path: Path) -> None:
    path, count = tmp_path / "new" / "rows.parquet", 0
    inner = method("a")

    def run(task: Task, settings: dict[str, float], seed: int) -> Row:
        nonlocal count
        count += 1
        if count in (4, 9):
            raise KeyboardInterrupt
        return inner.run(task, settings, seed)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_all([TASK], [replace(inner, run=run)], (0, 1), path=path)
    run_all([TASK], [replace(inner, run=run)], (0, 1), path=path)
    rows = read(path)
    assert len(rows) == len({row.key for row in rows}) == 7 + 2
    assert count == 9 + 2
    assert any(math.isnan(row.validation_loss) for row in rows)
    assert not list(path.parent.glob("*.[0-9]*"))


def test_a_run_that_stands_still_is_left_for_the_next_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, inner, tries = tmp_path / "rows.parquet", method("a"), list[float]()

    def run(task: Task, settings: dict[str, float], seed: int) -> Row:
        tries.append(settings["rate"])
        if tries == [*RATES[:3]]:
            raise TimeoutError("stood still")
        return inner.run(task, settings, seed)

    run_all([TASK], [replace(inner, run=run)], (0,), path=path)
    assert tries == [*RATES]
    assert [row.rate for row in read(path)] == [*RATES[:2], *RATES[3:]]
    assert "seed 0: stood still" in capsys.readouterr().out
    run_all([TASK], [replace(inner, run=run)], (0,), path=path)
    assert {row.rate for row in read(path)} == {*RATES}


def test_processes_side_by_side_share_the_work(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone.parquet", tmp_path / "shared.parquet"
    run_all([TASK], [method("a")], (0,), path=alone)
    parts = []
    for k in range(2):
        before = len(read(shared))
        run_all([TASK], [method("a")], (0,), share=(k, 2), path=shared)
        parts.append(len(read(shared)) - before)
    assert sum(parts) == 7
    assert all(parts)
    assert {row.key for row in read(shared)} == {row.key for row in read(alone)}


def test_the_budget_stops_before_a_run_that_would_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = method("a")

    def run(task: Task, settings: dict[str, float], seed: int) -> Row:
        return replace(slow.run(task, settings, seed), wall_seconds=90.0)

    run_all([TASK], [replace(slow, run=run)], (0,), budget_minutes=1, path=tmp_path / "rows.parquet")
    assert len(read(tmp_path / "rows.parquet")) == 1
    assert "run again to continue" in capsys.readouterr().out


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    assert read(path) == []
    rows = [
        made(TASK, "a", settings, seed, loss(settings, seed))
        for settings in ({"rate": 1.0}, {"rate": 1e-3})
        for seed in (0, 1)
    ]
    for row in rows:
        append(row, path)
    assert repr(read(path)) == repr(rows)
    assert len(list(islice(tmp_path.iterdir(), 9))) == 2  # the rows and their lock
