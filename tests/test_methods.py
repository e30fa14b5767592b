"""Every method of the benchmark on a task of milliseconds: its row says what was really done."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import tiny_task
import torch

from benchmarks.members import train_part
from benchmarks.methods import METHODS
from benchmarks.plain import PlainSession, row, train
from benchmarks.rivals import Greedy, Hypergradient, Plateau, RangeTest
from benchmarks.searches import TOTAL
from benchmarks.tasks import Task, half_decades

TASK = Task("tiny", "tiny_task", "adamw", half_decades(-6))
POPULATIONS = ("pbt", "pb2", "asha")
OURS = [name for name, method in METHODS.items() if method.kind == "ours"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in POPULATIONS])
def test_a_row_of_each_method(name: str) -> None:
    settings = METHODS[name].settings(TASK)[-1]
    made = METHODS[name].run(TASK, dict(settings), 0)
    assert (made.task, made.method, made.seed) == ("tiny", name, 0)
    assert 0 < made.validation_loss < 10
    assert 0 < made.test_loss < 10
    assert made.kept_steps + made.probe_steps <= round(TOTAL * TASK.steps) or name == "autolrs"
    assert made.kept_steps == TASK.steps or name.startswith("optuna") or name == "horizon-short"
    assert made.evaluations >= 1
    again = METHODS[name].run(TASK, dict(settings), 0)
    assert (again.validation_loss, again.rate) == (made.validation_loss, made.rate)


@pytest.fixture
def ends_ray() -> Iterator[None]:
    """The benchmark keeps its Ray for the next search; other tests start their own."""
    yield
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ends_ray")
@pytest.mark.filterwarnings("ignore")  # of what PB2 calls
@pytest.mark.parametrize("name", POPULATIONS)
def test_a_row_of_each_search_of_ray_tune(name: str) -> None:
    made = METHODS[name].run(TASK, {}, 0)
    assert 0 < made.validation_loss < 10
    assert 0 < made.test_loss < 10
    assert made.rate > 0
    assert made.kept_steps == 39  # a fourth of 1.3 runs
    whole, most = made.kept_steps + made.probe_steps, TOTAL * TASK.steps
    if name == "asha":
        assert most - 5 < whole <= most  # the shortest part takes 5 updates
        assert 1 + 3 < made.evaluations <= 1 + 3 * 20
    else:
        assert whole == most
        assert made.evaluations == 1 + 4 * 6


@pytest.mark.slow
@pytest.mark.usefixtures("ends_ray")
@pytest.mark.filterwarnings("ignore")  # of what is left where Ray was stopped
def test_a_search_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from benchmarks import populations

    monkeypatch.setattr(populations, "LIMIT", 1.0)
    with pytest.raises(TimeoutError, match="stood still for 1 s"):
        METHODS["pbt"].run(TASK, {}, 0)
    assert not ray.is_initialized()


def test_a_run_in_parts_goes_on_where_it_was_left() -> None:
    """The second part has the first one's weights, moments and place in the stream, if an epoch has just ended."""
    rates = [0.05] * 30
    begun = train_part(TASK, 0, 30, rates.__getitem__, 10)
    assert (begun.updates, begun.evaluations, begun.rate) == (10, 1, 0.05)
    assert math.isnan(begun.test)
    ended = train_part(TASK, 0, 30, rates.__getitem__, 30, begun.state)
    again = train_part(TASK, 0, 30, rates.__getitem__, 30, begun.state)
    assert (ended.validation, ended.test) == (again.validation, again.test)
    whole = train_part(TASK, 0, 30, rates.__getitem__, 30)
    assert (ended.updates, whole.updates) == (20, 30)
    assert begun.validation > whole.validation
    assert ended.validation == whole.validation


def test_a_copy_goes_on_at_its_own_rate() -> None:
    begun = train_part(TASK, 0, 30, lambda step: 0.05, 10)
    still = train_part(TASK, 0, 30, lambda step: 0.0, 30, begun.state)
    assert still.validation == pytest.approx(begun.validation, rel=1e-6)
    assert still.rate == 0.05


def test_the_shorter_run_pays_for_its_search() -> None:
    made = METHODS["horizon-short"].run(TASK, {}, 0)
    assert made.kept_steps == round(0.76 * TASK.steps)
    assert made.kept_steps + made.probe_steps <= TASK.steps


def test_a_plain_session_is_a_plain_loop() -> None:
    """The slow twin is written out."""
    found = train(TASK, PlainSession(TASK.steps, lambda step: 0.1 / (step + 1)), 3)
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)
    adamw = torch.optim.AdamW(model.parameters())
    loader = torch.utils.data.DataLoader(tiny_task.data()[0], batch_size=20, shuffle=True)
    step = 0
    while step < TASK.steps:
        for x, y in loader:
            adamw.param_groups[0]["lr"] = 0.1 / (step + 1)
            adamw.zero_grad()
            torch.nn.functional.mse_loss(model(x)[:, 0], y).backward()
            adamw.step()
            step += 1
    losses = [
        torch.nn.functional.mse_loss(model(x)[:, 0], y).item() for x, y in (d.tensors for d in tiny_task.data()[1:])
    ]
    assert list(found) == losses


def test_validation_on_the_way_changes_nothing() -> None:
    class Nosy(PlainSession):
        def after(self, loss: torch.Tensor) -> None:
            self.validation_loss()

    schedule = [0.05] * TASK.steps
    nosy = Nosy(TASK.steps, schedule.__getitem__)
    assert train(TASK, nosy, 0) == train(TASK, PlainSession(TASK.steps, schedule.__getitem__), 0)
    assert nosy.evaluations == TASK.steps + 1


def test_a_diverged_run_is_nan() -> None:
    made = row(TASK, "x", {}, 0, PlainSession(TASK.steps, lambda step: 1e30))
    assert math.isnan(made.validation_loss)
    assert math.isnan(made.test_loss)


def test_rules_react() -> None:
    plateau, greedy, hyper = Plateau(TASK, 1.0), Greedy(TASK, 0.001), Hypergradient(TASK, 0.001)
    for session in (plateau, greedy, hyper):
        train(TASK, session, 0)
    assert plateau.rate < 1.0
    assert plateau.evaluations > 10
    assert greedy.rate > 0.001  # the loss falls all the time
    assert hyper.rate > 0.001  # and gradients agree


def test_a_range_test_finds_a_rate_that_trains() -> None:
    session = RangeTest(100, 1e-5, 1e2)
    train(TASK, session, 0)
    assert session.highest == pytest.approx(1e2)
    assert 1e-3 < session.steepest < 10


def test_autolrs_alone_has_no_more_than_its_budget() -> None:
    made = METHODS["horizon"].run(TASK, {}, 0)
    assert 0 < made.probe_steps <= 0.3 * TASK.steps
    assert made.evaluations > 2
