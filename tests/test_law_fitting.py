"""Fits of the loss laws: slow twins, runs that follow a law, and what the data identify."""

from __future__ import annotations

import numpy as np
import pytest

from autolrs.curves.law import fitting
from autolrs.curves.law.fitting import ALPHAS, LAWS, LINEAR, TIMESCALES, fit
from autolrs.curves.law.identified import parameters
from autolrs.curves.law.paths import RatePath
from autolrs.curves.law.runs import branch, kept_run
from autolrs.schedules import Piece, Schedule
from tests.law_runs import curve_of, history_of, losses_of

STEPS, PEAK = 1000, 0.01


def schedule(base, rate=PEAK, steps=STEPS):
    return Schedule.build(base, rate=rate, steps=steps, warmup=20)


def run(base, noise=0.0, stop=STEPS, laws=LAWS, **kwargs):
    planned = schedule(base)
    observed = kept_run(history_of(planned, losses_of(planned, **kwargs), stop, noise=noise))
    assert observed is not None
    return observed


# Slow twins


def test_each_node_is_regularised_least_squares():
    observed = run("wsd", noise=0.01)
    found = fit([observed])
    size, count = found.size, len(observed.steps)
    residuals_limit = fitting._HUBER
    x = fitting._columns(LAWS, observed.path, observed.steps, found.length, found.progress)
    best = int(found.weights.argmax())
    y, t = observed.losses / size, observed.steps / observed.steps[-1]
    model = fitting.FLOOR**2 + (fitting._TREND * np.ptp(y) * (1 - t)) ** 2
    variance = (observed.noise / size / y) ** 2 + model * count / fitting._COUNT
    root = 1 / np.sqrt(variance) / y
    rows = np.concatenate([x[best] * root[:, None], np.diag(1 / LINEAR[:, 1])])
    right = np.concatenate([y * root, LINEAR[:, 0] / LINEAR[:, 1]])
    twin, *_ = np.linalg.lstsq(rows, right, rcond=None)
    deviations = np.abs(x[best] @ found.means[best] / y - 1) / np.sqrt(variance)
    assert (deviations > residuals_limit).mean() < 0.2, "few points are down-weighted here, hence the tolerance"
    assert found.means[best] == pytest.approx(twin, rel=0.01)
    assert found.covariances[best] == pytest.approx(np.linalg.inv(rows.T @ rows), rel=0.4, abs=1e-7)


def test_an_update_is_the_conjugate_one_of_level_and_cooling():
    planned = schedule("constant")
    observed = run("constant", stop=500, noise=0.01)
    found = fit([observed])
    losses = losses_of(planned) + 0.02
    probe = branch(observed, curve_of(planned, losses, 500, 530, noise=0.01))
    assert probe is not None
    moved = found.updated(probe)
    x = fitting._columns(LAWS, probe.path, probe.steps, found.length, found.progress)
    y, noise = probe.losses / found.size, probe.noise / found.size
    for node in (0, int(found.weights.argmax())):
        variance = noise**2 + fitting.FLOOR**2 * max(1.0, len(y) / fitting._COUNT)
        rows = np.concatenate([x[node][:, [0, 2]], np.eye(2)])
        prior = np.sqrt([fitting._OFFSET**2, found.covariances[node, 2, 2]])
        root = np.concatenate([1 / np.sqrt(variance), 1 / prior])
        right = np.concatenate([y - x[node] @ found.means[node], np.zeros(2)])
        twin, *_ = np.linalg.lstsq(rows * root[:, None], right * root, rcond=None)
        assert moved.means[node, [0, 2]] - found.means[node, [0, 2]] == pytest.approx(twin, rel=1e-6, abs=1e-12)
    assert (moved.means[:, 1] == found.means[:, 1]).all()
    assert (moved.weights == found.weights).all()
    at = np.array([540.0])
    before, after = (one.predict(probe.path, at)[0][0] for one in (found, moved))
    assert abs(after - losses[540]) < abs(before - losses[540])


# Runs that follow a law


@pytest.mark.parametrize("laws", [("annealing",), LAWS])
@pytest.mark.parametrize("base", ["constant", "wsd", "wsd-sqrt", "linear"])
def test_a_run_that_follows_the_law_foretells_other_schedules(laws, base):
    found = fit([run("cosine")], laws)
    planned = schedule(base)
    steps = np.arange(100.0, STEPS)
    means, deviations = found.predict(RatePath.of_schedule(planned).over(PEAK), steps)
    truth = losses_of(planned)[100:]
    assert np.abs(means / truth - 1).mean() < 0.006
    assert (np.abs(means - truth) < 2 * deviations + 0.005 * truth).mean() > 0.9


def test_more_runs_narrow_the_forecast():
    one, two = run("cosine", noise=0.01), run("constant", noise=0.01)
    path, at = RatePath.of_schedule(schedule("wsd")).over(PEAK), np.array([950.0])
    assert fit([one, two]).predict(path, at)[1][0] < fit([one]).predict(path, at)[1][0]


def test_one_wild_point_hardly_matters():
    observed = run("cosine", noise=0.005)
    losses = observed.losses.copy()
    losses[len(losses) // 2] += 3
    path, at = RatePath.of_schedule(schedule("wsd")).over(PEAK), np.array([950.0])
    clean, wild = (fit([one]).predict(path, at)[0][0] for one in (observed, observed._replace(losses=losses)))
    assert wild == pytest.approx(clean, rel=0.006)


@pytest.mark.parametrize("laws", [("annealing",), ("multipower",), LAWS])
def test_weights_are_half_to_each_law(laws):
    found = fit([run("wsd")], laws)
    assert found.weights.sum() == pytest.approx(1)
    if len(laws) == 2:
        assert found.weights[: len(ALPHAS) * len(TIMESCALES)].sum() == pytest.approx(0.5)


@pytest.mark.parametrize("shift", [-4.0, -2.5])
def test_losses_below_zero_are_fitted_too(shift):
    observed = run("cosine")
    found = fit([observed._replace(losses=observed.losses + shift)])
    planned = schedule("wsd")
    means, _ = found.predict(RatePath.of_schedule(planned).over(PEAK), np.array([950.0]))
    assert means[0] == pytest.approx(losses_of(planned)[950] + shift, abs=0.05)


# Identification


def named(observed):
    return {one.name: one for one in parameters(fit([observed]))}


def test_a_constant_rate_says_nothing_of_the_cooling():
    found = named(run("constant", noise=0.01))
    assert found["slope"].identified
    assert not found["cooling"].identified
    assert not found["timescale"].identified
    assert "%" in found["cooling"].reason


def test_an_annealed_run_identifies_what_it_was_made_of():
    found = named(run("cosine", noise=0.002))
    assert all(found[name].identified for name in ("level", "slope", "cooling"))
    assert found["cooling"].value == pytest.approx(0.15, rel=0.25)
    assert found["level"].value == pytest.approx(2.5, rel=0.1)


def test_a_parameter_at_the_end_of_its_grid_is_not_identified():
    found = named(run("constant", alpha=0.01))
    assert "at the end of what is allowed" in found["alpha"].reason


def test_abrupt_drops_show_how_fast_the_loss_follows():
    planned = Schedule((Piece(0, 400, "constant", PEAK, PEAK), Piece(400, 1000, "constant", PEAK / 10, PEAK / 10)))
    for decay in (0.95, 0.99):
        losses = losses_of(planned, decay=decay)
        observed = kept_run(history_of(planned, losses, 1000, noise=0.001))
        assert observed is not None
        found = named(observed)["timescale"]
        assert found.std < 0.7 * found.prior_std
        assert found.value == pytest.approx(1 / (1 - decay), rel=0.6)
