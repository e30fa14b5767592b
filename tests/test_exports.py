"""Exports: what is written gives the very same floats."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autolrs.errors import UnknownNameError
from autolrs.exports import FORMATS, export
from autolrs.momentum import momentum_of
from autolrs.schedules import BASES, Schedule, base_pieces, cut

rates = st.floats(1e-6, 10)


@st.composite
def schedules(draw):
    """Schedules of two stages, the first one cut short, as a tuning run makes them."""
    steps = draw(st.integers(2, 60))
    turn = draw(st.integers(1, steps - 1))
    base = st.sampled_from(BASES)
    first = base_pieces(draw(base), rate=draw(rates), start=0, stop=steps, warmup=draw(st.integers(0, 5)))
    second = base_pieces(draw(base), rate=draw(rates), start=turn, stop=steps)
    ratios = tuple(draw(st.lists(st.floats(0, 10), min_size=1, max_size=3)))
    momentum = draw(st.none() | st.floats(0.01, 0.99))
    return Schedule((*cut(first, 0, turn), *second), ratios, momentum, draw(st.booleans()))


def load(text):
    space = {}
    exec(compile(text, "schedule.py", "exec"), space)
    return space


@given(schedules())
def test_python_gives_the_same_floats(schedule):
    module = load(export(schedule, "python", name='a "quoted" name'))
    for step in range(schedule.steps + 3):
        assert module["lr"](step) == schedule(step)
    assert module["RATIOS"] == schedule.ratios
    assert module["MOMENTUM"] == schedule.momentum


@given(schedules())
def test_csv_gives_the_same_floats(schedule):
    header, *rows = csv.reader(io.StringIO(export(schedule, "csv")))
    assert header == ["step", "rate", *(f"group_{g}" for g in range(len(schedule.ratios)))]
    assert [int(row[0]) for row in rows] == list(range(schedule.steps))
    for step, row in enumerate(rows):
        assert float(row[1]) == schedule(step)
        assert tuple(map(float, row[2:])) == schedule.rates(step)


@given(schedules())
def test_json_is_what_load_reads(schedule):

    assert Schedule.from_json(json.loads(export(schedule, "json"))) == schedule


def test_python_drives_a_torch_optimizer():
    torch = pytest.importorskip("torch")
    schedule = Schedule(base_pieces("wsd", rate=0.3, start=0, stop=20, warmup=3), (1.0, 0.1))
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=0.7)
    scheduler = load(export(schedule, "python"))["scheduler"](optimizer)
    for step in range(20):
        assert tuple(group["lr"] for group in optimizer.param_groups) == schedule.rates(step)
        optimizer.step()
        scheduler.step()


def test_python_needs_nothing_but_itself(tmp_path):
    schedule = Schedule.build("cosine", rate=0.1, steps=10)
    (tmp_path / "rates.py").write_text(export(schedule, "python", name="demo"))
    code = "import rates; print(repr(rates.lr(7)))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == schedule(7)


def test_an_unknown_format_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"unknown export format 'xml'; known: csv, json, python"):
        export(Schedule.build("linear", rate=1.0, steps=2), "xml")
    assert set(FORMATS) == {"json", "csv", "python"}


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)])
def test_both_schedulers_set_the_momentum(make):
    schedule = Schedule.build("wsd", rate=0.1, steps=20)
    for momentum, expected in ((None, 0.9), (0.8, 0.8)):
        named = replace(schedule, momentum=momentum)
        for scheduler_of in (named.to_lambda_lr, load(export(named, "python"))["scheduler"]):
            optimizer = make([torch.nn.Parameter(torch.ones(1))], lr=0.01)
            scheduler_of(optimizer)
            assert momentum_of(optimizer.param_groups) == expected
