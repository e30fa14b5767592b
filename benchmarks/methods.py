"""Everything that is compared, by name: the settings it is tuned over, and how one run is made.

All are tuned alike: every setting is run with the first seed, the two with the lowest validation loss with all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from autolrs.schedules import Schedule
from benchmarks.families import DECAY, FAMILIES
from benchmarks.plain import PlainSession, row
from benchmarks.rows import Row
from benchmarks.tasks import Task

Settings = Mapping[str, Any]

ADAMS: Final = ("adam", "adamw")
"""Spaces of the optimizers that lookahead is meant for."""


@dataclass(frozen=True)
class Method:
    """Something to compare.

    Attributes:
        kind: "fixed" (a schedule tuned by full runs), "free" (no schedule to choose), "rule" (reacts to the loss),
            "search" (many short runs), "ours".
        run: makes one run.
        settings: what it is tuned over, for a task.
    """

    name: str
    kind: str
    run: Callable[[Task, dict[str, Any], int], Row]
    settings: Callable[[Task], list[Settings]]


def run_fixed(family: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    rates = FAMILIES[family](settings["rate"], task.steps, task.warmup)
    return row(task, family, settings, seed, PlainSession(task.steps, rates.__getitem__))


def run_lookahead(task: Task, settings: dict[str, Any], seed: int) -> Row:
    """The schedule that `horizon` plans, tuned by full runs with lookahead: what is gained without a search."""
    schedule = Schedule.build("wsd", rate=settings["rate"], steps=task.steps, warmup=task.warmup, decay=DECAY)
    return row(task, "wsd-lookahead", settings, seed, PlainSession(task.steps, replace(schedule, lookahead=True)))


def run_untuned(task: Task, settings: dict[str, Any], seed: int) -> Row:
    """What a user gets who tunes nothing: a cosine at the optimizer's default rate."""
    rates = FAMILIES["cosine"](task.default_rate, task.steps, task.warmup)
    return row(task, "untuned", settings, seed, PlainSession(task.steps, rates.__getitem__))


def _rivals(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    from benchmarks import rivals

    match name:
        case "schedule-free":
            return rivals.run_schedule_free(task, settings, seed)
        case "prodigy":
            return rivals.run_prodigy(task, settings, seed)
        case "range-test":
            return rivals.run_range_test(task, settings, seed)
        case _:
            return rivals.run_rule(name, task, settings, seed)


def _search(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    from benchmarks.searches import run_optuna

    return run_optuna(name, task, settings, seed)


def _population(name: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    from benchmarks.populations import run_population

    return run_population(name, task, settings, seed)


def _ours(strategy: str, task: Task, settings: dict[str, Any], seed: int) -> Row:
    from benchmarks.tuned import run

    return run(task, strategy, seed, **settings)


def _averaged(task: Task, settings: dict[str, Any], seed: int) -> Row:
    """`horizon`, whose final weights are an average of the kept ones where that validates better."""
    from benchmarks.tuned import run

    return run(task, "horizon", seed, label="horizon-averaged", average=True, **settings)


def _both(task: Task, settings: dict[str, Any], seed: int) -> Row:
    """The same, and with lookahead where the optimizer is of Adam's kin."""
    from benchmarks.tuned import run

    ahead = task.space in ADAMS
    return run(task, "horizon", seed, label="horizon-both", average=True, lookahead=ahead, **settings)


def _shorter(task: Task, settings: dict[str, Any], seed: int) -> Row:
    """`horizon` in so many steps fewer that they and its whole search budget are the steps of one run."""
    from benchmarks.tuned import run

    return run(task, "horizon", seed, label="horizon-short", share=0.76, **settings)


def _each_rate(task: Task) -> list[Settings]:
    return [{"rate": rate} for rate in task.rates]


def _once(task: Task) -> list[Settings]:
    return [{}]


def _each_scale(task: Task) -> list[Settings]:
    return [{}, *({"scale": scale} for scale in (0.3, 0.5, 2.0, 3.0))]


def _each_count(task: Task) -> list[Settings]:
    return [{"trials": count} for count in (4, 8)]


METHODS: Final = {
    method.name: method
    for method in (
        Method("untuned", "fixed", run_untuned, _once),
        *(Method(family, "fixed", partial(run_fixed, family), _each_rate) for family in FAMILIES),
        Method("wsd-lookahead", "free", run_lookahead, lambda task: _each_rate(task) if task.space in ADAMS else []),
        Method("schedule-free", "free", partial(_rivals, "schedule-free"), lambda task: [{}, *_each_rate(task)]),
        Method("prodigy", "free", partial(_rivals, "prodigy"), _each_scale),
        *(Method(name, "rule", partial(_rivals, name), _each_rate) for name in ("plateau", "greedy", "hypergradient")),
        Method("range-test", "search", partial(_rivals, "range-test"), _once),
        *(Method(name, "search", partial(_search, name), _each_count) for name in ("optuna-tpe", "optuna-gp")),
        *(Method(name, "search", partial(_population, name), _once) for name in ("pbt", "pb2", "asha")),
        Method("horizon", "ours", partial(_ours, "horizon"), _once),
        Method("horizon-averaged", "ours", _averaged, _once),
        Method("horizon-both", "ours", _both, _once),
        Method("horizon-short", "ours", _shorter, _once),
        Method("autolrs", "ours", partial(_ours, "autolrs"), _once),
    )
}
