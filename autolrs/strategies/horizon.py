"""The default strategy: judge a rate by a complete miniature of the rest of the run.

A probe at rate eta from kept step s is the rest of the run in small: warm-up, plateau at eta, decay to zero, over a
few per cent of the steps. What it ends at is compared with what the others ended at, on the same batches. So a
rate is never rewarded for cashing in the gain of annealing early, which makes greedy search walk down (docs:
algorithm; Wu et al. 2018, arXiv 1803.02021). The winner's state at the *end of its plateau* is kept as training;
the annealed one is thrown away. What remains runs on the base schedule, which always decays to zero.

When the rate is found, each momentum that the space names is tried beside the optimizer's own, at that rate (for SGD at
the rate that leaves the size of updates as it is), and kept if its miniature ends lower than all others: a short run
says of the momentum what a long one does (docs/choices.md), unlike of rates for groups of parameters.

A run R steps long wants a lower rate than a miniature of m steps: the best rate falls as length^-gamma. Gamma is about
0.32 for language models (Bjorck et al. 2024, arXiv 2409.19913, sec. 3) and less, or nothing, where a network has
normalisation and weight decay; 0.25 lies between, and did as well as 0.32 where both were tried (docs/choices.md). So a
candidate eta for the run is tried at eta (R/m)^gamma.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from autolrs.curves import curve_model
from autolrs.curves.pooled import last
from autolrs.curves.stopping import chance
from autolrs.engine import remaining
from autolrs.errors import SettingError
from autolrs.momentum import equivalent
from autolrs.protocols import CurveModel, Sampler
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
    Trial,
    TrialState,
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
    of_rates,
    of_stage,
    recent,
)

ENOUGH: Final = 4
"""Probes of rates before another momentum is tried."""

LEAST_WARMUP: Final = 0.1
"""Share of a probe that its rate rises where the run has no warm-up: the probe's rate is above the run's."""


@dataclass(frozen=True)
class Horizon:
    """Miniatures of the rest of the run as probes.

    Attributes:
        length: steps of a probe, as a share of the run's steps.
        shortest: steps of a probe at least, whatever the share.
        gamma: the best rate falls as length^-gamma; a probe's rate is the candidate's times (R/m)^gamma.
        warmup: share of a probe that its rate rises at most. It rises for as many steps as the run's would: a network
            that is given fewer breaks at rates that the run can take.
        decay: share of a probe that its rate decays.
        first_share: share of the budget that the first search may spend if others follow (`later`); else it may spend
            all.
        adopt: keep the winner's plateau as training (cheaper); False: start again from the checkpoint (better).
        prune_losers: stop probes that cannot win.
        stop: "paired" stops a probe that has made less than half of the best one's progress by the same step,
            "chance" one whose chance of beating the best one is below `beat`, as the curve model sees it. A miniature
            gains most as its rate decays, which curve models underrate: "chance" saves more and errs more.
        beat: see `stop`.
        later: kept steps, as shares of the run, at which the rate is looked at again.
        clear: a later stage changes the rate only for a gain of this many standard deviations.
        sampler: proposes rates.
        curves: forecasts a probe's end where `stop` is "chance"; None: `auto`.
    """

    length: float = 0.06
    shortest: int = 10
    gamma: float = 0.25
    warmup: float = 0.5
    decay: float = 0.5
    first_share: float = 0.8
    adopt: bool = False
    prune_losers: bool = True
    stop: str = "paired"
    beat: float = 0.05
    later: tuple[float, ...] = ()
    clear: float = 2.0
    sampler: Sampler = field(default_factory=GPSampler)
    curves: CurveModel | None = None

    name = "horizon"
    search_budget = 0.3

    def __post_init__(self) -> None:
        for rule, holds in (
            ("0 < length <= 0.5", 0 < self.length <= 0.5),
            ("shortest >= 4", self.shortest >= 4),
            ("0 <= gamma <= 1", 0 <= self.gamma <= 1),
            ("warmup >= 0", self.warmup >= 0),
            ("decay > 0, warmup + decay <= 1", self.decay > 0 and self.warmup + self.decay <= 1),
            ("0 < first_share <= 1", 0 < self.first_share <= 1),
            ("stop is 'paired' or 'chance'", self.stop in ("paired", "chance")),
            ("0 <= beat < 1", 0 <= self.beat < 1),
            ("clear >= 0", self.clear >= 0),
            ("0 < later < 1, rising", all(a < b for a, b in zip((0.0, *self.later), (*self.later, 1.0), strict=True))),
        ):
            if not holds:
                raise SettingError(f"`{rule}` must hold in strategy 'horizon', but got {self}.")

    @cached_property
    def _model(self) -> CurveModel:
        return curve_model("auto") if self.curves is None else self.curves

    def plan(self, settings: Settings) -> tuple[PlannedStage, ...]:
        """Stages, probes and their lengths, if no probe is stopped early."""
        stages, spent = [], 0
        for index, start in enumerate(self._starts(settings)):
            length = self._length(settings, start)
            left = self._allowance(settings, index) - spent
            probes = max(0, left // length) if self._long_enough(settings, length) else 0
            stages.append(PlannedStage(index, start, probes, length))
            spent += probes * length
        return tuple(stages)

    def decide(self, record: Record, in_flight: Collection[int] = frozenset()) -> Instruction:
        stage, settings = record.stage, record.settings
        if stage is None or (stage.decided and record.kept_steps == stage.stop):
            return Open(stage=len(record.stages), start=record.kept_steps, evaluate=True)
        if (lost := lost_in_crash(stage, in_flight)) is not None:
            return self._probe(record, stage, lost.number, lost.rate, lost.length, lost.momentum)
        length = self._length(settings, stage.start)
        if stage.room is not None:
            length = min(length, stage.room)
        spent = settings.budget - remaining(record)  # probes in flight as their whole length
        left = min(settings.budget, self._allowance(settings, stage.index)) - spent
        if self._long_enough(settings, length):
            number, momenta = len(stage.trials), self._untried(record, stage)
            rate = self._propose(record, stage) if left >= (1 + len(momenta)) * length else None
            if rate is not None:
                return self._probe(record, stage, number, rate, length, record.momentum)
            if momenta and left >= length and self._ended_well(record, stage):
                rate = self._at(record, self._optimum(record, stage), momenta[0])
                return self._probe(record, stage, number, rate, length, momenta[0])
        if in_flight:
            return Wait()
        end = next((start for start in self._starts(settings) if start > stage.start), settings.steps)
        return self._decide(record, stage, end)

    def judge(self, record: Record, probed: Probed) -> Forecast | None:
        """The loss at the miniature's end. A probe stopped early is judged where it stopped, with more doubt."""
        if probed.objective is None:
            return None
        std = objective_std(probed)
        if probed.state is TrialState.PRUNED:
            start_loss = record.stages[probed.stage].start_loss
            first = probed.first_loss if start_loss is None else start_loss
            std += 0.25 * abs((first if first is not None else probed.objective) - probed.objective)
        length = record.stages[probed.stage].trials[probed.number].length
        return Forecast(at=float(length), mean=probed.objective, std=std)

    def prune(self, record: Record, probe: Probe, curve: Curve) -> str:
        """Stop a probe that will hardly beat the best finished one; not before half of its decay, which rewards a high
        rate most."""
        stage = record.stages[probe.stage]
        done = curve.offsets[-1] + 1 if len(curve) else 0
        best = self._best(stage)
        if not self.prune_losers or best is None or best.curve is None or done < (1 - self.decay / 2) * probe.length:
            return ""
        if self.stop == "paired":
            return _outpaced(curve, best, best.curve, done)
        forecast = self._model.extrapolate(
            [curve],
            [float(probe.length)],
            schedule=Schedule(probe.pieces),
            history=[part.curve for part in record.kept],
        )
        rivals = [trial.curve for trial in stage.trials if trial.state is TrialState.COMPLETE and trial.curve]
        wins = chance(curve, forecast, last(best.curve)[0], rivals)
        return f"a chance of {wins:.1%} to beat the best probe at step {int(done)}" if wins < self.beat else ""

    def miniature(self, rate: float, length: int, warmup: int | None) -> tuple[tuple[Piece, ...], int]:
        """A run in small: `length` updates with their plateau at `rate`, and the offset at which it ends.

        Args:
            warmup: updates that the whole run warms up for; None: its beginning is over.
        """
        plateau = length - max(1, round(self.decay * length))
        rises = 0
        if warmup is not None:
            rises = min(plateau, round(min(self.warmup * length, max(warmup, LEAST_WARMUP * length))))
        decay = (length - plateau) / length
        return base_pieces("wsd", rate=rate, start=0, stop=length, warmup=rises, decay=decay), plateau

    def _starts(self, settings: Settings) -> list[int]:
        """Kept steps at which a stage starts. None is shorter than its probes, so a very short run has fewer."""
        starts = [0]
        for start in (round(share * settings.steps) for share in self.later):
            if starts[-1] + self._length(settings, starts[-1]) <= start < settings.steps:
                starts.append(start)
        return starts

    def _length(self, settings: Settings, start: int) -> int:
        """Steps of a miniature of what remains at kept step `start`, which it does not exceed."""
        return min(settings.steps - start, max(self.shortest, round(self.length * settings.steps)))

    def _long_enough(self, settings: Settings, length: int) -> bool:
        return length >= min(self.shortest, settings.steps)

    def _allowance(self, settings: Settings, stage: int) -> int:
        """Probe steps that may be spent by the end of this stage's search."""
        later = len(self._starts(settings)) - 1
        share = self.first_share + (1 - self.first_share) * stage / later if later else 1.0
        return int(share * settings.budget + 1e-9)

    def _propose(self, record: Record, stage: Stage) -> float | None:
        """The next rate to try; a later stage first tries the one in force. None: there is no use in another probe."""
        settings, bounds = record.settings, bounds_of(record, stage)
        no_room = any(trial.steps == 0 and trial.state is TrialState.PRUNED for trial in stage.trials)
        if bounds is None or no_room:
            return None
        if stage.index and not stage.trials:
            return record.stages[-2].rate
        return self.sampler.propose(
            observations(record),
            bounds=bounds,
            stage=stage.index,
            number=len(stage.trials),
            seed=settings.seed,
            first=settings.space.initial,
        )

    def _untried(self, record: Record, stage: Stage) -> list[float]:
        """The values of momentum to be tried from now on, once the rate is about known.

        A plateau that is to be adopted is trained with the own one.
        """
        own, rates = record.own_momentum, sum(trial.momentum is None for trial in stage.trials)
        if stage.index or self.adopt or own is None or rates < ENOUGH:
            return []
        tried = {own, *(trial.momentum for trial in stage.trials)}
        return [momentum for momentum in record.settings.space.momentum if momentum not in tried]

    def _at(self, record: Record, rate: float, momentum: float) -> float:
        """The rate to go with another momentum."""
        assert record.own_momentum is not None
        return equivalent(rate, record.own_momentum, momentum, record.sums_gradients)

    def _ended_well(self, record: Record, stage: Stage) -> bool:
        """Whether some probe of a rate has a finite loss."""
        return any(math.isfinite(o.value) for o in of_stage(observations(record), stage.index))

    def _probe(
        self, record: Record, stage: Stage, number: int, rate: float, length: int, momentum: float | None
    ) -> Probe:
        pieces, plateau = self._miniature(record.settings, stage, rate, length)
        return Probe(
            stage=stage.index,
            number=number,
            rate=rate,
            length=length,
            pieces=pieces,
            keep=plateau if self.adopt else 0,
            incumbent=self._incumbent(record, stage),
            momentum=momentum,
            whole=True,
        )

    def _miniature(self, settings: Settings, stage: Stage, rate: float, length: int) -> tuple[tuple[Piece, ...], int]:
        """The rest of the run in small, in offsets, and the offset at which its plateau ends."""
        stretched = rate * ((settings.steps - stage.start) / length) ** self.gamma
        own = round(settings.space.warmup * settings.steps)
        return self.miniature(stretched, length, own if stage.start == 0 else None)

    def _incumbent(self, record: Record, stage: Stage) -> int | None:
        """Number of the trial that would win if the search ended now: its plateau is worth keeping in memory."""
        return self._winner(record, stage).number if self._ended_well(record, stage) else None

    def _winner(self, record: Record, stage: Stage) -> Trial:
        index = self.sampler.best(observations(record), bounds=record.settings.space.bounds, stage=stage.index)
        return of_rates(record)[index]

    def _optimum(self, record: Record, stage: Stage) -> float:
        """Nothing ties a run that starts from the checkpoint to one of a few tried rates."""
        return self.sampler.optimum(observations(record), bounds=record.settings.space.bounds, stage=stage.index)

    def _best(self, stage: Stage) -> Trial | None:
        done = [t for t in stage.trials if t.state is TrialState.COMPLETE and t.objective is not None]
        return min(done, key=lambda t: (t.objective, t.rate), default=None)

    def _decide(self, record: Record, stage: Stage, stop: int) -> Decide:
        previous = record.stages[-2].rate if stage.index else None
        if all_diverged(stage) and previous is None:
            raise gave_up(stage)
        if self._ended_well(record, stage):
            winner = self._winner(record, stage)
            if previous is None or self._clearly_better(stage, winner, previous):
                rate = winner.rate if self.adopt else self._optimum(record, stage)
                why = _why(stage, winner, rate) + _at_a_bound(rate, record.settings.space.bounds)
                other = self._other_momentum(stage)
                if other is None:
                    return self._changed(record, stage, stop, rate, winner, why, record.momentum)
                assert other.momentum is not None
                rate = self._at(record, rate, other.momentum)
                why = f"{why}; momentum {other.momentum:g} for {record.own_momentum:g} ended at {other.objective:.4g}"
                return self._changed(record, stage, stop, rate, other, why, other.momentum)
            reason = "nothing clearly better"
        else:
            reason = "no probe ended well" if stage.trials else self._why_none(record, stage)
        if previous is None:
            known = record.settings.space.initial or record.own_rate
            assert known is not None
            return self._changed(record, stage, stop, known, None, f"took {known:.3g} untried: {reason}", None)
        # What was planned goes on to the float: a decay that has begun does not begin anew.
        pieces = cut(record.pieces, stage.start, record.settings.steps)
        return Decide(
            stage.index, previous, stop, pieces, reason=f"kept {previous:.3g}: {reason}", momentum=record.momentum
        )

    def _other_momentum(self, stage: Stage) -> Trial | None:
        """The trial of another momentum that ended lower than every other trial of a first search, if one did."""
        best = self._best(stage)
        return best if best is not None and best.momentum is not None and stage.index == 0 else None

    def _why_none(self, record: Record, stage: Stage) -> str:
        length = self._length(record.settings, stage.start)
        if stage.room is not None and stage.room < length:
            return (
                f"a probe has {length} steps, the loader's pass only {stage.room} left; let `batches` make the epochs"
            )
        return "no probe fits the budget"

    def _clearly_better(self, stage: Stage, winner: Trial, previous: float) -> bool:
        old = next((t for t in stage.trials if math.isclose(t.rate, previous, rel_tol=1e-6) and t.forecast), None)
        if old is None or old.forecast is None or winner.forecast is None:
            return False
        gain = old.forecast.mean - winner.forecast.mean
        return gain > self.clear * math.hypot(old.forecast.std, winner.forecast.std)

    def _changed(
        self,
        record: Record,
        stage: Stage,
        stop: int,
        rate: float,
        winner: Trial | None,
        reason: str,
        momentum: float | None,
    ) -> Decide:
        """Warm-up and plateau of the winner's probe, then the base schedule for what remains of the run."""
        settings, space = record.settings, record.settings.space
        steps, start = settings.steps, stage.start
        if winner is not None and self.adopt:
            pieces, plateau = self._miniature(settings, stage, rate, winner.length)
            adopted = tuple(piece.shifted(start) for piece in cut(pieces, 0, plateau))
            warmup = 0
        else:
            adopted, plateau = (), 0
            warmup = round(space.warmup * steps) if start == 0 else 0
        rest = base_pieces(
            space.schedule,
            rate=rate,
            start=start + plateau,
            stop=steps,
            warmup=warmup,
            decay=min(1.0, space.decay * steps / (steps - start - plateau)),
        )
        return Decide(
            stage=stage.index,
            rate=rate,
            stop=stop,
            pieces=(*adopted, *rest),
            winner=None if winner is None else winner.number,
            adopt=plateau,
            reason=reason,
            momentum=momentum,
        )


def _outpaced(curve: Curve, best: Trial, best_curve: Curve, done: float) -> str:
    """Whether a probe has made less than half of the best one's progress by the same step.

    Both have the same start and the same batches, so that the difference of two smoothed losses says more than either.
    """
    rival = _until(best_curve, done)
    start = best.first_loss if best.first_loss is not None else best_curve.losses[0]
    gain, best_gain = start - recent(curve), start - recent(rival)
    if best_gain > 0 and gain < 0.5 * best_gain - 2 * (curve.noise + rival.noise) / math.sqrt(len(curve) / 4):
        return f"{gain / best_gain:.0%} of the best probe's progress at step {int(done)}"
    return ""


def _until(curve: Curve, steps: float) -> Curve:
    """The part of `curve` before offset `steps`."""
    count = max(1, sum(offset < steps for offset in curve.offsets))
    return replace(curve, offsets=curve.offsets[:count], losses=curve.losses[:count], rates=curve.rates[:count])


def _at_a_bound(rate: float, bounds: tuple[float, float]) -> str:
    """What to say of a rate beyond which none was tried."""
    for side, bound in zip(("lower", "upper"), bounds, strict=True):
        if bounds[0] < bounds[1] and math.isclose(rate, bound, rel_tol=1e-6):
            return f"; it is the space's {side} bound"
    return ""


def _why(stage: Stage, winner: Trial, rate: float) -> str:
    """One line for people: the winner against its nearest rival."""
    assert winner.forecast is not None
    text = f"{winner.rate:.3g} ended its miniature at {winner.forecast.mean:.4g}"
    text = f"kept {rate:.3g}: {text}" if rate == winner.rate else f"kept {rate:.3g}, the model's best: {text}"
    others = [
        t
        for t in stage.trials
        if t.forecast is not None
        and t.state is TrialState.COMPLETE
        and t is not winner
        and t.momentum == winner.momentum
    ]
    if not others:
        return text
    rival = min(others, key=lambda t: t.forecast.mean if t.forecast else math.inf)
    assert rival.forecast is not None
    gap = rival.forecast.mean - winner.forecast.mean
    spread = math.hypot(rival.forecast.std, winner.forecast.std)
    return f"{text}, {rival.rate:.3g} {gap:+.2g} ± {spread:.1g}"
