"""Where to try the next rate, from what the rates tried so far gave.

Notation
    x       unit log-rate, log(rate / low) / log(high / low)
    y       scaled outcome, (value - start loss) / progress: 0 is the stage's start, -1 the best value seen in it
    z       what the surrogate sees: log(1 + (y + 1) / delta) on a scale where the start is 0 and the best is -1.
            Progress is most of a loss: near the best, differences of a hundredth of it are what counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from autolrs.acquisitions import Candidates, acquisition
from autolrs.errors import SettingError, UnknownNameError
from autolrs.protocols import Observation

if TYPE_CHECKING:
    from torch import Tensor

    from autolrs.surrogates import Surrogate

Bounds = tuple[float, float]

SURROGATES: Final = ("quadrature", "single-task")
"""Names known to `surrogates.surrogate`, written out here so that checking one does not import torch."""

GRID: Final = 81
"""Points that the acquisition is evaluated on; over four decades neighbours differ by 12 %."""

APART: Final = 0.02
"""Least distance in x between two rates of a stage; over four decades, 20 % of a rate."""

STRIDE: Final = 0.2
"""First step of a search in x."""

WORST: Final = 0.5
"""Outcomes count as at most this: how much worse than not training a rate was tells nothing of the others."""

WORST_STD: Final = 0.1
"""Least standard deviation of an outcome that counts as `WORST`: beyond it the response falls off a cliff that no
smooth function follows. From .03 to .25 all is the same."""

NOISE: Final = 4.0
"""Progress of fewer standard deviations is not told from noise: outcomes are then scaled by those."""

DELTA: Final = 0.003
"""Least delta of the logarithm; it is twice the outcomes' standard deviation where that is more, so that noise is not
blown up."""

MAX_STD: Final = 3.0
"""An outcome known no better than to three times the progress is not known."""


@dataclass(frozen=True, slots=True, order=True)
class _Point:
    """An observation in the surrogate's units; a pending one has no y (0) and no variance (0) yet."""

    stage: int
    x: float
    pending: bool
    z: float = 0.0
    variance: float = 0.0
    worst: bool = False  # the loss rose, or the probe diverged


@dataclass(frozen=True, slots=True)
class GPSampler:
    """Proposes rates by a Gaussian process over the log-rate.

    A search without a past starts in the middle of the bounds, goes down if the loss clearly rose and else up, and
    then follows the acquisition. Proposals made before anything has ended (several workers) spread to both sides of the
    start instead. A later stage starts at the best rate of the stage before. What a search without a past tries next
    lies between the tried neighbours of its best rate.
    A proposal depends on nothing but the arguments and touches no global generator; the order of the observations
    does not matter, nor do the units of loss and rate.

    Attributes:
        surrogate: "quadrature" or "single-task" (see `autolrs.surrogates`).
        acquisition: "kg", "ei", "lcb", "log-nei" or "mes" (see `autolrs.acquisitions`).
        kappa: standard deviations that "lcb" subtracts.

    Raises:
        UnknownNameError: no such surrogate or acquisition.
        SettingError: `kappa` is negative or not finite.
    """

    surrogate: str = "quadrature"
    acquisition: str = "kg"
    kappa: float = 2.0

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise UnknownNameError.of("surrogate", self.surrogate, SURROGATES)
        acquisition(self.acquisition)
        if not 0 <= self.kappa < math.inf:
            raise SettingError(f"`0 <= kappa < inf` must hold, but got (kappa={self.kappa}).")

    def propose(
        self,
        observations: Sequence[Observation],
        *,
        bounds: Bounds,
        stage: int,
        number: int,
        seed: int,
        first: float | None = None,
    ) -> float:
        """The next rate to try in `stage`, within `bounds`.

        Args:
            first: where a search without a past starts; None: the geometric middle of the bounds.
        """
        if bounds[0] == bounds[1]:
            return bounds[0]
        points = _points(observations, bounds)
        here = [point for point in points if point.stage == stage]
        if not here:
            start = self._last_best(observations, bounds) or first
            return _rate(0.5, bounds) if start is None else _clip(start, bounds)
        x = None
        if all(point.pending for point in points):
            x = _spread(points, 0.5 if first is None else _unit(_clip(first, bounds), bounds))
        elif len(here) == len(points):
            x = _opening(points)
        if x is None:
            import torch

            with torch.device("cpu"):  # whatever the program that trains has made its default
                x = self._follow(points, here, [seed, stage, number])
        return _rate(x, bounds)

    def best(self, observations: Sequence[Observation], *, bounds: Bounds, stage: int) -> int:
        """Index of the stage's tried rate with the lowest posterior mean.

        Raises:
            ValueError: no finished, finite observation of that stage.
        """
        tried = _tried(observations, stage)
        x = [_unit(observations[index].rate, bounds) for index in tried]
        mean = self._mean(observations, bounds, stage, x)
        # Ties up to rounding go to the lower rate, so that neither order nor units decide them.
        return min(
            zip(tried, x, mean, strict=True),
            key=lambda item: (round(item[2], 9), item[1], observations[item[0]].value),
        )[0]

    def optimum(self, observations: Sequence[Observation], *, bounds: Bounds, stage: int) -> float:
        """The rate with the lowest posterior mean, tried or not, between the lowest and the highest one tried.

        Raises:
            ValueError: no finished, finite observation of that stage.
        """
        tried = [_unit(observations[index].rate, bounds) for index in _tried(observations, stage)]
        grid = [u for u in np.linspace(0.0, 1.0, 2 * GRID - 1).tolist() if min(tried) < u < max(tried)]
        x = sorted({*tried, *grid})
        mean = self._mean(observations, bounds, stage, x)
        return _rate(min(zip((round(m, 9) for m in mean), x, strict=True))[1], bounds)

    def _mean(self, observations: Sequence[Observation], bounds: Bounds, stage: int, x: Sequence[float]) -> list[float]:
        """Posterior means of `stage`'s response at the unit log-rates `x`."""
        import torch

        with torch.device("cpu"), torch.no_grad():
            model = self._fit([point for point in _points(observations, bounds) if not point.pending])
            means: list[float] = model.posterior(_tensor([(u, stage) for u in x])).mean[:, 0].tolist()
        return means

    def posterior(
        self, observations: Sequence[Observation], *, bounds: Bounds, stage: int, rates: Sequence[float]
    ) -> tuple[list[float], list[float], list[float]]:
        """Median, and lower and upper end of the 68 % interval [loss], expected of `rates` now; for people.

        Raises:
            ValueError: no finished, finite observation of that stage.
        """
        import torch

        here = [trial for trial in observations if trial.stage == stage]
        if not any(map(_finished, here)):
            raise ValueError(f"stage {stage} has no finished, finite trial among {len(observations)} observations.")
        past = [trial for trial in observations if trial.stage <= stage and not trial.pending]
        scale = _Scale.of(here)
        with torch.no_grad():
            posterior = self._fit(_points(past, bounds)).posterior(_tensor([(_unit(r, bounds), stage) for r in rates]))
        z = list(zip(posterior.mean[:, 0].tolist(), posterior.variance[:, 0].sqrt().tolist(), strict=True))
        median, low, high = ([scale.loss(mean + k * std) for mean, std in z] for k in (0, -1, 1))
        return median, low, high

    def _last_best(self, observations: Sequence[Observation], bounds: Bounds) -> float | None:
        """Best rate of the last stage that has one."""
        stages = [trial.stage for trial in observations if _finished(trial)]
        return observations[self.best(observations, bounds=bounds, stage=max(stages))].rate if stages else None

    def _fit(self, points: Sequence[_Point]) -> Surrogate:
        """The surrogate of the finished points, and of the pending ones as if they had given the mean expected of
        them (kriging believer; Ginsbourger et al. 2010, Kriging Is Well-Suited to Parallelize Optimization)."""
        import torch

        from autolrs.surrogates import Priors, surrogate

        make = surrogate(self.surrogate)
        done = [point for point in points if not point.pending]
        X = _tensor([(point.x, point.stage) for point in done]).reshape(-1, 2)
        Y = _tensor([point.z for point in done]).reshape(-1, 1)
        Yvar = _tensor([point.variance for point in done]).reshape(-1, 1)
        if len(done) == len(points):
            return make(X, Y, Yvar)
        waiting = _tensor([(point.x, point.stage) for point in points if point.pending])
        with torch.no_grad():
            mean = make(X, Y, Yvar).posterior(waiting).mean if done else _tensor([[Priors().mean]] * len(waiting))
        return make(torch.cat([X, waiting]), torch.cat([Y, mean]), torch.cat([Yvar, torch.zeros_like(mean)]))

    def _follow(self, points: Sequence[_Point], here: Sequence[_Point], entropy: Sequence[int]) -> float:
        """x of the acquisition's best grid point among those that keep their distance from all tried ones."""
        grid = np.linspace(0.0, 1.0, GRID)
        tried = np.array([point.x for point in here])
        distance = np.abs(grid[:, None] - tried).min(1)
        free = distance >= APART
        if not free.any():
            return float(grid[np.argmax(distance)])
        low, high = _bracket(here) if len(here) == len(points) else (-math.inf, math.inf)
        if (within := free & (low < grid) & (grid < high)).any():
            free = within
        model = self._fit(points)
        X = _tensor(np.stack([grid, np.full(GRID, float(here[0].stage))], axis=-1))
        weights, mean, covariance, noise = model.nodes(X)
        candidates = Candidates(
            model=model,
            X=X,
            tried=np.rint(tried.clip(0.0, 1.0) * (GRID - 1)).astype(np.intp),
            weights=weights,
            mean=mean,
            covariance=covariance,
            noise=noise + median([point.variance for point in here if not point.pending] or [0.0]),
            kappa=self.kappa,
            seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
        )
        scores = np.where(free, acquisition(self.acquisition)(candidates), -np.inf)
        # Ties up to rounding go to the lower rate, so that units do not decide them.
        tie = 1e-9 * (scores.max() - scores[free].min())
        return float(grid[np.argmax(scores >= scores.max() - tie)])


def warm_up() -> None:
    """Take the time that a first proposal in a process needs (imports, for the most part) before it is asked for."""
    told = [Observation(rate, value, 0.01, 0, 1.0) for rate, value in ((0.03, 0.5), (0.1, 0.3), (0.3, 0.7))]
    sampler, bounds = GPSampler(), (1e-3, 1.0)
    sampler.propose(told, bounds=bounds, stage=0, number=len(told), seed=0)
    sampler.optimum(told, bounds=bounds, stage=0)


def _tried(observations: Sequence[Observation], stage: int) -> list[int]:
    tried = [index for index, trial in enumerate(observations) if trial.stage == stage and _finished(trial)]
    if not tried:
        raise ValueError(f"stage {stage} has no finished, finite trial among {len(observations)} observations.")
    return tried


def _unit(rate: float, bounds: Bounds) -> float:
    low, high = map(math.log, bounds)
    return (math.log(rate) - low) / (high - low)


def _rate(x: float, bounds: Bounds) -> float:
    low, high = map(math.log, bounds)
    return _clip(math.exp(low + x * (high - low)), bounds)


def _clip(rate: float, bounds: Bounds) -> float:
    return min(max(rate, bounds[0]), bounds[1])


def _tensor(values: Any) -> Tensor:
    import torch

    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def _finished(trial: Observation) -> bool:
    return not trial.pending and math.isfinite(trial.value)


def _opening(here: Sequence[_Point]) -> float | None:
    """x of the second and third proposal of a search without a past; None: the surrogate knows better.

    Down if the loss rose (by more than twice its noise: then it counts as `WORST`), else up: a rate without effect
    is too small. Then half as far on from the better of the two.
    """
    if len(here) > 2 or any(point.pending for point in here):
        return None
    best = min(here, key=lambda point: (point.z, point.x))
    if len(here) == 1:
        x = best.x + (-STRIDE if best.worst else STRIDE)
    else:
        other = here[0] if best is here[1] else here[1]
        x = best.x + 0.5 * (best.x - other.x)
    x = min(max(x, 0.0), 1.0)
    return x if all(abs(x - point.x) >= APART for point in here) else None


def _bracket(here: Sequence[_Point]) -> tuple[float, float]:
    """Between which x the lowest outcome is: its tried neighbours; where there is none, a step of `STRIDE` away.

    What a rate brings has one minimum: too low a rate learns little, too high a one breaks. The surrogate does not
    know, and would spend one probe in four far outside, where nothing was tried because nothing was to be found.
    """
    done = [point for point in here if not point.pending]
    best = min(done, key=lambda point: (point.z, point.x), default=None)
    if best is None or best.worst:
        return -math.inf, math.inf
    lower, upper = ([p.x for p in done if p.x < best.x], [p.x for p in done if p.x > best.x])
    return max(lower, default=best.x - STRIDE - APART), min(upper, default=best.x + STRIDE + APART)


def _spread(here: Sequence[_Point], start: float) -> float | None:
    """x of a proposal of which nothing can be known, because no probe has ended; None: no room is left.

    Steps of `STRIDE` up and down from the start in turn, as far as the bounds go; then half-way between those.
    """
    reach = range(1, math.ceil(1 / STRIDE) + 1)
    offsets = (sign * (step - shift) for shift in (0.0, 0.5) for step in reach for sign in (1, -1))
    free = (x for offset in offsets if 0 <= (x := start + offset * STRIDE) <= 1)
    return next((x for x in free if all(abs(x - point.x) >= APART for point in here)), None)


def _points(observations: Sequence[Observation], bounds: Bounds) -> list[_Point]:
    """All observations in the surrogate's units, those of each stage by its own start loss and progress; sorted, so
    that their order does not matter."""
    stages = {trial.stage for trial in observations}
    return sorted(point for stage in stages for point in _scaled([t for t in observations if t.stage == stage], bounds))


def _scaled(trials: Sequence[Observation], bounds: Bounds) -> list[_Point]:
    """The observations of one stage."""
    scale = _Scale.of(trials)
    points = []
    for trial in trials:
        x = _unit(trial.rate, bounds)
        if trial.pending:
            points.append(_Point(trial.stage, x, pending=True))
            continue
        y, variance = scale.outcome(trial)
        points.append(_Point(trial.stage, x, False, scale.warp(y), variance * scale.slope(y) ** 2, y >= WORST))
    return points


@dataclass(frozen=True, slots=True)
class _Scale:
    """From the losses of one stage to what the surrogate sees: y = (loss / size - start) / progress, z = warp(y).

    Dividing by the largest magnitude first keeps differences of huge losses finite. Without progress the spread of
    the values takes its place; either is at least `NOISE` standard deviations.
    """

    size: float
    start: float
    progress: float
    delta: float

    @classmethod
    def of(cls, trials: Sequence[Observation]) -> _Scale:
        finite = [trial for trial in trials if _finished(trial)]
        starts = [trial.start_loss for trial in finite if math.isfinite(trial.start_loss)]
        size = max([abs(loss) for loss in (*starts, *(trial.value for trial in finite))], default=0.0) or 1.0
        if not finite:
            return cls(size, 0.0, 1.0, 1.0)
        values = [trial.value / size for trial in finite]
        start = max(starts) / size if starts else max(values)
        progress = start - min(values)
        if progress <= 0:
            progress = max(values) - start
        noise = median([trial.std / size for trial in finite if 0 <= trial.std < math.inf] or [0.0])
        progress = max(progress, NOISE * noise) or 1.0
        return cls(size, start, progress, min(1.0, max(DELTA, 2 * noise / progress)))

    def outcome(self, trial: Observation) -> tuple[float, float]:
        """y and its variance; a diverged probe counts as `WORST`, like one that is worse than that."""
        if not math.isfinite(trial.value):
            return WORST, WORST_STD**2
        y = (trial.value / self.size - self.start) / self.progress
        std = trial.std / self.size / self.progress
        variance = _censored_variance(y, min(std, MAX_STD) if std >= 0 else MAX_STD)
        return (y, variance) if y < WORST else (WORST, max(variance, WORST_STD**2))

    def warp(self, y: float) -> float:
        return math.log((max(y, -1.0) + 1 + self.delta) / (1 + self.delta)) / self._range

    def slope(self, y: float) -> float:
        """dz/dy."""
        return 1 / ((max(y, -1.0) + 1 + self.delta) * self._range)

    def loss(self, z: float) -> float:
        """The loss that z stands for."""
        y = (1 + self.delta) * math.exp(min(z * self._range, 50.0)) - 1 - self.delta
        return self.size * (self.start + self.progress * y)

    @property
    def _range(self) -> float:
        return math.log((1 + self.delta) / self.delta)


def _censored_variance(y: float, std: float) -> float:
    """Variance of min(V, WORST), V normal (Tobin 1958): what lies surely beyond `WORST` is surely known to."""
    if y + 6 * std <= WORST:
        return std * std
    if y - 8 * std >= WORST:
        return 0.0
    a = (WORST - y) / std
    below, density = 0.5 * math.erfc(-a / math.sqrt(2)), math.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    return max(std * std * ((1 + a * a) * below + a * density - (a * below + density) ** 2), 0.0)
