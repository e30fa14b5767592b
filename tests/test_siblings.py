"""The benchmark on sibling curves: its numbers on hand-made groups, under Optuna's and Ray's rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import optuna
import pytest

from autolrs.forecasts import Forecasts
from benchmarks.siblings import (
    DOZENS,
    Choice,
    by_heart,
    choice,
    dozens,
    interval,
    levels,
    neighbours,
    put,
    replaced,
    summary,
)
from benchmarks.stopping import pruners, rivals, run, run_ray, schedulers
from benchmarks.windows import Window, bins


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


def window(rate, losses, truth):
    y = np.asarray(losses, dtype=float)
    steps, rates = np.arange(len(y), dtype=float), np.full(len(y), rate)
    last = float(y[np.isfinite(y)][-1])
    about = ("task", "group", f"at {rate}", rate, 0.1, bins(steps, y, rates), 10.0 * len(y), truth, last)
    return Window(*about, False, "run", 0, 10 * len(y), steps, y, rates)


GROUP = [
    window(1e-3, [4.0] * 20, 3.0),
    window(1e-2, [3.0] * 20, 1.0),
    window(1e-1, [2.0] * 20, 1.5),
    window(1e0, [9.0] * 19 + [math.nan], math.nan),
]


@dataclass(frozen=True)
class Told:
    """Foretells the level of each curve by its last loss."""

    answers: dict[float, float]

    def extrapolate(self, curves, at, *, schedule=None, history=()):
        found = np.array([self.answers[curve.losses[-1]] for curve in curves])
        return Forecasts(np.asarray(at, float), found, np.full(len(found), 0.01))


def test_the_chosen_rate_is_judged_by_its_truth():
    expected = levels(GROUP, None, pool=False)
    assert expected.tolist() == [4.0, 3.0, 2.0, math.inf]
    made = choice(GROUP, expected)
    assert (made.regret, made.bias, made.source) == (pytest.approx(0.5), pytest.approx(1.0), "task")
    assert made.correlation == pytest.approx(0.8)  # ranks 3 2 1 4 against 3 1 2 4
    told = Told({4.0: 3.0, 3.0: 1.0, 2.0: 1.5})
    assert choice(GROUP, levels(GROUP, told, pool=False)) == Choice("task", 0.0, 0.0, pytest.approx(1.0))
    assert levels(GROUP, told, pool=True).argmin() == 1


def test_neighbours_tell_what_their_ends_are():
    truths = [w.truth if np.isfinite(w.truth) else np.inf for w in GROUP]
    mean = [truths[1], (truths[0] + truths[2]) / 2, (truths[1] + truths[3]) / 2, truths[2]]
    assert neighbours(GROUP).tolist() == mean


def test_an_interval_is_of_the_mean():
    assert interval([Choice("task", regret, 0.0, 0.0) for regret in (1.0, 1.0)]) == "1.000 to 1.000"
    low, high = map(float, interval([Choice("task", r, 0.0, 0.0) for r in (0.0, 1.0) * 50]).split(" to "))
    assert (low, high) == (pytest.approx(0.42, abs=0.02), pytest.approx(0.58, abs=0.02))


def test_groups_that_learn_by_heart_are_told():
    assert not by_heart(GROUP)
    assert by_heart([*GROUP, window(1e-2, [3.0] * 20, 1e-4)])


def test_dozens_are_of_larger_groups_only_ascending_and_the_same_every_time():
    large = [
        window(rate, [1.0] * 20, truth) for rate, truth in zip(np.geomspace(1e-4, 1, 20), range(1, 21), strict=True)
    ]
    drawn = dozens([GROUP, large])
    assert [[w.rate for w in group] for group in drawn] == [[w.rate for w in group] for group in dozens([GROUP, large])]
    assert len(drawn) == DOZENS
    assert len({tuple(w.rate for w in group) for group in drawn}) == DOZENS
    for group in drawn:
        rates = [w.rate for w in group]
        assert len(rates) == 12
        assert rates == sorted(set(rates))
    assert dozens([GROUP, [window(w.rate, w.losses, math.nan) for w in large]]) == []


def test_a_choice_that_blows_up_is_an_infinite_regret():
    late = [*GROUP[:3], window(1.0, [0.5] * 20, math.inf)]
    made = choice(late, levels(late, None, pool=False))
    assert made.regret == math.inf
    assert summary([made, made]).startswith("2.000 | inf | 100% | +2.00")


def test_a_pruner_is_judged_by_steps_and_by_what_it_lost():
    falling = np.linspace(3, 1, 50)
    group = [window(rate, falling + off, 1.0 + off) for rate, off in ((1e-3, 0.0), (1e-2, 0.5), (1e-1, 1.0))]
    group.append(window(1.0, [5.0] * 9 + [math.nan] * 41, math.nan))
    done = run(group, optuna.pruners.NopPruner(), 0)
    assert (done.share, done.regret) == (1.0, 0.0)
    eager = run(group, pruners()["Optuna SuccessiveHalvingPruner"](), 0)
    assert eager.share < 1
    assert run(group, optuna.pruners.ThresholdPruner(upper=0.1), 0).regret == math.inf
    assert run([group[3]] * 2, optuna.pruners.NopPruner(), 0) is None


@dataclass
class Spy:
    """A scheduler that notes what it is told, and stops trials at a report."""

    stops: dict[str, int]
    STOP: str = "STOP"

    def __post_init__(self):
        self.told = []

    def on_trial_add(self, controller, trial):
        self.told.append(("add", trial.trial_id, len(controller.get_live_trials())))

    def on_trial_result(self, controller, trial, result):
        self.told.append((result["training_iteration"], trial.trial_id, result["loss"]))
        return self.STOP if self.stops.get(trial.trial_id) == result["training_iteration"] else "CONTINUE"

    def on_trial_complete(self, controller, trial, result):
        self.told.append(("complete", trial.trial_id, result["loss"]))

    def on_trial_error(self, controller, trial):
        self.told.append(("error", trial.trial_id, None))


def trio():
    """Three curves of three reports each, of which one blows up; in the order of seed 0."""
    given = [
        window(1e-3, [4.0, 3.0, 2.0], 2.0),
        window(1e-2, [3.0, 2.0, 1.0], 1.0),
        window(1.0, [5.0, math.nan, math.nan], math.nan),
    ]
    order = np.random.default_rng(0).permutation(3)
    return [given[list(order).index(i)] for i in range(3)]


def test_rays_schedulers_are_told_what_rays_controller_would_tell_them():
    one_by_one = Spy({})
    done = run_ray(trio(), one_by_one, 0)
    assert one_by_one.told == [
        *(("add", "0", 1), (1, "0", 4.0), (2, "0", 3.0), ("complete", "0", 2.0)),
        *(("add", "1", 1), (1, "1", 3.0), (2, "1", 2.0), ("complete", "1", 1.0)),
        *(("add", "2", 1), (1, "2", 5.0), ("error", "2", None)),
    ]
    assert (done.share, done.regret) == (1.0, 0.0)
    aside = Spy({"1": 1})
    done = run_ray(trio(), aside, 0, at_once=3)
    assert aside.told == [
        *(("add", "0", 1), ("add", "1", 2), ("add", "2", 3)),
        *((1, "0", 4.0), (1, "1", 3.0), (1, "2", 5.0), ("error", "2", None)),
        *((2, "0", 3.0), ("complete", "0", 2.0)),
    ]
    assert (done.share, done.regret) == (pytest.approx(5 / 7), pytest.approx(1.0))
    assert run_ray([trio()[2]] * 2, Spy({"0": 1, "1": 1}), 0).regret == math.inf


def test_rays_own_rules_stop_the_worst():
    falling = np.linspace(3, 1, 50)
    group = [window(10.0**-k, falling + k, 1.0 + k) for k in range(8)]
    for name, make in schedulers().items():
        done = run_ray(group, make(), 0, at_once=8)
        assert done.share < 0.9, name
        assert done.regret == 0.0, name
        serial = run_ray(group, make(), 0)
        assert (serial.share, serial.regret) == (done.share, done.regret), name  # as the report says


def test_a_part_of_the_document_is_replaced_and_nothing_else():
    text = "# A\n\nold\n\n## B\n\nold\n\n### C\n\n## D\n\nold\n"
    assert replaced(text, "## B", ["new", "### E"]) == "# A\n\nold\n\n## B\n\nnew\n### E\n\n## D\n\nold\n"
    assert replaced(text, "### C", ["new"]) == text.replace("### C\n", "### C\n\nnew\n")
    assert replaced(text, "## D", ["new"]) == text[: -len("old\n")] + "new\n"
    with pytest.raises(ValueError, match="## Z"):
        replaced(text, "## Z", [])


def test_a_part_that_a_document_has_none_of_yet_comes_last(tmp_path):
    document = tmp_path / "document.md"
    document.write_text("# A\n\n## B\n\nold\n")
    put(document, "## C", ["first"])
    assert document.read_text() == "# A\n\n## B\n\nold\n\n## C\n\nfirst\n"
    put(document, "## C", ["second"])
    put(document, "## B", ["new"])
    assert document.read_text() == "# A\n\n## B\n\nnew\n\n## C\n\nsecond\n"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_rival_can_be_made():
    for make in pruners().values():
        assert isinstance(make(), optuna.pruners.BasePruner)
    assert len(rivals()) == len(pruners()) + len(schedulers())
