"""Gaussian processes over the unit log-rate: what loss to expect of a rate that was not tried.

Notation
    n, m    points observed, points asked about
    h       quadrature nodes, 3 x 3 x 3 = 27
    X       points (x, s): unit log-rate x = log(rate / low) / log(high / low), and the stage s    (n, 2)
    Y       outcomes, scaled so that 0 is the stage's start loss and -1 its best value              (n, 1)
    Yvar    known variance of each outcome                                                          (n, 1)

The kernel is k((x, s), (x', s')) = outputscale * matern52(|x - x'| / lengthscale) * (1 - eps)^(|s - s'| / 2), the
time-varying Gaussian process of Bogunovic et al. 2016 (arXiv 1601.06650, eq. 6), which forgets earlier stages at
the rate eps. The prior mean is a constant. Each outcome has its known variance plus one unknown noise variance.

Everything is float64 on the CPU, whatever the defaults of the program that trains.
"""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.settings import validate_input_scaling
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from numpy.typing import NDArray
from torch import Tensor

from autolrs.errors import UnknownNameError

Array = NDArray[np.float64]
_tensor = partial(torch.tensor, dtype=torch.float64, device="cpu")

FORGETTING: Final = 0.4
"""eps: how much is forgotten from one stage to the next; .4 was best on real responses."""

MIN_VARIANCE: Final = 1e-6
"""Least known variance: GPyTorch raises smaller ones to this, with a warning."""

_JITTER: Final = 1e-8


@dataclass(frozen=True, slots=True)
class Prior:
    """Log-normal prior of a positive hyperparameter; a `spread` (sd of its logarithm) of 0 fixes it."""

    median: float
    spread: float = 0.0

    @property
    def nodes(self) -> Tensor:
        """Three-point Gauss-Hermite nodes: they integrate a quintic in log-space exactly.   (3,)"""
        return self.median * torch.exp(self.spread * math.sqrt(3) * _tensor([-1.0, 0.0, 1.0]))


_NODE_WEIGHTS: Final = (1 / 6, 2 / 3, 1 / 6)
_ALL: Final = torch.arange(27, device="cpu")
"""Numbers of the nodes; the lengthscale varies slowest, the noise fastest."""


@dataclass(frozen=True, slots=True)
class Priors:
    """What is believed of a response before any rate is tried, in units of the stage's progress.

    Attributes:
        lengthscale: of the Matern kernel, in units of the searched range.
        outputscale: variance of the response about its mean.
        noise: variance that is common to all outcomes, on top of the known one.
        mean: constant prior mean.
    """

    lengthscale: Prior = Prior(0.15, 0.5)
    outputscale: Prior = Prior(0.25, 0.8)
    noise: Prior = Prior(0.003, 1.2)
    mean: float = 0.0


def stage_correlation(distance: Tensor) -> Tensor:
    """(1 - eps)^(|s - s'| / 2) for the stage difference s - s'."""
    return torch.exp(0.5 * math.log1p(-FORGETTING) * distance.abs())


def matern52(distance: Tensor) -> Tensor:
    """Matern kernel of smoothness 5/2 for distance / lengthscale (Rasmussen & Williams 2006, eq. 4.17)."""
    r = math.sqrt(5) * distance.abs()
    return (1 + r + r * r / 3) * torch.exp(-r)


class QuadratureGP(Model):
    """Exact GP whose three hyperparameters are integrated over fixed nodes instead of being fitted.

    The nodes are a Gauss-Hermite product rule for the priors; each is weighted by its prior weight times its
    marginal likelihood, and all 27 are factorised by one batched Cholesky. Nothing is optimised, so nothing
    depends on a start and nothing can fail to converge.

    `posterior` has the exact mean and covariance of the mixture over nodes, as one Gaussian: BoTorch's
    acquisitions run on it as on any single-output model. `nodes` gives the mixture itself.
    """

    def __init__(self, X: Tensor, Y: Tensor, Yvar: Tensor, priors: Priors | None = None) -> None:
        super().__init__()
        priors = priors or Priors()
        self.X, self.mean, self.lengthscales = X, priors.mean, priors.lengthscale.nodes
        # Only three of the 27 kernels differ by more than a factor: node i has the lengthscale numbered i // 9.
        self.outputscale, self.noise = torch.cartesian_prod(priors.outputscale.nodes, priors.noise.nodes).repeat(3, 1).T
        K = self._kernel(X, X, _ALL) + torch.diag_embed(Yvar.clamp_min(MIN_VARIANCE).mT + self.noise[:, None])
        self.L = torch.linalg.cholesky(K)
        residual = torch.linalg.solve_triangular(self.L, (Y - self.mean).expand(len(K), -1, -1), upper=False)
        self.alpha = torch.linalg.solve_triangular(self.L.mT, residual, upper=True)
        # log N(Y; mean, K) up to the constant that all nodes share (Rasmussen & Williams 2006, eq. 2.30)
        evidence = -0.5 * residual.square().sum((-2, -1)) - self.L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        prior = torch.cartesian_prod(*[_tensor(_NODE_WEIGHTS)] * 3).log().sum(-1)
        self.weights = torch.softmax(evidence + prior, 0)

    def _kernel(self, A: Tensor, B: Tensor, at: Tensor) -> Tensor:
        """Covariances of A (..., a, 2) and B (..., b, 2) at the nodes numbered `at`: (..., h, a, b)."""
        difference = (A[..., :, None, :] - B[..., None, :, :]).unsqueeze(-4)
        response = matern52(difference[..., 0] / self.lengthscales[:, None, None])
        unscaled = response * stage_correlation(difference[..., 1])
        covariance: Tensor = self.outputscale[at, None, None] * unscaled[..., at // 9, :, :]
        return covariance

    def _joint(self, X: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., h, q) and covariance (..., h, q, q) of the noise-free response, at the nodes numbered `at`."""
        across = self._kernel(X, self.X, at)
        V = torch.linalg.solve_triangular(self.L[at], across.mT, upper=False)
        return self.mean + (across @ self.alpha[at])[..., 0], self._kernel(X, X, at) - V.mT @ V

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GPyTorchPosterior:
        """Joint posterior at X (..., q, 2): a Gaussian with the mixture's mean and covariance.

        `observation_noise=True` adds the mean of the unknown noise; a tensor (..., q, 1) is added as it is.
        """
        mean, covariance = self._joint(X, _ALL)
        w = self.weights[:, None]
        centre = (w * mean).sum(-2)
        spread = mean - centre.unsqueeze(-2)
        # Law of total covariance over the nodes.
        total = (w[..., None] * covariance).sum(-3) + (w * spread).mT @ spread
        added = _tensor(_JITTER).expand(centre.shape)
        if isinstance(observation_noise, Tensor):
            added = added + observation_noise[..., 0]
        elif observation_noise:
            added = added + self.weights @ self.noise
        posterior = GPyTorchPosterior(MultivariateNormal(centre, total + torch.diag_embed(added)))
        return posterior if posterior_transform is None else posterior_transform(posterior)

    @torch.no_grad()
    def nodes(self, X: Tensor) -> tuple[Array, Array, Array, Array]:
        """The mixture at X (m, 2): weights (h,), means (h, m), covariances (h, m, m), noise variances (h,).

        Nodes of less than a thousandth of the largest weight are left out: they cost much and change nothing.
        """
        kept = (self.weights > 1e-3 * self.weights.max()).nonzero()[:, 0]
        mean, covariance = self._joint(X, kept)
        weights = self.weights[kept] / self.weights[kept].sum()
        return weights.numpy(), mean.numpy(), covariance.numpy(), self.noise[kept].numpy()


class MapGP(SingleTaskGP):
    """BoTorch's `SingleTaskGP` with the same kernel and priors, its hyperparameters fitted by MAP.

    The check twin of `QuadratureGP`: slower, and it takes one set of hyperparameters for granted. If the fit
    fails, they stay at the medians of their priors. Leaves the global generators as they were.
    """

    def __init__(self, X: Tensor, Y: Tensor, Yvar: Tensor, priors: Priors | None = None) -> None:
        priors = priors or Priors()
        # A Matern kernel of smoothness 1/2 is the exponential of the distance: the stages' correlation.
        response, stages = MaternKernel(nu=2.5, active_dims=[0]), MaternKernel(nu=0.5, active_dims=[1])
        likelihood = FixedNoiseGaussianLikelihood(
            Yvar.clamp_min(MIN_VARIANCE)[:, 0], learn_additional_noise=True, noise_constraint=GreaterThan(1e-6)
        )
        kernel = ScaleKernel(response * stages)
        with validate_input_scaling(False):  # stages lie outside the unit cube on purpose
            super().__init__(
                X, Y, likelihood=likelihood, covar_module=kernel, mean_module=ConstantMean(), outcome_transform=None
            )
        # Only now are the parameters float64.
        stages.lengthscale = -2 / math.log1p(-FORGETTING)
        self.mean_module.constant = priors.mean
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        _believe(response, "lengthscale", priors.lengthscale)
        _believe(kernel, "outputscale", priors.outputscale)
        _believe(likelihood.second_noise_covar, "noise", priors.noise)
        if any(parameter.requires_grad for parameter in self.parameters()):
            self._fit()
        self.eval()

    def _fit(self) -> None:
        start = deepcopy(self.state_dict())
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)  # for retries, which start from draws of the priors
            try:
                fit_gpytorch_mll(ExactMarginalLogLikelihood(self.likelihood, self))
            except (ModelFittingError, RuntimeError):
                self.load_state_dict(start)

    @torch.no_grad()
    def nodes(self, X: Tensor) -> tuple[Array, Array, Array, Array]:
        """As `QuadratureGP.nodes`, with one node."""
        joint = cast(GPyTorchPosterior, self.posterior(X)).distribution
        return (
            np.ones(1),
            joint.mean.numpy()[None],
            joint.covariance_matrix.numpy()[None],
            self.likelihood.second_noise.numpy(),
        )


def _believe(module: Any, name: str, prior: Prior) -> None:
    """Set a hyperparameter to its median; if it is not fixed, let it be fitted under its prior."""
    setattr(module, name, prior.median)
    if prior.spread:
        module.register_prior(f"{name}_prior", LogNormalPrior(math.log(prior.median), prior.spread).double(), name)
        getattr(module, f"raw_{name}").requires_grad_(True)


Surrogate = QuadratureGP | MapGP

SURROGATES: Final[dict[str, type[QuadratureGP] | type[MapGP]]] = {"quadrature": QuadratureGP, "single-task": MapGP}


def surrogate(name: str) -> type[QuadratureGP] | type[MapGP]:
    """The surrogate class of that name, to be called with (X, Y, Yvar, priors=None).

    Raises:
        UnknownNameError: there is none; the message lists them.
    """
    if name not in SURROGATES:
        raise UnknownNameError.of("surrogate", name, SURROGATES)
    return SURROGATES[name]
