"""What would have happened: forecasts of other schedules from a study's record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autolrs.curves.law.law import Law
from autolrs.errors import SettingError, UnsupportedError
from autolrs.predictions import predict, schedule_of
from autolrs.records import Kept, Record, Settings, Stage, Trial, TrialState
from autolrs.schedules import Piece, Schedule
from autolrs.space import SearchSpace
from tests.law_runs import curve_of, history_of, losses_of

STEPS, PEAK = 1000, 0.01
SPACE = replace(SearchSpace.load("adamw"), warmup=0.02)


def planned(base, rate=PEAK):
    return Schedule.build(base, rate=rate, steps=STEPS, warmup=20)


def record_of(base, stop=STEPS, trials=(), noise=0.01):
    schedule = planned(base)
    curves = history_of(schedule, losses_of(schedule), stop, noise=noise)
    kept = tuple(Kept(c.start, min(c.start + 100, stop), c) for c in curves)
    settings = Settings(STEPS, 300, 0, SPACE, "horizon")
    stages = (Stage(0, 0, trials=tuple(trials), rate=PEAK, stop=STEPS),)
    return Record(settings, pieces=schedule.pieces, kept=kept, kept_steps=stop, finished=stop == STEPS, stages=stages)


def truth(schedule):
    return float(losses_of(schedule)[950:].mean())


@pytest.mark.parametrize("base", ["linear", "wsd", "cosine"])
def test_schedules_that_were_not_run_are_foretold(base):
    found = predict(record_of("cosine"), {base: planned(base)})
    own, other = found.rows
    assert own.measured == pytest.approx(truth(planned("cosine")), abs=0.01)
    assert own.mean == pytest.approx(own.measured, rel=0.01)
    assert other.mean == pytest.approx(truth(planned(base)), rel=0.01)
    assert other.low < truth(planned(base)) < other.high
    assert {one.name for one in found.parameters} == {"level", "slope", "cooling", "alpha", "timescale"}


def test_an_unfinished_run_has_no_measured_end():
    (row,) = predict(record_of("cosine", stop=700), {}).rows
    assert row.measured is None
    assert row.low < truth(planned("cosine")) < row.high


def test_another_level_of_the_rate_is_a_guess_and_says_so():
    found = predict(record_of("cosine"), {rate: planned("cosine", float(rate)) for rate in ("0.005", "0.01", "0.02")})
    width = {row.name: row.high - row.low for row in found.rows}
    assert width["0.01"] < width["0.005"]
    assert width["0.01"] < width["0.02"]


def test_a_schedule_too_far_away_is_refused_with_the_reason():
    found = predict(record_of("cosine"), {"far": planned("cosine", 4 * PEAK), "near": planned("linear")})
    assert [row.name for row in found.rows] == ["as used", "near"]
    assert "level of the rate does is not identified" in found.refused["far"]
    with pytest.raises(UnsupportedError, match=r"far: its peak rate is 0\.04"):
        predict(record_of("cosine"), {"far": planned("cosine", 4 * PEAK)})
    longer = Schedule.build("cosine", rate=PEAK, steps=8 * STEPS)
    with pytest.raises(UnsupportedError, match="the sum of its rates is 8"):
        predict(record_of("cosine"), {"long": longer})


def test_a_constant_run_does_not_say_what_a_decay_brings():
    with pytest.raises(UnsupportedError, match=r"how much the loss falls with the rate \(cooling\) is not identified"):
        predict(record_of("constant"), {"linear": planned("linear")})
    assert predict(record_of("constant"), {"same": planned("constant")}).refused == {}


def test_probes_tell_what_the_run_does_not():
    """A probe from mid-training that decays identifies the cooling of a constant run."""
    tail = planned("wsd")
    losses = losses_of(tail)
    probe = curve_of(tail, losses, 800, 1000, noise=0.001)
    trial = Trial(0, 0, PEAK, 200, TrialState.COMPLETE, 200, probe)
    record = record_of("constant", stop=900, trials=[trial], noise=0.001)
    found = predict(record, {"linear": planned("linear")})
    assert found.rows[1].mean == pytest.approx(truth(planned("linear")), rel=0.02)
    diverged = replace(trial, state=TrialState.DIVERGED)
    with pytest.raises(UnsupportedError, match="cooling"):
        predict(record_of("constant", stop=900, trials=[diverged], noise=0.001), {"linear": planned("linear")})


def test_refusals_of_the_law_are_passed_on():
    empty = Record(Settings(STEPS, 300, 0, SPACE, "horizon"))
    with pytest.raises(UnsupportedError, match="no kept steps yet"):
        predict(empty, {})
    short = record_of("cosine", stop=10)
    reason = Law().ready([part.curve for part in short.kept])
    with pytest.raises(UnsupportedError, match=f"nothing can be predicted: {reason[:30]}"):
        predict(short, {})


# Schedules in words


def test_words_are_base_schedules_with_the_studys_steps_and_warm_up(tmp_path):
    record = record_of("cosine")
    assert schedule_of("wsd:3e-3", record) == planned("wsd", 3e-3)
    path = tmp_path / "schedule.json"
    planned("linear").save(path)
    assert schedule_of(str(path), record) == planned("linear")


@pytest.mark.parametrize("text", ["cosine:fast", "cosine:-1", "cosine:nan", "wsd:inf", "wsd:0"])
def test_a_bad_rate_is_named(text):
    with pytest.raises(SettingError, match="must be a positive number"):
        schedule_of(text, record_of("cosine"))


@pytest.mark.parametrize("text", ["cosine", "steps:0.1", "nowhere.json"])
def test_what_is_neither_a_base_nor_a_file_lists_the_bases(text):
    with pytest.raises(SettingError, match="one of constant, linear, cosine, wsd, wsd-sqrt"):
        schedule_of(text, record_of("cosine"))


@pytest.mark.parametrize("text", ["x" * 3000, "wsd" + "/x" * 3000, "a\0b", "cosine:" + "9" * 3000], ids=len)
def test_what_can_be_no_file_is_one_short_error(text):
    with pytest.raises(SettingError, match="--schedule") as caught:
        schedule_of(text, record_of("cosine"))
    assert len(str(caught.value)) < 300


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "schedule.json"
    planned("linear").save(path)

    def locked(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", locked)
    with pytest.raises(SettingError, match=r"schedule\.json' cannot be read: Permission denied"):
        schedule_of(str(path), record_of("cosine"))


def test_a_lower_loss_is_expected_of_the_schedule_that_has_it():
    bases = ("constant", "linear", "wsd")
    found = predict(record_of("cosine", noise=0.003), {base: planned(base) for base in bases})
    means = {row.name: row.mean for row in found.rows[1:]}
    assert sorted(bases, key=lambda base: means[base]) == sorted(bases, key=lambda base: truth(planned(base)))
    assert np.ptp(list(means.values())) > 0.05


@pytest.mark.parametrize("idle", [False, True])
def test_a_schedule_that_makes_little_progress_is_refused(idle):
    """The laws follow a run's late losses, and say nothing of its first ones."""
    rest = Piece(0, 900, "constant", 0.0, 0.0), Piece(900, STEPS, "linear", PEAK, 0.0)
    short = Schedule(rest) if idle else Schedule.build("linear", rate=PEAK, steps=STEPS // 10)
    with pytest.raises(UnsupportedError, match=r"its rates is 0\.\d\d times that of the data, .* from 0\.5 to 3 times"):
        predict(record_of("cosine"), {"short": short})
