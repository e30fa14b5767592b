"""Each acquisition against an obviously right, slow version of itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import norm

from autolrs.acquisitions import ACQUISITIONS, Candidates, acquisition, polygon_gain
from autolrs.errors import UnknownNameError
from autolrs.surrogates import QuadratureGP

Array = NDArray[np.float64]


def candidates(n: int = 6, g: int = 21, seed: int = 0) -> Candidates:
    """A bowl seen through noise at `n` points of the grid."""
    rng = np.random.default_rng(seed)
    tried = np.sort(rng.choice(g, size=n, replace=False))
    x = np.linspace(0, 1, g)
    y = np.minimum(-1 + 6 * (x[tried] - 0.4) ** 2, 0.5) + 0.05 * rng.standard_normal(n)
    X = torch.tensor(np.stack([x, np.zeros(g)], axis=-1))
    model = QuadratureGP(X[tried], torch.tensor(y)[:, None], torch.full((n, 1), 2.5e-3, dtype=torch.float64))
    weights, mean, covariance, noise = model.nodes(X)
    return Candidates(model, X, tried, weights, mean, covariance, noise + 2.5e-3)


def density(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def frazier(a: Array, b: Array) -> float:
    """Algorithm 1 of Frazier, Powell & Dayanik 2009 for E[max_i a_i + b_i Z] - max_i a_i, one line at a time."""
    lines: list[tuple[float, float]] = []
    for slope, level in sorted(zip(b, a, strict=True)):
        if lines and lines[-1][0] == slope:
            lines.pop()  # equal slopes: the higher line, which comes later
        lines.append((slope, level))
    kept: list[tuple[float, float]] = []
    kinks: list[float] = []
    for slope, level in lines:
        while kept:
            kink = (kept[-1][1] - level) / (slope - kept[-1][0])
            if kinks and kink <= kinks[-1]:
                kept.pop()
                kinks.pop()
            else:
                kinks.append(kink)
                break
        kept.append((slope, level))
    gain = 0.0
    for (left, _), (right, _), kink in zip(kept[:-1], kept[1:], kinks, strict=True):
        c = abs(kink)
        gain += (right - left) * (density(c) - c * math.erfc(c / math.sqrt(2)) / 2)
    return gain


numbers = st.one_of(st.floats(-3, 3, width=16), st.sampled_from([0.0, 0.5, 1.0, -1.0]))


@settings(max_examples=100, deadline=None)
@given(lines=arrays(float, st.tuples(st.just(2), st.integers(1, 4), st.integers(1, 9)), elements=numbers))
def test_polygon_gain_is_frazier_s_algorithm(lines: Array) -> None:
    a, b = lines
    expected = [frazier(-row_a, -row_b) for row_a, row_b in zip(a, b, strict=True)]
    np.testing.assert_allclose(polygon_gain(a, b), expected, atol=1e-12)


def test_polygon_gain_is_the_integral() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 30))
    z = np.linspace(-9, 9, 200_001)
    for row_a, row_b, gain in zip(a, b, polygon_gain(a, b), strict=True):
        lowest = (row_a[:, None] + row_b[:, None] * z).min(0)
        assert gain == pytest.approx(row_a.min() - np.trapezoid(lowest * norm.pdf(z), z), abs=1e-7)


def test_knowledge_gradient_one_candidate_at_a_time() -> None:
    c = candidates()
    for i, score in enumerate(acquisition("kg")(c)):
        expected = 0.0
        for w, m, S, v in zip(c.weights, c.mean, c.covariance, c.noise, strict=True):
            expected += w * frazier(-m, -S[i] / math.sqrt(S[i, i] + v))
        assert score == pytest.approx(expected, abs=1e-12)


def test_expected_improvement_is_the_integral() -> None:
    c = candidates()
    z = np.linspace(-9, 9, 20_001)
    for i, score in enumerate(acquisition("ei")(c)):
        expected = 0.0
        for w, m, S in zip(c.weights, c.mean, c.covariance, strict=True):
            response = m[i] + math.sqrt(S[i, i]) * z
            expected += w * np.trapezoid(np.maximum(m[c.tried].min() - response, 0) * norm.pdf(z), z)
        assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 2.0, 5.0])
def test_lower_confidence_bound_of_the_mixture(kappa: float) -> None:
    c = replace(candidates(), kappa=kappa)
    for i, score in enumerate(acquisition("lcb")(c)):
        mean = sum(w * m[i] for w, m in zip(c.weights, c.mean, strict=True))
        square = sum(w * (S[i, i] + m[i] ** 2) for w, m, S in zip(c.weights, c.mean, c.covariance, strict=True))
        assert score == pytest.approx(kappa * math.sqrt(square - mean**2) - mean, abs=1e-9)


def test_max_value_entropy_of_a_single_uncertain_point() -> None:
    # The minimum is the point itself, so that z is standard normal, and the score its expectation.
    only = replace(
        candidates(g=21),
        weights=np.ones(1),
        mean=np.array([[0.0, 100.0]]),
        covariance=np.diag([0.3, 1e-9])[None],
        noise=np.zeros(1),
    )
    z = np.linspace(-9, 9, 20_001)
    information = z * norm.pdf(z) / (2 * norm.cdf(z)) - norm.logcdf(z)
    expected = np.trapezoid(information * norm.pdf(z), z)
    scores = np.mean([acquisition("mes")(replace(only, seed=seed)) for seed in range(60)], axis=0)
    assert scores[0] == pytest.approx(expected, rel=0.03)
    assert scores[1] == pytest.approx(0.0, abs=1e-12)


def test_max_value_entropy_is_not_negative_and_depends_on_its_seed_only() -> None:
    c = candidates()
    scores = acquisition("mes")(c)
    assert (scores >= 0).all()
    assert np.array_equal(scores, acquisition("mes")(c))
    assert not np.array_equal(scores, acquisition("mes")(replace(c, seed=1)))


def test_log_noisy_ei_is_the_logarithm_of_a_monte_carlo_mean() -> None:
    c = candidates()
    with torch.no_grad():
        posterior = c.model.posterior(c.X).distribution
    rng = np.random.default_rng(5)
    paths = rng.multivariate_normal(posterior.mean.numpy(), posterior.covariance_matrix.numpy(), size=100_000)
    expected = np.maximum(paths[:, c.tried].min(1, keepdims=True) - paths, 0).mean(0)
    scores = np.exp(acquisition("log-nei")(c))
    large = expected > 0.002
    assert large.sum() >= 4
    np.testing.assert_allclose(scores[large], expected[large], rtol=0.15)
    assert np.argmax(scores) in np.argsort(expected)[-2:]


@pytest.mark.parametrize("name", sorted(ACQUISITIONS))
def test_no_global_generator_is_touched_and_noise_free_knowledge_has_no_value(name: str) -> None:
    c = candidates()
    np.random.seed(1)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    scores = acquisition(name)(c)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert scores.shape == (21,)
    assert np.isfinite(scores).all()
    # All prefer the unknown neighbourhood of the best point to the tried point that is surely bad.
    assert scores[c.tried].min() < scores.max()
    assert c.mean.mean(0)[np.argmax(scores)] < 0


def test_lookup_by_name() -> None:
    assert set(ACQUISITIONS) == {"kg", "ei", "lcb", "log-nei", "mes"}
    with pytest.raises(UnknownNameError, match=r"unknown acquisition 'ucb'; known: ei, kg, lcb, log-nei, mes"):
        acquisition("ucb")
