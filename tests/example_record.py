"""A whole tuning run made by hand, as a list of events: for tests of what reads records."""

from __future__ import annotations

import math
import random

from autolrs.engine import replay
from autolrs.records import (
    Curve,
    Decide,
    Decided,
    Elapsed,
    Event,
    Finished,
    Forecast,
    Issued,
    Lost,
    Opened,
    Probed,
    Record,
    Settings,
    Started,
    Trained,
    TrialState,
)
from autolrs.schedules import base_pieces
from autolrs.space import SearchSpace

STEPS = 2000
SPACE = SearchSpace("adamw", (1e-5, 1e-1), optimizer="adamw", schedule="wsd", warmup=0.02)
SETTINGS = Settings(STEPS, 600, 7, SPACE, "horizon", {"shape": "wsd"}, checkpoint_every=200)
SEARCHES = (  # start, rates, length, winner, adopted steps
    (0, (1e-3, 6e-3, 3e-2, 2.5e-3, 9e-2, 3.7e-3), 80, 3, 64),
    (1000, (2.5e-3, 5e-3, 1.2e-3), 40, 0, 0),
)


def loss(step: float, rate: float, noise: float = 0.0) -> float:
    """A smooth loss with its best rate at 3e-3; `noise` jitters it."""
    misfit = math.log10(rate / 3e-3) ** 2
    return 1.4 + 0.25 * misfit + 2.6 * math.exp(-((step + 1) ** 0.35) * (0.45 - 0.08 * min(misfit, 3))) + noise


def example_events(*, finished: bool = True) -> list[Event]:
    rng = random.Random(0)
    events: list[Event] = [Started(1e-3, (1.0, 0.1), True)]
    for index, (start, rates, length, winner, adopt) in enumerate(SEARCHES):
        events.append(Opened(index, start, start_loss=loss(start, 3e-3), validations=1))
        for number, rate in enumerate(rates):
            events.append(Issued(index, number, rate, length))
            events.append(_probed(rng, index, number, start, rate, length))
        stop = SEARCHES[index + 1][0] if index + 1 < len(SEARCHES) else STEPS
        pieces = base_pieces("wsd", rate=rates[winner], start=start, stop=STEPS, warmup=0 if index else 40)
        reason = f"rate {rates[winner]:.2g} is forecast to end at {_end(rates[winner]):.3f}"
        events.append(Decided(Decide(index, rates[winner], stop, pieces, winner, adopt, reason)))
        at = start
        while at < stop:
            end = start + adopt if adopt and at == start else min(stop, (at // 200 + 1) * 200)
            losses = [loss(s, rates[winner], rng.gauss(0, 0.03)) for s in range(at, end)]
            events.append(Trained(at, end, _curve(losses, rates[winner], index, at), bool(adopt) and at == start))
            at = end
    if not finished:
        return events[: len(events) // 2]
    return [*events, Lost(30), Elapsed(83.5), Finished(loss(STEPS, 2.5e-3), 1)]


def example_record(*, finished: bool = True) -> Record:
    return replay(SETTINGS, example_events(finished=finished))


def _end(rate: float) -> float:
    return loss(STEPS, rate) + 0.02


def _curve(losses: list[float], rate: float, stage: int, start: int) -> Curve:
    return Curve.reduce(losses, [rate] * len(losses), stage=stage, start=start)


def _probed(rng: random.Random, stage: int, number: int, start: int, rate: float, length: int) -> Probed:
    state, steps, reason = TrialState.COMPLETE, length, ""
    if rate > 5e-2:
        state, steps, reason = TrialState.DIVERGED, 24, "loss inf at step 24"
    elif rate > 2e-2:
        state, steps, reason = TrialState.PRUNED, 48, "forecast 1.95 ± 0.04, best 1.46"
    losses = [loss(start + s, rate, rng.gauss(0, 0.05)) for s in range(steps)]
    curve = _curve([*losses[:-1], math.inf] if state is TrialState.DIVERGED else losses, rate, stage, start)
    measured = state is TrialState.COMPLETE
    return Probed(
        stage,
        number,
        state,
        steps,
        curve,
        validation=_curve([loss(start + steps, rate)], rate, stage, start) if measured else None,
        first_loss=losses[0],
        objective=loss(start + steps, rate) if measured else (losses[-1] if state is TrialState.PRUNED else None),
        reason=reason,
        validations=int(measured),
        forecast=None if state is TrialState.DIVERGED else Forecast(STEPS - start, _end(rate), 0.05),
    )
