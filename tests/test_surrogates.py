"""The integrated GP against BoTorch's exact GP and against a few lines of numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement, UpperConfidenceBound
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autolrs.errors import UnknownNameError
from autolrs.surrogates import FORGETTING, SURROGATES, MapGP, Prior, Priors, QuadratureGP, surrogate

Array = NDArray[np.float64]
FIXED = Priors(Prior(0.3), Prior(0.2), Prior(0.01), mean=-0.3)


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def data(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    X = np.stack([rng.uniform(size=n), rng.integers(3, size=n)], axis=-1)
    return tensor(X), tensor(0.4 * rng.standard_normal((n, 1))), tensor(rng.uniform(1e-4, 1e-2, (n, 1)))


def asked(stage: float = 2.0, m: int = 17) -> torch.Tensor:
    return tensor(np.stack([np.linspace(0, 1, m), np.full(m, stage)], axis=-1))


def exact_gp(X: Array, y: Array, var: Array, Z: Array, ell: float, scale: float, mean: float):  # type: ignore[no-untyped-def]
    """Slow twin: mean, covariance and log marginal likelihood by Rasmussen & Williams 2006, eq. 2.23-2.24, 2.30."""

    def k(A: Array, B: Array) -> Array:
        K = np.empty((len(A), len(B)))
        for i, (x, s) in enumerate(A):
            for j, (u, t) in enumerate(B):
                r = math.sqrt(5) * abs(x - u) / ell
                K[i, j] = scale * (1 + r + r * r / 3) * math.exp(-r) * (1 - FORGETTING) ** (abs(s - t) / 2)
        return K

    inverse = np.linalg.inv(K := k(X, X) + np.diag(var))
    across = k(Z, X)
    evidence = -0.5 * ((y - mean) @ inverse @ (y - mean) + np.linalg.slogdet(K)[1] + len(y) * math.log(2 * math.pi))
    return mean + across @ inverse @ (y - mean), k(Z, Z) - across @ inverse @ across.T, evidence


def test_equals_botorch_at_equal_hyperparameters() -> None:
    X, Y, Yvar = data()
    ours, theirs = QuadratureGP(X, Y, Yvar, FIXED), MapGP(X, Y, Yvar, FIXED)
    with torch.no_grad():
        a, b = ours.posterior(asked()), theirs.posterior(asked())
    torch.testing.assert_close(a.mean, b.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.distribution.covariance_matrix, b.distribution.covariance_matrix, atol=1e-6, rtol=0)
    for mine, other in zip(ours.nodes(asked())[1:], theirs.nodes(asked())[1:], strict=True):
        np.testing.assert_allclose(mine, np.broadcast_to(other, mine.shape), atol=1e-6)


def test_equals_the_mixture_written_out_in_numpy() -> None:
    X, Y, Yvar = data(8)
    priors = Priors(mean=0.1)
    model = QuadratureGP(X, Y, Yvar, priors)
    log_weights, means, covariances = [], [], []
    steps = ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6))
    for i, p in steps:
        for j, q in steps:
            for l, r in steps:  # noqa: E741
                ell, scale, noise = (
                    prior.median * math.exp(step * math.sqrt(3) * prior.spread)
                    for prior, step in ((priors.lengthscale, i), (priors.outputscale, j), (priors.noise, l))
                )
                var = Yvar.numpy()[:, 0] + noise
                m, S, evidence = exact_gp(X.numpy(), Y.numpy()[:, 0], var, asked().numpy(), ell, scale, priors.mean)
                log_weights.append(evidence + math.log(p * q * r))
                means.append(m)
                covariances.append(S)
    w = np.exp(np.array(log_weights) - np.logaddexp.reduce(log_weights))
    np.testing.assert_allclose(model.weights.numpy(), w, atol=1e-9)
    mean = sum(a * m for a, m in zip(w, means, strict=True))
    covariance = sum(a * (S + np.outer(m - mean, m - mean)) for a, m, S in zip(w, means, covariances, strict=True))
    posterior = model.posterior(asked())
    np.testing.assert_allclose(posterior.mean[:, 0].numpy(), mean, atol=1e-9)
    np.testing.assert_allclose(posterior.distribution.covariance_matrix.numpy(), covariance, atol=1e-7)
    # `nodes` leaves out what weighs nothing: the mean moves less than that.
    weights, kept, _, _ = model.nodes(asked())
    assert 1 < len(weights) < 27
    np.testing.assert_allclose(weights @ kept, mean, atol=5e-3)


def test_nodes_integrate_the_prior() -> None:
    prior = Prior(0.3, 0.5)
    log_nodes = np.log(prior.nodes.numpy() / 0.3) / 0.5
    for power, moment in enumerate((1, 0, 1, 0, 3, 0)):  # of the standard normal
        assert np.array([1 / 6, 2 / 3, 1 / 6]) @ log_nodes**power == pytest.approx(moment, abs=1e-12)


def test_without_data_it_is_the_prior() -> None:
    empty = torch.empty(0, 2, dtype=torch.float64), *[torch.empty(0, 1, dtype=torch.float64)] * 2
    posterior = QuadratureGP(*empty, FIXED).posterior(asked())
    torch.testing.assert_close(posterior.mean, torch.full_like(posterior.mean, FIXED.mean))
    torch.testing.assert_close(posterior.variance, torch.full_like(posterior.variance, 0.2), atol=1e-7, rtol=0)


def test_an_earlier_stage_is_partly_forgotten() -> None:
    X, Y, Yvar = tensor([[0.5, 0.0]]), tensor([[1.0]]), tensor([[1e-6]])
    model = QuadratureGP(X, Y, Yvar, Priors(Prior(0.3), Prior(0.2), Prior(1e-9), mean=0.0))
    for stage in (0, 1, 2, 5):
        expected = (1 - 0.4) ** (stage / 2)
        assert model.posterior(tensor([[0.5, float(stage)]])).mean.item() == pytest.approx(expected, rel=1e-4)


def test_the_order_of_observations_does_not_matter() -> None:
    X, Y, Yvar = data()
    order = torch.tensor(np.random.default_rng(3).permutation(len(X)))
    a, b = QuadratureGP(X, Y, Yvar), QuadratureGP(X[order], Y[order], Yvar[order])
    torch.testing.assert_close(a.posterior(asked()).mean, b.posterior(asked()).mean, atol=1e-12, rtol=0)


def test_observation_noise_is_added() -> None:
    X, Y, Yvar = data()
    model = QuadratureGP(X, Y, Yvar, FIXED)
    clean = model.posterior(asked()).variance
    torch.testing.assert_close(model.posterior(asked(), observation_noise=True).variance, clean + 0.01)
    given_noise = torch.full_like(clean, 0.5)
    torch.testing.assert_close(model.posterior(asked(), observation_noise=given_noise).variance, clean + 0.5)
    minus = ScalarizedPosteriorTransform(tensor([-1.0]))
    torch.testing.assert_close(model.posterior(asked(), posterior_transform=minus).mean, -model.posterior(asked()).mean)


def test_botorch_acquisitions_run_on_it_and_can_follow_its_gradient() -> None:
    X, Y, Yvar = data()
    X[:, 1] = 0
    model: Model = QuadratureGP(X, Y, Yvar)
    acquisition = UpperConfidenceBound(model, beta=4.0, maximize=False)
    points = asked(0.0, 201)
    scores = acquisition(points.unsqueeze(-2))
    found, value = optimize_acqf(
        acquisition, tensor([[0.0, 0.0], [1.0, 0.0]]), q=1, num_restarts=6, raw_samples=16, options={"seed": 0}
    )
    assert value.item() >= scores.max().item() - 1e-6
    assert abs(found[0, 0] - points[scores.argmax(), 0]) < 0.01
    assert torch.isfinite(LogExpectedImprovement(model, best_f=Y.min(), maximize=False)(points.unsqueeze(-2))).all()
    x = tensor([[[0.37, 0.0]], [[0.81, 0.0]]]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.posterior(x).mean, (x,))
    assert torch.autograd.gradcheck(lambda x: model.posterior(x).variance, (x,), atol=1e-4)


def test_map_fit_moves_from_the_median_and_leaves_generators_alone() -> None:
    X, Y, Yvar = data()
    state = torch.get_rng_state()
    model, fixed = MapGP(X, Y, Yvar), MapGP(X, Y, Yvar, Priors(Prior(0.15), Prior(0.25), Prior(0.003)))
    assert torch.equal(state, torch.get_rng_state())
    outputscale = model.covar_module.outputscale.item()
    assert outputscale != pytest.approx(0.25, rel=1e-3)
    assert fixed.covar_module.outputscale.item() == pytest.approx(0.25, rel=1e-6)
    stages = model.covar_module.base_kernel.kernels[1]
    assert math.exp(-1 / stages.lengthscale.item()) == pytest.approx((1 - FORGETTING) ** 0.5, rel=1e-6)


def test_default_type_and_device_do_not_matter() -> None:
    points, given_data = asked(), data()
    expected = QuadratureGP(*given_data).posterior(points).mean
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            actual = QuadratureGP(*given_data).posterior(points).mean
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(actual, expected)


@settings(max_examples=60, deadline=None)
@given(
    xs=st.lists(st.sampled_from([0.0, 0.3, 0.3 + 1e-15, 0.3 + 1e-9, 0.7, 1.0]), min_size=1, max_size=15),
    ys=st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=15, max_size=15),
    var=st.sampled_from([0.0, 1e-12, 9.0]),
)
def test_duplicates_are_no_trouble(xs: list[float], ys: list[float], var: float) -> None:
    n = len(xs)
    X = tensor(np.stack([xs, np.zeros(n)], axis=-1))
    model = QuadratureGP(X, tensor(ys[:n])[:, None], torch.full((n, 1), var, dtype=torch.float64))
    posterior = model.posterior(asked(0.0))
    assert torch.isfinite(posterior.mean).all()
    assert (posterior.variance > 0).all()
    assert (posterior.mean.abs() < 5).all()


def test_lookup_by_name() -> None:
    assert surrogate("quadrature") is QuadratureGP
    assert surrogate("single-task") is MapGP
    assert set(SURROGATES) == {"quadrature", "single-task"}
    with pytest.raises(UnknownNameError, match=r"unknown surrogate 'gp'; known: quadrature, single-task"):
        surrogate("gp")
