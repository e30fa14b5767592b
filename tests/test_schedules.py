"""Schedules as values: shapes, joints, exactness."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolrs.errors import AutoLRSError, SettingError, UnknownNameError
from autolrs.schedules import BASES, SHAPES, Piece, Schedule, base_pieces, cut

RATE = st.floats(1e-9, 1e3)
FACTOR = st.sampled_from((0.0, 1.0, 0.3, 1e-3, 7.0))


@st.composite
def pieces(draw):
    start = draw(st.integers(0, 1000))
    stop = start + draw(st.integers(1, 60))
    return Piece(start, stop, draw(st.sampled_from(SHAPES)), draw(RATE), draw(RATE) * draw(FACTOR))


@st.composite
def base_schedules(draw):
    steps = draw(st.integers(1, 200))
    return Schedule.build(
        draw(st.sampled_from(BASES)),
        rate=draw(RATE),
        steps=steps,
        warmup=draw(st.integers(0, 220)),
        decay=draw(st.floats(0.01, 1.0)),
    )


@st.composite
def schedules(draw):
    """A base schedule, or the head of one and the tail of another, with several groups."""
    first = draw(base_schedules())
    ratios = tuple(draw(st.lists(st.floats(0, 30), min_size=1, max_size=3)))
    if first.steps == 1 or draw(st.booleans()):
        return Schedule(first.pieces, ratios)
    at = draw(st.integers(1, first.steps - 1))
    rest = base_pieces(draw(st.sampled_from(BASES)), rate=draw(RATE), start=at, stop=first.steps)
    return Schedule((*cut(first.pieces, 0, at), *rest), ratios)


def slow_rate(piece: Piece, step: int) -> float:
    """A piece by its definition."""
    begin = piece.start if piece.begin is None else piece.begin
    end = piece.stop if piece.end is None else piece.end
    t = (step - begin) / (end - begin)
    bend = {"constant": 0.0, "linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2, "sqrt": math.sqrt(t)}[piece.shape]
    return (1 - bend) * piece.first + bend * piece.last


# Pieces


@given(pieces())
def test_a_piece_is_its_definition(piece):
    for step in range(piece.start, piece.stop + 1):
        scale = max(piece.first, piece.last)
        assert piece.rate(step) == pytest.approx(slow_rate(piece, step), rel=1e-9, abs=1e-12 * scale)
        assert piece.rate(step) >= 0


@given(pieces())
def test_a_piece_begins_at_first_and_approaches_last(piece):
    assert piece.rate(piece.start) == piece.first
    last = piece.first if piece.shape == "constant" else piece.last
    assert piece.rate(piece.stop) == pytest.approx(last, rel=1e-9, abs=1e-12 * piece.first)


@given(pieces())
def test_over_is_rate(piece):
    steps = range(piece.start, piece.stop)
    assert piece.over(piece.start, piece.stop) == [piece.rate(step) for step in steps]


@given(pieces(), st.data())
def test_a_cut_piece_gives_the_very_same_floats(piece, data):
    start = data.draw(st.integers(piece.start, piece.stop - 1))
    stop = data.draw(st.integers(start + 1, piece.stop))
    part = piece.between(start, stop)
    assert (part.start, part.stop) == (start, stop)
    assert part.over(start, stop) == piece.over(start, stop)
    inner = data.draw(st.integers(start, stop - 1))
    assert part.between(inner, stop + 5).over(inner, stop) == piece.over(inner, stop)


@given(pieces(), st.integers(0, 500))
def test_a_shifted_piece_gives_the_same_floats_later(piece, steps):
    moved = piece.shifted(steps)
    assert moved.over(piece.start + steps, piece.stop + steps) == piece.over(piece.start, piece.stop)
    assert moved.shifted(-steps) == piece
    part = piece.between(piece.start, piece.stop).shifted(steps)
    assert part.over(part.start, part.stop) == piece.over(piece.start, piece.stop)


@given(pieces(), st.floats(1e-3, 1e3))
def test_a_scaled_piece_is_so_many_times_it(piece, factor):
    scaled = piece.scaled(factor).over(piece.start, piece.stop)
    for ours, theirs in zip(scaled, piece.over(piece.start, piece.stop), strict=True):
        assert ours == pytest.approx(factor * theirs, rel=1e-9, abs=1e-12 * factor * piece.first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 10, "convex", 1.0, 0.0), "unknown schedule shape 'convex'; known: constant, cosine, linear, sqrt"),
        ((5, 5, "linear", 1.0, 0.0), r"`0 <= start < stop` must hold, but got \(start=5, stop=5\)"),
        ((-1, 5, "linear", 1.0, 0.0), "start=-1"),
        ((0, 5, "linear", math.nan, 0.0), "rates must be finite and not negative, but got .first=nan"),
        ((0, 5, "linear", 1.0, -0.1), "last=-0.1"),
        ((0, 5, "constant", math.inf, 1.0), "first=inf"),
    ],
)
def test_bad_pieces(values, message):
    with pytest.raises(AutoLRSError, match=message):
        Piece(*values)


# Base schedules


@given(base_schedules())
def test_a_base_schedule_joins_without_a_gap(schedule):
    for left, right in zip(schedule.pieces[:-1], schedule.pieces[1:], strict=True):
        assert left.stop == right.start
        assert left.rate(left.stop) == pytest.approx(right.rate(right.start), rel=1e-9)


@given(st.sampled_from(BASES), RATE, st.integers(1, 300), st.integers(0, 320), st.floats(0.01, 1))
def test_a_base_schedule_is_its_definition(base, rate, steps, warmup, decay):
    schedule = Schedule.build(base, rate=rate, steps=steps, warmup=warmup, decay=decay)
    assert schedule.steps == steps
    warm = min(warmup, steps - 1)
    turn = max(warm, steps - max(1, round(decay * steps))) if base.startswith("wsd") else warm
    for step in range(steps):
        t = (step - turn) / (steps - turn)
        if step < warm:
            expected = rate * (step + 1) / (warm + 1)
        elif base == "constant" or step < turn:
            expected = rate
        elif base == "cosine":
            expected = rate * 0.5 * (1 + math.cos(math.pi * t))
        elif base == "wsd-sqrt":
            expected = rate * (1 - math.sqrt(t))
        else:
            expected = rate * (1 - t)
        assert schedule(step) == pytest.approx(expected, rel=1e-9, abs=1e-12 * rate)
        assert schedule(step) > 0
    assert max(schedule.over(0, steps)) == pytest.approx(rate, rel=1e-9)


@given(st.sampled_from(BASES[1:]), st.integers(1, 300), st.integers(0, 320))
def test_what_decays_ends_at_zero_but_trains_on_its_last_step(base, steps, warmup):
    schedule = Schedule.build(base, rate=1.0, steps=steps, warmup=warmup)
    assert schedule(steps) == schedule(steps + 7) == 0.0
    assert schedule(steps - 1) > 0


def test_the_example_of_the_docstring():
    schedule = Schedule.build("linear", rate=0.1, steps=100, warmup=9)
    assert [round(schedule(step), 4) for step in (0, 9, 99, 100)] == [0.01, 0.1, 0.0011, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "step"}, "unknown base schedule 'step'; known: constant, cosine, linear, wsd, wsd-sqrt"),
        ({"stop": 0}, r"start=0, stop=0"),
        ({"decay": 0.0}, r"`0 < decay <= 1` and `warmup >= 0` must hold, but got \(decay=0.0, warmup=0\)"),
        ({"decay": 1.1}, "decay=1.1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"rate": math.nan}, "finite"),
    ],
)
def test_bad_base_schedules(changes, message):
    with pytest.raises(AutoLRSError, match=message):
        base_pieces(**{"base": "wsd", "rate": 0.1, "start": 0, "stop": 10} | changes)


# Schedules


@given(schedules())
def test_over_is_the_call(schedule):
    steps = range(schedule.steps)
    assert schedule.over(0, schedule.steps) == [schedule(step) for step in steps]
    middle = schedule.steps // 2
    assert schedule.over(middle, schedule.steps) == schedule.over(0, schedule.steps)[middle:]
    assert schedule.over(middle, middle) == []


@given(schedules())
def test_beyond_the_end_it_stays_where_it_was_going(schedule):
    last = schedule.pieces[-1]
    assert schedule(schedule.steps) == schedule(schedule.steps + 1000) == last.rate(last.stop)


@given(schedules(), st.data())
def test_cutting_and_joining_changes_nothing(schedule, data):
    at = data.draw(st.integers(0, schedule.steps))
    joined = Schedule((*cut(schedule.pieces, 0, at), *cut(schedule.pieces, at, schedule.steps)))
    assert joined.over(0, schedule.steps) == schedule.over(0, schedule.steps)
    assert cut(schedule.pieces, 0, schedule.steps) == schedule.pieces
    assert cut(schedule.pieces, at, at) == ()


@given(schedules())
def test_json_is_exact(schedule):
    again = Schedule.from_json(json.loads(json.dumps(schedule.to_json(), allow_nan=False)))
    assert again == schedule
    assert again.over(0, schedule.steps) == schedule.over(0, schedule.steps)
    assert again.ratios == schedule.ratios


def test_save_and_load(tmp_path):
    schedule = Schedule.build("wsd-sqrt", rate=0.1 + 0.2, steps=77, warmup=5)
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    assert Schedule.load(str(tmp_path / "schedule.json")) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "not JSON",
        '{"format": "other", "version": 1}',
        '{"format": "autolrs-schedule", "version": 2}',
        '{"format": "autolrs-schedule", "version": 1}',
        '{"format": "autolrs-schedule", "version": 1, "pieces": 3, "ratios": [1]}',
        '{"format": "autolrs-schedule", "version": 1, "pieces": [{"start": 0}], "ratios": [1]}',
        '{"format": "autolrs-schedule", "version": 1, "pieces": [], "ratios": [1]}',
        json.dumps(Schedule.build("wsd", rate=1.0, steps=9).to_json()).replace('"linear"', '"cubic"'),
        json.dumps(Schedule.build("wsd", rate=1.0, steps=9).to_json()).replace("[1.0]", '"no"'),
        json.dumps(Schedule.build("wsd", rate=1.0, steps=9).to_json()).replace("[1.0]", "[NaN]"),
        json.dumps(Schedule.build("wsd", rate=1.0, steps=9).to_json()).replace("[1.0]", "[]"),
    ],
)
def test_what_is_not_a_schedule_says_so_with_its_path(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"some\.json is not an autolrs schedule: "):
        Schedule.load(path)


def test_a_binary_file_is_not_a_schedule(tmp_path):
    (tmp_path / "some.bin").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingError, match=r"some\.bin is not an autolrs schedule"):
        Schedule.load(tmp_path / "some.bin")
    with pytest.raises(FileNotFoundError):
        Schedule.load(tmp_path / "absent.json")


def test_bad_schedules():
    piece = Piece(0, 10, "constant", 1.0, 1.0)
    for wrong in ((), (piece.shifted(1),), (piece, piece.shifted(11)), (piece, piece.shifted(9))):
        with pytest.raises(SettingError, match="pieces must follow each other from step 0, but got starts"):
            Schedule(wrong)
    with pytest.raises(SettingError, match=r"`step >= 0` must hold, but got \(step=-1\)"):
        Schedule((piece,))(-1)
    with pytest.raises(SettingError, match=r"`ratios` must be finite and not negative.*-1"):
        Schedule((piece,), (1.0, -1.0))
    with pytest.raises(UnknownNameError):
        Schedule.build("cubic", rate=1.0, steps=10)


@settings(max_examples=15, deadline=None)
@given(schedules())
def test_a_lambda_lr_gives_these_rates_bit_for_bit(schedule):
    import torch

    groups = [{"params": [torch.zeros(1)], "lr": 0.123 * (g + 1)} for g in range(len(schedule.ratios))]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    scheduler = schedule.to_lambda_lr(optimizer)
    for step in range(schedule.steps + 2):
        assert tuple(group["lr"] for group in optimizer.param_groups) == schedule.rates(step)
        assert schedule.rates(step) == tuple(schedule(step) * ratio for ratio in schedule.ratios)
        optimizer.step()
        scheduler.step()


def test_a_lambda_lr_needs_as_many_groups():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    with pytest.raises(SettingError, match="the schedule has 2 parameter groups, but the optimizer has 1"):
        Schedule((Piece(0, 5, "constant", 1.0, 1.0),), (1.0, 0.5)).to_lambda_lr(optimizer)
