"""`autolrs show`: everything is there, at 80 and at 120 columns."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from example_record import SETTINGS, example_record
from rich.cells import cell_len
from rich.console import Console

from autolrs.records import Record, Settings
from autolrs.report import changed_options, duration, number, plan_table, show, spaces_table
from autolrs.settings import settings_of
from autolrs.space import SearchSpace
from autolrs.strategies import strategy
from autolrs.study import Study


def text_of(thing, width=80):
    out = io.StringIO()
    console = Console(file=out, width=width)
    show(thing, console) if isinstance(thing, Study) else console.print(thing)
    return out.getvalue()


def study(record=None):
    return Study(record or example_record(), name="demo", storage="autolrs-runs", directory=Path())


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_shown_and_nothing_is_cut(width):
    text = text_of(study(), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text
    for word in ("demo", "finished", "1.40576", "horizon (shape=wsd)", "adamw: 1e-05 to 0.1", "diverged", "pruned"):
        assert word in text
    for title in ("Stages", "Probes", "Schedule", "Cost"):
        assert f"\n{title}\n" in text
    assert "1.426 ± 0.05" in text
    assert "0.224  (probe - adopted + discarded) / kept" in text
    assert "1: x0.1" in text


def row(text, *cells):
    return [line for line in text.splitlines() if line.split()[: len(cells)] == list(cells)]


def test_rows_hold_the_records_numbers():
    text = text_of(study())
    assert row(text, "0.3", "0.0025", "80/80", "complete", "1.722", "1.426", "±", "0.05", "1.406", "won")
    assert row(text, "0.4", "0.09", "24/80", "diverged", "–", "–", "–")
    assert row(text, "1,800", "–", "2,000", "linear", "0.0025", "0")
    assert row(text, "1", "1,000", "–", "2,000", "0.0025", "3", "–", "rate", "0.0025")
    assert row(text, "probe", "steps", "512", "64", "of")


def test_a_wide_console_has_room_for_reasons():
    assert "loss inf at step 24" in text_of(study(), 120)


def test_an_unfinished_study_says_where_it_is():
    text = text_of(study(example_record(finished=False)))
    assert "at step 200" in text
    assert "no: the run is not finished" in text
    assert "came true" in text


def test_a_study_without_any_event():
    text = text_of(study(Record(SETTINGS)))
    assert "at step 0" in text
    assert "Probes" not in text


def test_roll_backs_are_shown():
    rolled = replace(example_record(), roll_backs=("loss nan at step 1990, back to 1800, rate x 0.5",))
    text = text_of(study(rolled), 120)
    assert "loss nan at step 1990, back to 1800, rate x 0.5" in text
    assert "no: the kept run was rolled back" in text


def test_another_momentum_is_shown():
    found, record = replace(example_record(), own_momentum=0.9), example_record()
    stages = (replace(record.stages[0], momentum=0.8), *(replace(stage, momentum=0.8) for stage in record.stages[1:]))
    assert "0.8 instead of 0.9" in text_of(study(replace(found, stages=stages)))
    assert "instead of" not in text_of(study(found))
    tried = replace(record.stages[0].trials[0], momentum=0.8)
    trials = (tried, *record.stages[0].trials[1:])
    assert "momentum" in text_of(study(replace(found, stages=(replace(stages[0], trials=trials), *stages[1:]))))


def test_lookahead_is_shown():
    record = example_record()
    ahead = replace(record, settings=replace(record.settings, lookahead=True))
    assert "half-way back to slow weights" in text_of(study(ahead))
    assert "lookahead" not in text_of(study(record))


def test_only_changed_options_are_shown():
    default = strategy("autolrs")
    same = {"k": default.k, "sampler": {"kind": "GPSampler", "acquisition": "lcb", "kappa": 2.0}}
    settings = replace(SETTINGS, strategy="autolrs", options=same)
    assert changed_options(settings) == {}
    other = replace(settings, options=same | {"k": 3, "sampler": {**same["sampler"], "acquisition": "ei"}})
    assert changed_options(other) == {"k": 3, "sampler.acquisition": "ei"}
    assert changed_options(replace(settings, strategy="mine", options={"x": 1})) == {"x": 1}


@pytest.mark.parametrize("name", ["horizon", "autolrs"])
def test_a_run_with_nothing_but_defaults_shows_no_option(name):
    made = settings_of(steps=100, space=SearchSpace("s", (1e-3, 1.0)), strategy=strategy(name))
    assert made.options["curves"]
    assert changed_options(made) == {}
    mine = replace(made, curve_model="Mine", options=made.options | {"curves": {"kind": "Mine", "width": 2}})
    assert changed_options(mine) == {"curves.kind": "Mine", "curves.width": 2}


def test_the_plan_adds_up():
    settings = Settings(1000, 1000, 0, SearchSpace("s", (1e-3, 1.0)), "autolrs")
    stages = strategy("autolrs").plan(settings)
    total = sum(stage.probes * stage.length for stage in stages)
    text = text_of(plan_table(settings, stages))
    assert f"{total} probe steps at most (budget 1,000) beside 1,000 kept steps" in text
    assert f"search cost at most {total / 1000:.3f}" in text
    assert len([line for line in text.splitlines() if line[:6].strip().isdigit()]) == len(stages)


def test_all_shipped_spaces_are_listed():
    lines = text_of(spaces_table()).splitlines()
    assert {line.split()[0] for line in lines} >= set(SearchSpace.names())
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.parametrize(("value", "shown"), [(None, "–"), (math.nan, "–"), (0.00012345, "0.0001234"), (1e-9, "1e-09")])
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(3.42, "3.4 s"), (83.5, "1:24"), (3723, "1:02:03")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown
