"""Ratios of losses, paired by seed, and what is chosen to be compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.compare import Line, Ratio, best_line, line_of, over_tasks, ratio
from benchmarks.rows import Row, settings_key

LOSSES = st.lists(st.floats(0.01, 100), min_size=2, max_size=8)


def row(method: str, rate: float, seed: int, validation: float, test: float, probes: int = 0) -> Row:
    settings = settings_key({"rate": rate})
    return Row("mnist_cnn", method, settings, seed, rate, validation, test, 1000, probes, 1, 2.0, "2", "0", "abc")


def line(losses: list[float], method: str = "a") -> Line:
    return Line(method, tuple(row(method, 0.1, seed, loss, loss) for seed, loss in enumerate(losses)))


@given(LOSSES, st.floats(0.1, 10))
def test_a_constant_factor_is_found_without_doubt(losses: list[float], factor: float) -> None:
    found = ratio(line([factor * loss for loss in losses]), line(losses))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((factor,) * 3)
    assert found.pairs == len(losses)


@given(LOSSES, st.integers(0, 2**32 - 1))
def test_it_is_scipys_paired_t_interval(losses: list[float], seed: int) -> None:
    others = [
        loss * factor for loss, factor in zip(losses, np.random.default_rng(seed).uniform(0.5, 2, 8), strict=False)
    ]
    found = ratio(line(losses), line(others))
    assert found is not None
    interval = stats.ttest_rel(np.log(losses), np.log(others)).confidence_interval(0.95)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_only_common_seeds_are_compared() -> None:
    found = ratio(line([1.0, 2.0]), line([2.0, 4.0, 1e9]))
    assert found is not None
    assert (found.value, found.pairs) == (pytest.approx(0.5), 2)
    assert ratio(line([]), line([1.0])) is None
    single = ratio(line([1.0]), line([2.0]))
    assert single is not None
    assert (single.value, math.isnan(single.low), str(single)) == (0.5, True, "0.500")


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_without_a_logarithm_has_no_ratio(bad: float) -> None:
    assert ratio(line([1.0, bad]), line([1.0, 1.0])) is None
    assert ratio(line([1.0, 1.0]), line([1.0, bad])) is None


def test_it_is_chosen_on_validation_among_those_run_with_most_seeds() -> None:
    rows = [row("a", rate, 0, value, 9.0) for rate, value in ((0.1, 3.0), (0.2, 1.0), (0.3, 0.1))]
    rows += [row("a", rate, 1, value, 9.0) for rate, value in ((0.1, 3.0), (0.2, 2.0))]
    chosen = line_of(rows, "mnist_cnn", "a")
    assert chosen is not None
    assert ({each.rate for each in chosen.rows}, chosen.validation, chosen.tries) == ({0.2}, 1.5, 3)
    assert chosen.search_steps == 2 * 1000
    rows += [row("b", 0.1, seed, 1.4, 0.1) for seed in (0, 1)] + [row("c", 0.1, seed, math.nan, 0.1) for seed in (0, 1)]
    best = best_line(rows, "mnist_cnn", ("a", "b", "c"))
    assert best is not None
    assert best.method == "b"
    assert line_of(rows, "mnist_cnn", "d") is None
    rows.append(row("e", 0.1, 0, 1.2, 0.1))  # lower than b's mean, but with seed 0 alone b has 1.4 and a 1.0
    best = best_line(rows, "mnist_cnn", ("a", "b", "e"))
    assert best is not None
    assert best.method == "a"
    assert best_line(rows, "other", ("a", "b")) is None


def test_a_search_of_its_own_counts_beside_the_settings_tried() -> None:
    rows = [row("a", rate, 0, 1.0, 1.0, probes=300) for rate in (0.1, 0.2)]
    chosen = line_of(rows, "mnist_cnn", "a")
    assert chosen is not None
    assert chosen.search_steps == 300 + 1300


def test_tasks_weigh_alike_and_their_errors_add_in_squares() -> None:
    mean = over_tasks([Ratio(0.5, 0.5 / math.e, 0.5 * math.e, 3), Ratio(2.0, 2.0 / math.e, 2.0 * math.e, 5)])
    assert mean is not None
    half = math.sqrt(2) / 2
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.0, math.exp(-half), math.exp(half)))
    assert mean.pairs == 3
    assert over_tasks([]) is None
