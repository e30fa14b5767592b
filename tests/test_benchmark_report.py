"""The benchmark's document: what it says follows from the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.methods import METHODS
from benchmarks.rows import Row, settings_key
from benchmarks.tasks import TASKS, Task


def rows_of(task: Task, ours: float) -> list[Row]:
    """WSD at 0.01 is the best schedule (validation 1 + seed, test twice that), ours is `ours` times it."""
    rows = []

    def add(method: str, settings: dict[str, float], seed: int, loss: float, probes: int = 0) -> None:
        rate = settings.get("rate", 0.02)
        rows.append(
            Row(
                task.name,
                method,
                settings_key(settings),
                seed,
                rate,
                loss,
                2 * loss,
                task.steps,
                probes,
                1,
                2.0,
                "2",
                "0",
                "abc",
            )
        )

    for seed in (0, 1):
        for rate in task.rates if seed == 0 else (0.01, 0.1):
            add("wsd", {"rate": rate}, seed, (1.0 if rate == 0.01 else 3.0) + seed)
            add("rex", {"rate": rate}, seed, 4.0 + seed)
        add("untuned", {}, seed, 5.0 * (1 + seed))
        add("horizon", {}, seed, ours * (1 + seed), probes=task.steps // 5)
    return rows


CONFIRMS = replace(TASKS["digits_vae"], development=False)


def cells(text: str, first: str) -> list[str]:
    return next(line[2:-2].split(" | ") for line in text.splitlines() if line.startswith(f"| {first}"))


def test_the_summary_has_each_task_and_the_means_of_its_kind() -> None:
    tasks = [TASKS["mnist_cnn"], TASKS["tabular_mlp"], CONFIRMS]
    rows = [row for task, ours in zip(tasks, (0.5, 0.32, 0.9), strict=True) for row in rows_of(task, ours)]
    text = report.summary(rows, tasks)
    assert cells(text, "mnist_cnn")[1:4] == ["wsd, 0.01", "0.500 [0.500, 0.500]", "0.500 [0.500, 0.500]"]
    assert cells(text, "digits_vae (confirms)")[5:] == ["", "", "2", "0.20"]
    assert cells(text, "**development, geometric mean**")[3] == "0.400 [0.400, 0.400]"
    assert cells(text, "**confirmation, geometric mean**")[3:5] == ["0.900 [0.900, 0.900]", "0.180 [0.180, 0.180]"]


def test_a_mean_over_tasks_needs_all_of_them() -> None:
    tasks = [TASKS[name] for name in ("mnist_cnn", "tabular_mlp")]
    rows = [row for task in tasks for row in rows_of(task, 0.5)]

    def averaged(name: str, method: str = "horizon-averaged") -> list[Row]:
        ours = [row for row in rows if (row.task, row.method) == (name, "horizon")]
        return [replace(row, method=method, test_loss=0.9 * row.test_loss) for row in ours]

    rows += averaged("mnist_cnn")
    text = report.summary(rows, tasks)
    assert cells(text, "mnist_cnn")[5] == "0.450 [0.450, 0.450]"
    assert cells(text, "**development, geometric mean**")[5] == ""
    both = [row for name in ("mnist_cnn", "tabular_mlp") for row in averaged(name, "horizon-both")]
    text = report.summary([*rows, *averaged("tabular_mlp"), *both], tasks)
    assert cells(text, "**development, geometric mean**")[6] == "0.450 [0.450, 0.450]"
    assert cells(text, "**development, geometric mean**")[5] == "0.450 [0.450, 0.450]"


def test_the_search_counts_on_both_sides() -> None:
    task = CONFIRMS
    rows = rows_of(task, 0.5)
    assert task.name not in report.equal_totals(rows, [task])
    ours = [row for row in rows if row.method == "horizon"]
    tuned = [replace(row, method="cosine") for row in rows if row.method == "wsd"]
    rivals = [replace(row, method="pb2", validation_loss=1.0) for row in ours]
    rivals += [replace(row, method="asha", validation_loss=0.9, test_loss=4 * row.test_loss) for row in ours]
    short = [replace(row, method="horizon-short", test_loss=1.2 * row.test_loss) for row in ours]
    text = report.equal_totals([*rows, *tuned, *rivals, *short], [task])
    assert cells(text, "digits_vae (confirms)")[1] == "0.600 [0.600, 0.600]"
    assert cells(text, "digits_vae (confirms)")[2:] == ["asha", "0.250 [0.250, 0.250]"]
    assert cells(text, "**confirmation, geometric mean**")[3] == "0.250 [0.250, 0.250]"
    each = text.split("over each search")[1]
    assert cells(each, "tasks")[1:] == ["pb2", "asha"]
    assert cells(each, "**confirmation, geometric mean**")[1:] == ["1.000 [1.000, 1.000]", "0.250 [0.250, 0.250]"]


def test_a_section_counts_the_runs_thrown_away() -> None:
    task = TASKS["mnist_cnn"]
    text = report.section(rows_of(task, 0.5), task)
    assert cells(text, "wsd")[1:4] == ["0.01, of 7", "0, 1", "1.5"]
    assert cells(text, "wsd")[8] == "6.00"
    assert cells(text, "**horizon**")[1:3] == ["0.02", "0, 1"]
    assert cells(text, "**horizon**")[8] == "0.20"
    assert "of means 0.500" in text


def test_a_task_without_ours_or_without_rivals_is_left_out_of_the_summary() -> None:
    task = TASKS["mnist_cnn"]
    only = [row for row in rows_of(task, 0.5) if row.method != "horizon"]
    assert task.name not in report.summary(only, [task])
    assert task.name in report.section(only, task)


def test_the_document_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for name in ("mnist_cnn", "digits_vae") for row in rows_of(TASKS[name], 0.95)]
    monkeypatch.setattr(report, "read", lambda: rows)
    monkeypatch.setattr(report, "PICTURE", tmp_path / "benchmarks.png")
    report.write(tmp_path / "benchmarks.md")
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count("\n## ") == 2 + 2
    assert (tmp_path / "benchmarks.png").stat().st_size > 5000
    assert {row.method for row in rows} <= METHODS.keys()
