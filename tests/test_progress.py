"""Progress: what is said of each event, live and in plain lines."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from example_record import SETTINGS, STEPS, example_events, example_record
from rich.console import Console

from autolrs.engine import apply
from autolrs.progress import ShowProgress, ahead, best, describe, running, steps_left, time_left
from autolrs.protocols import Callback
from autolrs.records import Decided, Probe, Record, Reverted, RolledBack, Train


def replayed():
    record = Record(SETTINGS)
    for event in example_events():
        record = apply(record, event)
        yield record, event


def plain(width=80):
    text = io.StringIO()
    return text, Console(file=text, width=width, force_terminal=False)


def test_it_is_a_callback():
    assert isinstance(ShowProgress(plain()[1]), Callback)


def test_plain_lines_tell_the_whole_run():
    text, console = plain()
    with ShowProgress(console) as progress:
        for record, event in replayed():
            progress.on_event(record, event)
            progress.on_progress(record, Train(0, 10, record.pieces), 5, 1.0)
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert lines[0].startswith("stage 0 begins at step 0, loss 3.0")
    assert sum(line.startswith("probe ") for line in lines) == 9
    assert "probe 0.4 at rate 0.09, diverged: loss inf at step 24" in lines
    assert "stage 0: rate 0.0025, 64 steps of its probe kept (rate 0.0025 is forecast to end at 1.426)" in lines
    assert [line for line in lines if line.startswith("kept 2,000/2,000")]
    assert lines[-1] == "finished, loss 1.406, search 0.22"


def test_live_shows_what_runs_and_how_long_it_will_take():
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True)
    with ShowProgress(console) as progress:
        for record, event in list(replayed())[:7]:
            progress.on_event(record, event)
        progress.on_progress(record, Probe(0, 2, 0.03, 80, ()), 32, 2.5)
        progress._bars.refresh()
    shown = text.getvalue()
    assert "probe 0.2" in shown
    assert "32/80" in shown
    assert "loss 2.5  rate 0.03" in shown
    assert "best 1.447 at 0.006" in shown
    assert " left" in shown


def test_roll_backs_and_damage_are_said():
    record = example_record()
    assert describe(record, RolledBack(1990, 1800, 0.5, "loss nan at step 1990")) == (
        "rolled back from step 1,990 to 1,800 (loss nan at step 1990): rate x 0.5"
    )
    assert describe(record, Reverted(1800, "its checksum is not the manifest's")).startswith("back to the checkpoint")


def test_running_names_the_rate_in_force():
    record = example_record()
    assert running(record, Probe(1, 2, 0.03, 40, ()), 5) == ("probe 1.2", 40, 0.03)
    schedule = record.schedule
    assert running(record, Train(1800, 2000, record.pieces, 1), 100) == ("stage 1", 200, schedule(1900))
    assert running(record, Train(0, 10, ()), 0)[1] == 10


def test_steps_are_counted_once():
    record = example_record()
    assert ahead(record, Train(STEPS - 50, STEPS, ()), 50) == 0
    assert ahead(replace(record, kept_steps=STEPS - 50), Train(STEPS - 50, STEPS, ()), 20) == 20
    assert ahead(record, Probe(0, 0, 1e-3, 80, ()), 80) == 0
    running = replace(record.stages[0].trials[0], steps=0)
    stage = replace(record.stages[0], trials=(running,))
    assert ahead(replace(record, stages=(stage,)), Probe(0, 0, 1e-3, 80, ()), 30) == 30


def test_best_is_of_the_last_stage():
    assert best(example_record()) == "best 1.426 at 0.0025"
    assert best(Record(SETTINGS)) == ""


@pytest.mark.parametrize(
    ("seconds", "done", "left", "said"), [(10, 5, 10, "20.0 s left"), (1, 0, 9, ""), (60, 1, 2, "2:00 left")]
)
def test_time_left(seconds, done, left, said):
    assert time_left(seconds, done, left) == said


def test_steps_left_never_grows_and_ends_at_zero():
    # Pruned probes and a decided last stage only take steps away.
    left = [steps_left(record) for record, event in replayed()]
    assert left[0] == STEPS + SETTINGS.budget
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    decided = [left[i] for i, (_, event) in enumerate(replayed()) if isinstance(event, Decided)]
    assert decided[-1] == STEPS - 1000
