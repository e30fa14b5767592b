"""What the curve model changes in whole runs: which runs are made, once, and the table of pairs."""

from __future__ import annotations

import math

import pytest

from autolrs.errors import UnknownNameError
from benchmarks import __main__ as commands
from benchmarks import curve_models
from benchmarks.curve_models import ALL, VARIANTS, ratio, run_all, section
from benchmarks.rows import Row, append, read
from benchmarks.tasks import EXAMPLES, Task, half_decades
from benchmarks.tuned import run as tuned_run

TASK = Task("tiny", "tiny_task", "adamw", half_decades(-6))


def row(task, name, seed, loss, *, rate=0.1, probes=50):
    return Row(task, name, "{}", seed, rate, loss, 2 * loss, 100, probes, 3, 1.0)


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    monkeypatch.setattr(curve_models, "ROWS", path)
    return path


@pytest.fixture
def made(monkeypatch):
    """What `run` was asked for; no run is made."""
    asked = []

    def run(task, strategy, seed, *, label, curve_model, **options):
        asked.append((task.name, strategy, seed, label, curve_model, options))
        return row(task.name, label, seed, 1.0)

    monkeypatch.setattr(curve_models, "run", run)
    return asked


def test_every_example_is_run_with_every_model_and_seed_once(made):
    run_all()
    assert len(made) == len(EXAMPLES) * 3 * len(VARIANTS)
    assert {task for task, *_ in made} == set(EXAMPLES)
    assert {seed for _, _, seed, *_ in made} == {0, 1, 2}
    asked = {name: (strategy, model, options) for _, strategy, _, name, model, options in made}
    assert asked == {name: (of.strategy, of.curve_model, of.options) for name, of in VARIANTS.items()}
    run_all([0, 1, 2, 3], names=["pfn"])
    assert [each[2:4] for each in made[len(EXAMPLES) * 3 * len(VARIANTS) :]] == [(3, "pfn")] * len(EXAMPLES)


def test_shares_make_all_runs_between_them_and_none_twice(made, path):
    counts = []
    for k in range(2):
        run_all([0, 1], share=(k, 2))
        path.unlink()  # the other process knows nothing of these
        counts.append(len(made))
    assert 0 < counts[0] < counts[1] == 2 * len(EXAMPLES) * len(VARIANTS)
    assert len({each[:4] for each in made}) == len(made)


def test_a_run_is_one_of_the_strategy_with_that_model(path):
    run_all([3], tasks=[TASK], names=["bayes", "auto, each by itself"])
    pooled, alone = read(path)
    expected = tuned_run(TASK, "autolrs", 3, curve_model="bayes")
    assert (pooled.method, pooled.validation_loss, pooled.rate) == ("bayes", expected.validation_loss, expected.rate)
    assert (alone.method, alone.settings) == ("auto, each by itself", '{"pool": false}')
    with pytest.raises(UnknownNameError, match="curve model"):
        tuned_run(TASK, "autolrs", 3, curve_model="none")


def test_losses_are_over_those_of_the_reference_with_the_same_seed(path):
    first, second, _ = EXAMPLES
    for each in (
        row(first, "exponential", 0, 1.0),
        row(first, "exponential", 1, 2.0),
        row(first, "pfn", 0, 2.0, rate=0.3, probes=80),
        row(first, "pfn", 1, 2.0, rate=0.2),
        row(first, "pfn", 2, 9.0),  # has no partner
        row(second, "exponential", 0, 4.0),
        row(second, "pfn", 0, 1.0, rate=0.05),
        row(second, "auto", 0, math.nan),
        row(second, "exponential", 1, math.nan),
        row(second, "pfn", 1, 1.0),  # nor has this one: NaN is nothing to divide by
        row(second, "horizon", 0, 3.0),
        row(second, "horizon, losers by auto", 0, 6.0),  # has a partner of its own
    ):
        append(each, path)
    text = "\n".join(section())
    assert f"| {first} | exponential | 2 | 1.000 | 1.000 | 0.50 | 1.00 |" in text
    assert f"| {first} | pfn | 2 | 1.414 ± 0.347 | 1.414 ± 0.347 | 0.65 | 2.50 |" in text
    assert f"| {second} | pfn | 1 | 0.250 | 0.250 | 0.50 | 0.50 |" in text
    assert f"| {second} | auto | 1 | diverged | diverged |" in text
    assert f"| {second} | horizon, losers by auto | 1 | 2.000 | 2.000 |" in text
    assert f"| {ALL} | pfn | 3 | 0.794 ± 0.611 | 0.794 ± 0.611 | 0.60 | 2.00 |" in text
    assert "bayes |" not in text  # not run yet


def test_a_ratio_is_geometric_with_the_error_of_its_logarithm():
    assert ratio([2.0, 0.5]) == f"1.000 ± {math.log(2):.3f}"
    assert ratio([2.0, 0.5], known=True) == "1.000"
    assert ratio([1.5]) == "1.500"
    assert ratio([1.5, math.inf]) == "diverged"


def test_the_command_writes_the_part_of_the_document(tmp_path, monkeypatch, made):
    document = tmp_path / "curves.md"
    document.write_text("# A\n", encoding="utf-8")
    monkeypatch.setattr(curve_models, "DOCUMENT", document)

    def command(*words):
        monkeypatch.setattr("sys.argv", ["benchmarks", "models", *words])
        commands.main()
        return document.read_text("utf-8")

    text = command("--only-report")
    assert text.startswith(f"# A\n\n{curve_models.HEADING}\n\nWritten by")
    assert text.endswith("There is no `benchmarks/results/rows.parquet` yet: the same command writes it.\n")
    assert made == []
    text = command("--tasks", "char_gpt", "--models", "exponential", "auto", "--seeds", "7")
    assert [each[:4] for each in made] == [("char_gpt", "autolrs", 7, name) for name in ("exponential", "auto")]
    assert "| char_gpt | auto | 1 | 1.000 | 1.000 |" in text
    with pytest.raises(SystemExit, match="'none'"):
        command("--models", "none")
