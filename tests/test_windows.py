"""Windows of curves: what is seen, what is the truth, who are siblings, and how forecasts are judged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from curve_files import N, falling, write_curves

from autolrs.curves.exponential import Exponential
from autolrs.forecasts import Forecasts
from autolrs.records import Curve
from benchmarks.windows import (
    VARIABLE,
    balanced,
    bins,
    curves_folder,
    errors,
    failed,
    forecast,
    log_scores,
    score,
    siblings,
    windows,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("curves")
    write_curves(path)
    return path


def only(found, **wanted):
    kept = [w for w in found if all(getattr(w, name) == value for name, value in wanted.items())]
    assert len(kept) == 1, f"{len(kept)} windows are {wanted}"
    return kept[0]


# What a window holds


def test_a_run_shows_its_first_share_and_asks_for_the_mean_of_its_last_twentieth(folder):
    window = only(windows(folder=folder), curve_id="lr0.1", kind="run", share=0.2)
    losses = falling(np.arange(N + 1), 0.1)
    assert (window.source, window.group, window.rate) == ("deepobs/m", "g/s42", pytest.approx(0.1))
    np.testing.assert_array_equal(window.steps, np.arange(201))
    np.testing.assert_allclose(window.losses, losses[:201], rtol=1e-6)
    assert window.truth == pytest.approx(losses[951:].mean())
    assert window.at == pytest.approx(975.5)
    assert window.last == pytest.approx(losses[181:201].mean())
    assert not window.blow_up
    assert (window.start, window.length) == (0, N)
    assert window.raw.losses == tuple(window.losses)
    assert len(window.curve) == 50
    assert window.curve.losses[0] == pytest.approx(losses[:5].mean(), rel=1e-3)


def test_rows_of_a_validation_loss_alone_are_left_out(folder):
    window = only(windows(folder=folder), curve_id="lr0.01", kind="run", share=0.1)
    assert 5 not in window.steps
    assert len(window.steps) == 100
    assert np.isfinite(window.losses).all()


def test_a_truth_far_above_the_start_or_none_is_a_blow_up(folder):
    found = windows(folder=folder, kinds=("run",))
    blown, stopped = (only(found, curve_id=name, share=0.1) for name in ("blown", "stopped"))
    assert blown.blow_up
    assert blown.truth == 1e6
    assert stopped.blow_up
    assert math.isnan(stopped.truth)
    assert stopped.at == pytest.approx(975)
    assert len(stopped.losses) == 5
    assert all(map(math.isfinite, stopped.curve.losses))
    assert sum(w.blow_up for w in found) == 6


def test_pieces_keep_their_rate_and_count_from_their_start(folder):
    found = [w for w in windows(folder=folder, shares=(0.4,)) if w.kind == "piece"]
    window = only(found, curve_id="lr1.0", start=250)
    assert (window.length, window.steps[0], window.steps[-1]) == (250, 0, 100)
    assert window.at == pytest.approx(0.975 * 250, abs=1)
    assert {w.start for w in found if w.curve_id == "lr1.0"} == {0, 250, 500}
    assert "decay" not in {w.curve_id for w in found}
    # Its rate jumps at 400: the quarter from 250 on is no piece.
    assert {w.start for w in found if w.curve_id == "to0.5"} == {0, 500}


def test_forks_start_where_the_rate_changes_and_have_the_trunk_as_sibling(folder):
    found = [w for w in windows(folder=folder, shares=(0.2,)) if w.kind == "fork"]
    assert {(w.curve_id, w.rate, w.start, w.length) for w in found} == {
        ("to0.5", 0.5, 400, 600),
        ("to0.1", 0.1, 400, 600),
        ("to1.0", 1.0, 400, 600),
    }
    assert only(found, curve_id="to0.1").steps[0] == 1


def test_siblings_have_one_start_and_different_rates(folder):
    groups = siblings(windows(folder=folder, shares=(0.2,)))
    names = {(g[0].kind, g[0].start): [w.curve_id for w in g] for g in groups}
    assert names == {
        ("run", 0): ["lr0.01", "lr0.1", "lr1.0", "blown", "stopped"],
        ("piece", 0): ["lr0.01", "lr0.1", "lr1.0", "blown"],
        ("fork", 400): ["to0.1", "to0.5", "to1.0"],
    }


def test_sources_are_named_whole_or_by_problem(folder):
    assert {w.source for w in windows(["deepobs"], folder=folder)} == {"deepobs/m"}
    assert {w.source for w in windows(["deepobs/m"], folder=folder)} == {"deepobs/m"}
    assert {w.source for w in windows(folder=folder)} == {"deepobs/m", "trunk"}
    with pytest.raises(ValueError, match=r"unknown source \['imagenet'\]; known: deepobs/m, trunk"):
        windows(["imagenet", "trunk"], folder=folder)
    with pytest.raises(ValueError, match="unknown kind"):
        windows(folder=folder, kinds=("forks",))


def test_without_curves_the_error_says_what_to_do(tmp_path, monkeypatch, folder):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"--curves or the environment variable {VARIABLE}"):
        windows()
    monkeypatch.setenv(VARIABLE, str(folder))
    assert curves_folder() == folder


def test_bins_are_equally_wide_and_know_the_noise_of_a_mean():
    rng = np.random.default_rng(0)
    steps = np.arange(5000.0)
    losses = 2 + 0.1 * rng.standard_normal(5000)
    found = bins(steps, losses, np.full(5000, 0.1), start=7)
    assert (len(found), found.start) == (50, 7)
    np.testing.assert_allclose(found.losses, losses.reshape(50, 100).mean(axis=1))
    assert found.noise == pytest.approx(0.01, rel=0.1)
    same = Curve.reduce(list(losses), [0.1] * 5000, start=7)
    np.testing.assert_allclose(found.offsets, same.offsets)
    assert found.noise == pytest.approx(same.noise, rel=0.05)


# How forecasts are judged


class Truthful:
    """Forecasts `mean`, whatever is seen."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        n = len(curves)
        return Forecasts(np.array(at), np.full(n, self.mean), np.full(n, self.std))


def test_errors_are_relative_and_a_failure_is_infinite(folder):
    found = [only(windows(folder=folder), curve_id="lr0.1", kind="run", share=s) for s in (0.1, 0.2)]
    truth = found[0].truth
    forecasts = Forecasts(np.zeros(2), np.array([1.5 * truth, math.nan]), np.array([1.0, math.inf]))
    np.testing.assert_allclose(errors(forecasts, found), [0.5, math.inf])
    np.testing.assert_array_equal(failed(forecasts, found), [False, True])


@pytest.mark.parametrize(("mean", "absurd"), [(19.0, False), (21.0, True), (0.0, True), (-1.0, True), (0.01, False)])
def test_absurd_forecasts_are_failures(folder, mean, absurd):
    found = [only(windows(folder=folder), curve_id="lr0.1", kind="run", share=0.1)]  # at most 2
    assert failed(Forecasts(np.zeros(1), np.array([mean]), np.ones(1)), found)[0] == absurd


def test_log_scores_are_those_of_the_loss_over_the_last(folder):
    found = [only(windows(folder=folder), curve_id="lr0.1", kind="run", share=0.1)]
    forecasts = Forecasts.student_t(np.zeros(1), np.array([1.2]), np.array([0.3]), 3)
    from scipy.stats import t

    ratio = found[0].truth / found[0].last
    expected = -t.logpdf(ratio, 3, 1.2 / found[0].last, 0.3 / found[0].last)
    assert log_scores(forecasts, found)[0] == pytest.approx(expected, abs=0.02)
    far = Forecasts(np.zeros(1), np.array([100.0]), np.array([0.01]))
    nothing = Forecasts(np.zeros(1), np.array([math.nan]), np.array([math.inf]))
    assert log_scores(far, found)[0] == log_scores(nothing, found)[0] == 8


def test_the_table_has_sources_and_all_and_counts_blow_ups_as_failures_only(folder):
    found = windows(folder=folder, kinds=("run",), shares=(0.1, 0.4))
    timed = forecast(Truthful(1.0, 0.5), found)
    table = score(timed.forecasts, found, timed.milliseconds)
    assert set(table.index) == {(s, share) for s in ("deepobs/m", "trunk", "all") for share in (0.1, 0.4)}
    row = table.loc[("all", 0.1)]
    usual = [w for w in found if w.share == 0.1 and not w.blow_up]
    assert row.windows == len(usual) == 8
    off = sorted(abs(1 / w.truth - 1) for w in usual)
    assert row["median"] == pytest.approx(off[4])
    assert row.p90 == pytest.approx(off[7])
    level = timed.forecasts.cdf([w.truth for w in found])
    inside = [abs(p - 0.5) <= 0.25 for p, w in zip(level, found, strict=True) if w in usual]
    assert row.cover50 == pytest.approx(np.mean(inside))
    assert row.cover50 <= row.cover80 <= row.cover90 <= row.cover95
    assert 0 <= row.ms <= row.ms99
    failing = score(Forecasts(timed.forecasts.at, np.full(len(found), np.nan), np.full(len(found), np.inf)), found)
    assert (failing.failures == 1).all()
    assert np.isinf(failing["median"]).all()
    assert (failing.log_score == 8).all()


def test_models_are_shown_bins_or_every_point(folder):
    found = windows(["trunk"], folder=folder, kinds=("run",), shares=(0.4,))
    seen = []

    class Spy(Truthful):
        def extrapolate(self, curves, at, **kwargs):
            seen.append([len(curve) for curve in curves])
            return super().extrapolate(curves, at, **kwargs)

    forecast(Spy(1.0, 1.0), found)
    forecast(Spy(1.0, 1.0), found, raw=True)
    assert seen == [*([50] for _ in found), [50] * len(found), *([401] for _ in found), [401] * len(found)]


def test_an_exponential_forecasts_exponentials(folder):
    found = [w for w in windows(["deepobs"], folder=folder, kinds=("run",)) if not w.blow_up]
    table = score(forecast(Exponential(), found).forecasts, found)
    assert table.loc[("all", 0.4), "median"] < 0.05


def test_no_source_drowns_the_others(folder):
    found = windows(folder=folder)
    kept = balanced(found, 2)
    counts = pd.Series([(w.source, w.kind, w.share) for w in kept]).value_counts()
    assert counts.max() == 2
    assert len(counts) == len({(w.source, w.kind, w.share) for w in found})
    assert len(balanced(found, 10**6)) == len(found)
