"""AutoLRS, the paper's strategy, with its defects mended.

Training is cut into stages of tau steps. From each stage's checkpoint, k rates are tried for tau' steps; their
losses are extrapolated to the stage's end (step tau), and the rate with the lowest forecast trains the stage.
The rate is constant within a stage. Greedy by design: it lowers the rate too soon (see `horizon` for a strategy
that does not).

References:
    Jin, Zhou, Zhao, Zhu, Guo, Canini, Krishnamurthy: "AutoLRS: Automatic Learning-Rate Schedule by Bayesian
    Optimization on the Fly", ICLR 2021, arXiv 2105.10762. Section and algorithm numbers below are the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from autolrs.curves import curve_model
from autolrs.curves.exponential import PublishedExponential
from autolrs.engine import remaining
from autolrs.errors import SettingError
from autolrs.protocols import CurveModel, Observation, Sampler
from autolrs.records import (
    Curve,
    Decide,
    Forecast,
    Instruction,
    Open,
    Probe,
    Probed,
    Record,
    Settings,
    Stage,
    Wait,
)
from autolrs.samplers import GPSampler
from autolrs.schedules import Piece, Schedule, base_pieces, cut
from autolrs.strategies.common import (
    PlannedStage,
    all_diverged,
    bounds_of,
    gave_up,
    lost_in_crash,
    objective_std,
    observations,
    of_stage,
    pooled_observations,
)


@dataclass(frozen=True)
class AutoLRS:
    """Stages of constant rate, each found by Bayesian optimisation on short probes (paper, algorithm 1).

    Attributes:
        tau: steps of the first stage (sec. 4.1); None: min(1000, steps / 16).
        tau_max: the length doubles from stage to stage up to this; None: min(8000, steps / 2).
        probe: tau' / tau, steps of a probe as a share of its stage (sec. 4.1).
        k: probes a stage (sec. 4.1).
        validations: validation losses per probe, once the stage length is `tau_max` (sec. 4.3): the training
            loss is forecast before, the validation loss from then on. 0: never.
        decay: share of the run over which the last rate decays linearly to zero; 0: it does not (the paper).
        pick: choose the rate by the surrogate's "posterior" mean, or by the smallest "forecast" (algorithm 1).
        pool: smooth the gains forecast over the rates of a stage, and rank last losses plus those: curves
            extrapolated one by one lose the order of their rates (docs/curves.md). False: the paper.
        sampler: proposes rates; the paper's is a GP with Matern 5/2 and a lower confidence bound (sec. 3.1).
        curves: forecasts a probe's loss at the end of the stage; None: the exponential (sec. 3.2).
    """

    tau: int | None = None
    tau_max: int | None = None
    probe: float = 0.1
    k: int = 10
    validations: int = 16
    decay: float = 0.2
    pick: str = "posterior"
    pool: bool = True
    sampler: Sampler = field(default_factory=lambda: GPSampler(acquisition="lcb", kappa=2.0))
    curves: CurveModel | None = None

    name = "autolrs"
    search_budget = 1.0

    def __post_init__(self) -> None:
        for rule, holds in (
            ("1 <= tau", self.tau is None or self.tau >= 1),
            ("1 <= tau_max", self.tau_max is None or self.tau_max >= 1),
            ("tau <= tau_max", self.tau is None or self.tau_max is None or self.tau <= self.tau_max),
            ("0 < probe <= 1", 0 < self.probe <= 1),
            ("1 <= k", self.k >= 1),
            ("0 <= validations", self.validations >= 0),
            ("0 <= decay < 1", 0 <= self.decay < 1),
            ("pick is 'posterior' or 'forecast'", self.pick in ("posterior", "forecast")),
        ):
            if not holds:
                raise SettingError(f"`{rule}` must hold in strategy 'autolrs', but got {self}.")

    @classmethod
    def published(cls) -> AutoLRS:
        """The settings of the released code, for benchmarks: kappa of 1e6 (pure exploration), an unbounded fit,
        the smallest forecast wins, no final decay."""
        return cls(
            tau=1000,
            tau_max=8000,
            decay=0.0,
            pick="forecast",
            pool=False,
            sampler=GPSampler(acquisition="lcb", kappa=1e6),
            curves=PublishedExponential(),
        )

    @cached_property
    def _model(self) -> CurveModel:
        return curve_model("exponential") if self.curves is None else self.curves

    def plan(self, settings: Settings) -> tuple[PlannedStage, ...]:
        """Stages, probes and their lengths."""
        planned: list[PlannedStage] = []
        start, left = 0, settings.budget
        while start < settings.steps:
            index = len(planned)
            tau = self._tau(settings, index)
            length = self._length(tau)
            probes = min(self.k, left // length)
            planned.append(PlannedStage(index, start, probes, length))
            left -= probes * length
            start = self._end(settings, index, start)
        return tuple(planned)

    def decide(self, record: Record, in_flight: Collection[int] = frozenset()) -> Instruction:
        """Algorithm 1: k probes, then the stage."""
        stage, settings = record.stage, record.settings
        if stage is None or (stage.decided and record.kept_steps == stage.stop):
            index = len(record.stages)
            return Open(stage=index, start=record.kept_steps, evaluate=self._validates(record, index))
        if (lost := lost_in_crash(stage, in_flight)) is not None:
            return self._probe(record, stage, lost.number, lost.rate, lost.length)
        length = self._length(self._tau(settings, stage.index))
        if stage.room is not None:
            length = min(length, stage.room)
        bounds = bounds_of(record, stage)
        if bounds is not None and len(stage.trials) < self.k and 0 < length <= remaining(record):
            rate = self.sampler.propose(
                self._observations(record),
                bounds=bounds,
                stage=stage.index,
                number=len(stage.trials),
                seed=settings.seed,
                first=settings.space.initial if stage.index == 0 else None,
            )
            return self._probe(record, stage, len(stage.trials), rate, length)
        return Wait() if in_flight else self._decide(record, stage)

    def judge(self, record: Record, probed: Probed) -> Forecast | None:
        """The loss at the end of the stage, L(tau) = a exp(-b tau) + c (sec. 3.2)."""
        if probed.objective is None:
            return None
        curve = probed.validation if self._validates(record, probed.stage) else probed.curve
        tau = self._tau(record.settings, probed.stage)
        if curve is None or not len(curve):
            return Forecast(float(tau), probed.objective, objective_std(probed))
        stage = record.stages[probed.stage]
        rate = stage.trials[probed.number].rate
        warmup = self._warmup(record.settings, stage, self._length(tau))
        schedule = Schedule(base_pieces("constant", rate=rate, start=0, stop=tau, warmup=warmup))
        history = () if curve is probed.validation else tuple(part.curve for part in record.kept)
        return self._model.extrapolate([curve], [float(tau)], schedule=schedule, history=history)[0]

    def prune(self, record: Record, probe: Probe, curve: Curve) -> str:
        """The paper runs every probe to its end."""
        return ""

    def _observations(self, record: Record) -> tuple[Observation, ...]:
        """What the sampler knows of all trials."""
        return pooled_observations(record) if self.pool else observations(record)

    def _tau(self, settings: Settings, stage: int) -> int:
        first = self.tau if self.tau is not None else max(1, min(1000, settings.steps // 16))
        return min(first * (1 << stage), self._tau_max(settings))

    def _tau_max(self, settings: Settings) -> int:
        return self.tau_max if self.tau_max is not None else max(self.tau or 1, min(8000, settings.steps // 2))

    def _length(self, tau: int) -> int:
        return max(1, round(self.probe * tau))

    def _end(self, settings: Settings, stage: int, start: int) -> int:
        return min(settings.steps, start + self._tau(settings, stage))

    def _validates(self, record: Record, stage: int) -> bool:
        """Whether this stage forecasts the validation loss: once tau has come to its maximum (sec. 4.3)."""
        settings = record.settings
        return record.validates and self.validations > 0 and self._tau(settings, stage) >= self._tau_max(settings)

    def _probe(self, record: Record, stage: Stage, number: int, rate: float, length: int) -> Probe:
        warmup = self._warmup(record.settings, stage, length)
        return Probe(
            stage=stage.index,
            number=number,
            rate=rate,
            length=length,
            pieces=base_pieces("constant", rate=rate, start=0, stop=length, warmup=warmup),
            validations=self.validations if self._validates(record, stage.index) else 0,
        )

    def _warmup(self, settings: Settings, stage: Stage, length: int) -> int:
        """The paper leaves warm-up to the user; ours is the space's, kept within half a probe so that it is tried."""
        return min(round(settings.space.warmup * settings.steps), length // 2) if stage.start == 0 else 0

    def _decide(self, record: Record, stage: Stage) -> Decide:
        settings = record.settings
        found = of_stage(self._observations(record), stage.index)
        previous = record.stages[-2].rate if stage.index else None
        winner = None
        if all_diverged(stage) and previous is None:
            raise gave_up(stage)
        if any(math.isfinite(o.value) for o in found):
            winner = self._pick(record, stage)
            rate, reason = stage.trials[winner].rate, f"lowest forecast of {len(stage.trials)} probes"
        elif previous is not None:
            rate, reason = previous, "kept: no probe to go by (budget spent, or all diverged)"
        else:
            rate = settings.space.initial or record.own_rate or math.sqrt(math.prod(settings.space.bounds))
            reason = "the search budget has no room for a probe"
        stop = self._end(settings, stage.index, stage.start)
        pieces = self._pieces(settings, stage, rate)
        return Decide(stage.index, rate, stop, pieces, winner=winner, reason=f"{rate:.3g}: {reason}")

    def _pick(self, record: Record, stage: Stage) -> int:
        found = self._observations(record)
        if self.pick == "forecast":
            good = [t for t in stage.trials if t.forecast is not None and math.isfinite(t.forecast.mean)]
            return min(good, key=lambda t: (t.forecast.mean if t.forecast else math.inf, t.rate)).number
        index = self.sampler.best(found, bounds=record.settings.space.bounds, stage=stage.index)
        return index - sum(len(s.trials) for s in record.stages[: stage.index])

    def _pieces(self, settings: Settings, stage: Stage, rate: float) -> tuple[Piece, ...]:
        """A constant rate to the end of the run, under the final decay; the next stage overwrites its part."""
        length = self._length(self._tau(settings, stage.index))
        warmup = self._warmup(settings, stage, length)
        pieces = base_pieces("constant", rate=rate, start=stage.start, stop=settings.steps, warmup=warmup)
        turn = settings.steps - round(self.decay * settings.steps)
        if turn >= settings.steps:
            return pieces
        # The decay's rate at the stage's start is what the searched rate is multiplied by from there on.
        decay = Piece(turn, settings.steps, "linear", rate, 0.0)
        begin = max(turn, stage.start)
        return (*cut(pieces, stage.start, begin), *cut((decay,), begin, settings.steps))
