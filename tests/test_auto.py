"""The average of curve models: weights and width against hand-made models, and the laws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from autolrs.curves.auto import CALM, PAST, SEEN, Auto
from autolrs.curves.law.law import BackTest, Law
from autolrs.errors import SettingError
from autolrs.forecasts import Forecasts
from autolrs.records import Curve
from autolrs.schedules import Piece, Schedule
from benchmarks import windows
from benchmarks.laws import averaged, runs

SCHEDULE = Schedule((Piece(0, 1000, "constant", 0.1, 0.1),))


def curve(losses, start=0):
    n = len(losses)
    return Curve(tuple(map(float, range(n))), tuple(map(float, losses)), (0.1,) * n, start=start)


@dataclass(frozen=True)
class Constant:
    """Foretells the curve's last loss times `factor`, within `scale` in log loss."""

    factor: float
    scale: float = 0.1

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        ends = [c.losses[-1] * self.factor for c in curves]
        return Forecasts.student_t(list(at), np.log(ends), self.scale, np.inf, log=True)


def density(x, scale=0.1):
    return math.exp(-0.5 * (x / scale) ** 2) / scale / math.sqrt(2 * math.pi)


def probability(found, threshold):
    return float(found.cdf([threshold] * len(found))[0])


FLAT, HALVING = Constant(1.0), Constant(0.5)


def between(found):
    """Weight of `FLAT` in an average of the two, for a curve that is at 1."""
    return 1 - probability(found, 0.7)


# Weights


def test_without_evidence_the_weights_are_the_priors():
    found = Auto((FLAT, HALVING), (1.0, 3.0), law=None).extrapolate([curve([1.0] * 9)], [100])
    assert between(found) == pytest.approx(0.25, abs=0.01)


UNTOLD = [curve([1.0] * 3)]  # a history of which nothing is learned


def test_a_curve_s_own_end_decides_once_there_is_a_history():
    # The second model is 3 deviations off on the last two of five points: exp(-4.5) against 1.
    losses = [1.0] * 20
    close = Auto((FLAT, Constant(math.exp(-0.3))), (0.5, 0.5), law=None)
    found = close.extrapolate([curve(losses)], [100], history=UNTOLD)
    expected = density(0.0) / (density(0.0) + density(0.3))
    assert 1 - probability(found, math.exp(-0.15)) == pytest.approx(expected, abs=0.07)
    both, fallen = Auto((FLAT, HALVING), (0.5, 0.5), law=None), curve([2.0] * 12 + [1.0] * 8)
    assert between(both.extrapolate([fallen], [100], history=UNTOLD)) < 0.01
    assert between(both.extrapolate([curve(losses)], [100], history=UNTOLD)) > 0.99
    assert between(both.extrapolate([fallen], [100])) == pytest.approx(0.5, abs=0.01)


def test_each_curve_has_its_own_weights():
    both = [curve([2.0] * 12 + [1.0] * 8), curve([1.0] * 20)]
    found = Auto((FLAT, HALVING), (0.5, 0.5), law=None).extrapolate(both, [100, 100], history=UNTOLD)
    np.testing.assert_allclose(found.median, [0.5, 1.0], rtol=0.02)


def test_what_the_history_came_to_decides_where_a_curve_is_too_short_to_say():
    short, fell, stayed = curve([1.0] * 10), curve([2.0] * 50 + [1.0] * 50), curve([1.0] * 100)
    auto = Auto((FLAT, HALVING), (0.5, 0.5), law=None)
    assert between(auto.extrapolate([short], [20], history=[fell] * 2)) < 0.01
    assert between(auto.extrapolate([short], [20], history=[stayed] * 2)) > 0.99


def test_a_long_history_counts_as_a_few_curves():
    close = Auto((FLAT, Constant(math.exp(-0.1))), (0.5, 0.5), law=None)
    few, many = (close.extrapolate([curve([1.0] * 10)], [20], history=[curve([1.0] * 100)] * n) for n in (4, 400))
    assert int(PAST) == 4
    level = math.exp(-0.05)
    assert probability(many, level) < probability(few, level)  # sharper, not surer of the model
    assert few.median == pytest.approx(many.median, rel=0.02)


# Width


def width(history, n=1):
    model = Auto((FLAT,), (1.0,), law=None)
    one = model.extrapolate([curve([1.0] * 10)], [20])
    other = model.extrapolate([curve([1.0] * 10)], [20], history=[history] * n)
    assert other.median == pytest.approx(one.median)
    return float(np.log(other.quantiles([0.9])[0, 0]) / np.log(one.quantiles([0.9])[0, 0]))


def test_the_history_widens_and_sharpens_the_average():
    off = curve([math.exp(0.2)] * 50 + [1.0] * 50)  # two deviations
    assert width(off, 5) == pytest.approx(math.sqrt((CALM + 5 * 4) / (CALM + 5)), rel=0.01)
    assert width(curve([1.0] * 100), 5) == pytest.approx(math.sqrt(CALM / (CALM + 5)), rel=0.01)
    assert width(curve([1e6] * 50 + [1.0] * 50)) == pytest.approx(math.sqrt((CALM + 9) / (CALM + 1)), rel=0.01)


def test_the_history_is_cut_where_the_curves_are():
    # It falls at a third of its length: seen from half of it, nothing is left to foretell.
    fell = curve([2.0] * 34 + [1.0] * 66)
    auto = Auto((FLAT, HALVING), (0.5, 0.5), law=None)
    assert between(auto.extrapolate([curve([1.0] * 9)], [16], history=[fell])) > 0.99
    assert between(auto.extrapolate([curve([1.0] * 9)], [40], history=[fell])) < 0.01


# The law


@dataclass(frozen=True)
class Lawful(Law):
    """A law that halves, and says why it may not act."""

    refusal: str = ""

    def ready(self, history):
        return self.refusal

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        return HALVING.extrapolate(curves, at)


def test_the_law_joins_only_while_it_may_and_wins():
    fell, flat, history = curve([2.0] * 12 + [1.0] * 8), curve([1.0] * 20), [curve([1.0] * 9)]

    def asked(seen, law, **given):
        return float(Auto((FLAT,), (1.0,), law=law).extrapolate([seen], [100], **given).median[0])

    given = {"schedule": SCHEDULE, "history": history}
    assert asked(fell, Lawful(), **given) == pytest.approx(0.5, rel=0.05)
    assert asked(fell, Lawful(refusal="too short"), **given) == pytest.approx(1.0)
    assert asked(fell, Lawful(), schedule=SCHEDULE) == pytest.approx(1.0)
    assert asked(fell, Lawful(), history=history) == pytest.approx(1.0)
    assert asked(flat, Lawful(), **given) == pytest.approx(1.0)


def test_the_law_is_judged_on_the_run_where_the_curve_is_too_short_to_judge():
    short, history = curve([1.0] * 9), [curve([1.0] * 9)]
    seen = curve([1.0] * 9)

    @dataclass(frozen=True)
    class Judged(Lawful):
        truth: float = 1.0

        def back_tests(self, history):
            # It said a half; the other model says that the last loss stays.
            return (BackTest(0.5, self.truth, 0.5, 0.05, 1.0, 20.0, seen),)

    def asked(truth):
        model = Auto((FLAT,), (1.0,), law=Judged(truth=truth))
        return float(model.extrapolate([short], [100], schedule=SCHEDULE, history=history).median[0])

    assert asked(0.5) == pytest.approx(0.5, rel=0.05)  # it was right, by 24 nats
    assert asked(1.0) == pytest.approx(1.0)


@pytest.mark.skipif(not (windows.DEFAULT_FOLDER / "meta.parquet").is_file(), reason="real curves are not here")
def test_on_real_runs_the_law_halves_the_error_at_least(monkeypatch):
    monkeypatch.setenv(windows.VARIABLE, str(windows.DEFAULT_FOLDER))
    runs.cache_clear()
    without, found = (averaged(model, "multipowerlaw") for model in (Auto(law=None), Auto()))
    runs.cache_clear()
    assert len(found) > 50
    assert found.error.mean() < 0.5 * without.error.mean()
    assert found.score.mean() < without.score.mean() - 1


# Laws, with the models that ship

MODEL = Auto()


def test_the_default_covers_the_truth_of_a_clean_curve():
    offsets = np.arange(50.0)
    found = MODEL.extrapolate([curve(2 * np.exp(-0.05 * offsets) + 1)], [120])
    low, high = found.quantiles([0.01, 0.99])[0]
    truth = 2 * math.exp(-6) + 1
    assert low < truth < high
    assert found.median[0] == pytest.approx(truth, rel=0.3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=40), st.floats(1, 500), st.sampled_from([1e-3, 20, 1e3]))
def test_the_loss_scale_does_not_matter(losses, at, k):
    history = [curve(np.linspace(3, 1, 30))]
    one = MODEL.extrapolate([curve(losses)], [at], history=history)
    other = MODEL.extrapolate([curve(np.array(losses) * k)], [at], history=history)
    np.testing.assert_allclose(other.quantiles([0.1, 0.5, 0.9]) / k, one.quantiles([0.1, 0.5, 0.9]), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(), max_size=30), max_size=3),
    st.lists(st.lists(st.floats(), max_size=30), max_size=2),
    st.floats(0, 1e6),
)
@example([[0.0, 1.778521656910492e308, *[0.0] * 6]], [], 35.0)
@example([], [[0.0] * 3 + [5.1594992068252504e303] + [0.0] * 7], 0.0)
def test_any_input_gives_an_answer_without_a_warning(curves, history, at):
    found = MODEL.extrapolate([curve(losses) for losses in curves], [at] * len(curves), history=[*map(curve, history)])
    for i, losses in enumerate(curves):
        known = any(map(math.isfinite, losses))
        assert math.isfinite(found.mean[i]) == known
        assert known or found.std[i] == math.inf


def test_few_points_give_the_last_value_and_negative_losses_are_fine():
    found = MODEL.extrapolate([curve([3.0, 2.0]), curve(-np.linspace(1, 2, 20)), curve([])], [9, 30, 9])
    assert found.mean[0] == pytest.approx(2.0, rel=0.01)
    assert found.mean[1] < -1.8
    assert math.isnan(found.mean[2])
    assert len(MODEL.extrapolate([], [])) == 0


def test_settings_are_checked():
    with pytest.raises(SettingError, match="priors"):
        Auto((FLAT,), (0.5, 0.5))
    with pytest.raises(ValueError, match="zip"):
        MODEL.extrapolate([curve([1.0])], [])


def test_tails_are_cut_where_said():
    assert SEEN == 0.6
    assert float(ndtri(0.975)) < 3  # what `test_the_history_widens` relies on


def test_of_a_curve_that_blows_up_no_absurd_loss_is_forecast():
    losses = [300.0 * 1.5**i for i in range(40)]
    curve = Curve(tuple(map(float, range(40))), tuple(losses), (0.1,) * 40)
    forecast = Auto().extrapolate([curve], [400.0])
    assert losses[-1] / 5 < forecast.mean[0] <= 5 * losses[-1]
    assert np.isfinite(forecast.std[0])


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_points_and_those_that_are_not_finite_say_nothing(random):
    t = 10.0 * np.arange(50)
    rng = np.random.default_rng(0)
    seen, before = (
        Curve(tuple(t), tuple((1 + 2 * np.exp(-t / 100)) * np.exp(0.003 * rng.standard_normal(50))), (0.1,) * 50)
        for _ in range(2)
    )

    def shuffled(one):
        rows = [*zip(one.offsets, one.losses, one.rates, strict=True), (900.0, math.nan, 0.1), (600.0, math.inf, 0.1)]
        random.shuffle(rows)
        return Curve(*zip(*rows, strict=True), noise=one.noise)

    expected = Auto(law=None).extrapolate([seen], [3000.0], history=[before])
    found = Auto(law=None).extrapolate([shuffled(seen)], [3000.0], history=[shuffled(before)])
    assert found.mean == pytest.approx(expected.mean, rel=1e-9)
    assert found.std == pytest.approx(expected.std, rel=1e-9)


def test_a_loss_that_falls_ever_faster_has_a_floor_as_one_that_rises_has_a_roof():
    losses = -((np.arange(50) / 5.0) ** 2)
    down = Auto().extrapolate([curve(losses)], [2450.0]).mean[0]
    assert -5 * 96.04 - 1e-9 <= down < losses[-1]
    assert Auto().extrapolate([curve(-losses)], [2450.0]).mean[0] <= 5 * 96.04 + 1e-9
