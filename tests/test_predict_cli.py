"""`autolrs predict`: what it prints, and its exit codes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autolrs import study as studies
from autolrs.cli import main
from autolrs.errors import SettingError, StudyNotFoundError, UnsupportedError
from autolrs.predict_cli import report
from tests.test_predictions import PEAK, planned, record_of


def text_of(record, schedules, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(report(record, schedules))
    return console.file.getvalue()


def test_forecasts_come_first_then_what_identifies_them():
    text = text_of(record_of("cosine"), ["linear:0.01", "wsd:0.01", "cosine:1"])
    head, parameters = text.split("parameter ")
    rows = [line.split() for line in head.splitlines()]
    names = [row[0] for row in rows if row and row[0] in ("as", "linear:0.01", "wsd:0.01")]
    assert names == ["as", "linear:0.01", "wsd:0.01"]
    assert "90% interval" in head
    assert "cosine:1: nothing is said, for its peak rate is 1" in head
    assert [line.split()[0] for line in parameters.splitlines()[2:7]] == [
        "level",
        "slope",
        "cooling",
        "alpha",
        "timescale",
    ]


def test_a_run_without_a_decay_shows_what_is_not_identified():
    text = text_of(record_of("constant"), ["constant:0.01"])
    cooling = next(line for line in text.splitlines() if line.startswith("cooling"))
    assert " no: " in cooling


def test_errors_pass_through():
    with pytest.raises(UnsupportedError):
        report(record_of("cosine", stop=10), [])
    with pytest.raises(SettingError):
        report(record_of("cosine"), ["magic:1"])


# The command


class Stored:
    record = record_of("cosine")


@pytest.fixture
def run(monkeypatch, capsys):
    def load(name, storage):
        if name != "demo":
            raise StudyNotFoundError(f"no study {name!r} in {storage}.")
        return Stored()

    monkeypatch.setattr(studies, "load_study", load)

    def run(*args, code=0):
        with pytest.raises(SystemExit) as exit:
            main(["predict", *args])
        out, err = capsys.readouterr()
        assert (exit.value.code or 0) == code, out + err
        return out, err

    return run


def test_the_command_prints_to_stdout(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned("linear", PEAK).save("mine.json")
    out, err = run("demo", "--schedule", "mine.json", "--schedule", "wsd:0.01")
    assert "mine.json" in out
    assert "as used" in out
    assert err == ""


def test_without_a_schedule_it_judges_the_one_that_was_used(run):
    out, _ = run("demo")
    assert "as used" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("demo", "--schedule", "cosine:1"), "nothing can be predicted for"),
        (("demo", "--schedule", "cosine:-1"), "must be a positive number"),
        (("demo", "--schedule", "x" * 3000), "is neither a file"),
        (("other", "--storage", "here"), "no study 'other' in here"),
    ],
)
def test_errors_go_to_stderr_with_code_1(run, args, message):
    out, err = run(*args, code=1)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
