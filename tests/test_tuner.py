"""tune and attach in this process: what they set up, what they give back, and that tuning is plain training."""

from __future__ import annotations

import logging
import math
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from loops import digest, draw, seed_all
from torch import Tensor, nn
from tuned_loops import SEARCH, SMALL, SPACE, Counter, build, loop, plain, run, stop_at, update, validation_loss

import autolrs
from autolrs import Session, attach, load_study, tune
from autolrs.engine import replay
from autolrs.errors import DivergedError, IdentityError, SessionError, StoppedError, UnfinishedError, UntrackableError
from autolrs.opening import environment
from autolrs.protocols import Forecasts
from autolrs.records import Curve, Decided, Elapsed, Finished, Issued, Opened, Probe, Probed, Started, Trained
from autolrs.schedules import Schedule
from autolrs.snapshot import rng_preserved
from autolrs.storage import StudyStore
from autolrs.strategies.horizon import Horizon

STRATEGIES: dict[str, dict[str, Any]] = {
    "horizon": {"strategy": "horizon"},
    "horizon adopting": {"strategy": "horizon", "options": {"adopt": True}},
    "autolrs": {"strategy": "autolrs", "options": {"tau": 10, "k": 2}},
}


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with rng_preserved():
        yield


# The laws of section 6


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plain_loop_on_the_schedule_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, strategy: str, own_generator: bool
) -> None:
    study = run(tmp_path, loop(own_generator=own_generator), seed=3, **STRATEGIES[strategy])
    assert study.exact
    assert study.cost.probe_steps > 0
    study.schedule.save(tmp_path / "schedule.json")
    again = plain(Schedule.load(tmp_path / "schedule.json"), seed=3, own_generator=own_generator)
    assert again == study.result


def test_without_a_budget_it_is_plain_training_on_the_base_schedule_at_the_optimizers_own_rate(tmp_path: Path) -> None:
    study = run(tmp_path, search_budget=0, seed=5)
    assert (study.cost.probe_steps, study.cost.search_cost, Counter.steps) == (0, 0, 60)
    base = Schedule.build("wsd", rate=2e-3, steps=60, warmup=3, decay=SPACE.decay)
    assert [study.schedule(step) for step in range(61)] == [base(step) for step in range(61)]
    assert study.result == plain(base, seed=5)
    assert study.trials_dataframe().empty


def attached(storage: Path, *, seed: int = 0, crash_at: int = 0, **settings: Any) -> tuple[autolrs.Study, Any]:
    """A script with a loop of its own: `loop`, by `attach`."""
    seed_all(seed)
    model, optimizer, loader = build()
    all_settings = SMALL | {"seed": seed} | settings
    with attach(model=model, optimizer=optimizer, storage=str(storage), **all_settings) as session:
        session.validate(lambda: validation_loss(model))
        for batch in session.batches(loader):
            if Counter.steps == crash_at > 0:
                raise ZeroDivisionError("the user's own")
            session.report(update(model, optimizer, batch))
        result = {"weights": digest(model), "draws": [random.random(), torch.rand(1).item()]}
    return session.study, result


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attach_is_tune_under_the_same_seeding(tmp_path: Path, strategy: str) -> None:
    tuned = run(tmp_path / "a", seed=4, **STRATEGIES[strategy])
    study, result = attached(tmp_path / "b", seed=4, **STRATEGIES[strategy])
    assert result == tuned.result
    assert study.schedule == tuned.schedule
    assert study.final_loss == tuned.final_loss
    assert study.finished
    assert study.result is None


def test_an_attached_script_that_fails_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    whole, result = attached(tmp_path / "whole")
    for crash in (13, 28, 20):  # in a probe, in a probe or after it, in the kept run
        with pytest.raises(ZeroDivisionError, match="the user's own"):
            attached(tmp_path / "broken", crash_at=crash)
    study, resumed = attached(tmp_path / "broken")
    assert resumed == result
    assert study.schedule == whole.schedule
    assert study.cost.lost_steps > 0
    assert steps_paid(study) == Counter.steps + 13 + 28 + 20


def test_tune_seeds_all_generators_and_attach_none(tmp_path: Path) -> None:
    def train(session: Session) -> list[float]:
        found = list(draw())
        loop()(session)
        return found

    seed_all(77)
    first = run(tmp_path, train, search_budget=0, seed=9, name="a").result
    seed_all(78)
    assert run(tmp_path, train, search_budget=0, seed=9, name="b").result == first
    assert run(tmp_path, train, search_budget=0, seed=10, name="c").result != first
    seed_all(9)
    assert first == list(draw())

    model, optimizer, _ = build()
    seed_all(1)
    expected = draw()
    seed_all(1)
    attachment = attach(model=model, optimizer=optimizer, storage=str(tmp_path), steps=5, seed=9)
    with pytest.raises(UnfinishedError), attachment:
        found = draw()
    assert found == expected


def test_attach_tracks_its_other_keywords(tmp_path: Path) -> None:
    """A generator and a tensor are rewound after each probe, and saved: else the noise of the replay is other noise."""

    def noisy(storage: Path, stop_at: int = 0) -> tuple[list[float], float]:
        torch.manual_seed(0)
        model, optimizer, loader = build()
        noise, total = torch.Generator().manual_seed(5), torch.zeros(1)
        kept: list[float] = []
        with attach(
            model=model, optimizer=optimizer, noise=noise, total=total, storage=str(storage), **SMALL
        ) as session:
            for batch in session.batches(loader):
                draw = torch.rand(1, generator=noise)
                total += draw
                if not session.is_probe:
                    kept.append(draw.item())
                if Counter.steps == stop_at > 0:
                    raise ZeroDivisionError
                session.report(update(model, optimizer, batch))
        return kept, total.item()

    generator, summed = torch.Generator().manual_seed(5), torch.zeros(1)
    expected = [torch.rand(1, generator=generator) for _ in range(60)]
    for number in expected:
        summed += number
    kept, total = noisy(tmp_path / "a")
    assert len(kept) == 60 - SEARCH.keep  # the rest was adopted
    assert kept == expected[-len(kept) :]
    assert total == summed
    with pytest.raises(ZeroDivisionError):
        noisy(tmp_path / "b", stop_at=45)
    rest, again = noisy(tmp_path / "b")
    assert rest == expected[-len(rest) :]
    assert len(rest) < len(kept)
    assert again == total


def test_an_error_inside_attach_comes_out_and_gives_the_study_free(tmp_path: Path) -> None:
    def script(items: int, **more: Any) -> Session:
        model, optimizer, loader = build()
        settings = {"steps": 20, "search_budget": 0, "storage": str(tmp_path), "name": "a"} | more
        with attach(model=model, optimizer=optimizer, **settings) as session:
            for batch in islice(session.batches(loader), items):
                session.report(update(model, optimizer, batch))
        return session

    with pytest.raises(UnfinishedError, match="the loop ended after 0 of 20 steps"):
        script(12)
    with pytest.raises(UntrackableError, match=r"`track\(strategie=\.\.\.\)` got str, which cannot be restored"):
        script(100, strategie="horizon")
    assert script(100).study.finished


# What a study says afterwards


def steps_paid(study: autolrs.Study) -> int:
    cost = study.cost
    return cost.kept_steps - cost.adopted_steps + cost.probe_steps + cost.discarded_steps + cost.lost_steps


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_cost_adds_up_to_the_steps_really_done(tmp_path: Path, strategy: str) -> None:
    validations = 0

    def counted(session: Session) -> None:
        model, optimizer, loader = build()

        def validate() -> float:
            nonlocal validations
            validations += 1
            return validation_loss(model)

        session.track(model=model, optimizer=optimizer)
        session.validate(validate)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    study = run(tmp_path, counted, **STRATEGIES[strategy])
    cost = study.cost
    assert steps_paid(study) == Counter.steps
    assert cost.kept_steps == 60
    assert 0 < cost.probe_steps <= 30
    assert (cost.lost_steps, cost.discarded_steps) == (0, 0)
    assert cost.validation_calls == validations > 0
    assert cost.wall_seconds > 0
    assert cost.search_cost == (cost.probe_steps - cost.adopted_steps) / 60
    assert (cost.adopted_steps > 0) == (strategy == "horizon adopting")


def test_what_is_loaded_is_what_was_returned(tmp_path: Path) -> None:
    result = {"accuracy": 0.5, "weights": [1, 2.5, None]}

    def train(session: Session) -> dict[str, Any]:
        loop()(session)
        return result

    study = run(tmp_path, train, strategy=Horizon(later=(0.5,)))
    loaded = load_study("run", str(tmp_path))
    assert loaded.record == study.record
    assert loaded.result == study.result == result
    assert loaded.schedule == study.schedule
    assert loaded.cost == study.cost
    assert loaded.final_loss == study.final_loss
    assert loaded.stages == study.stages
    assert loaded.exact
    assert loaded.environment == study.environment == environment() | {"args": "{}"}
    assert loaded.name == "run"
    assert loaded.trials_dataframe().equals(study.trials_dataframe())
    assert len(loaded.trials_dataframe()) == sum(len(stage.trials) for stage in study.stages) > 2
    assert loaded.checkpoint() == study.checkpoint("final")


def test_the_trained_weights_can_be_loaded_into_another_model(tmp_path: Path) -> None:
    study = run(tmp_path)
    model, _, _ = build()
    assert digest(model) != study.result["weights"]
    study.load_into(model)
    assert digest(model) == study.result["weights"]
    assert validation_loss(model) == study.final_loss


def test_a_result_that_is_not_json_stays_in_memory_and_its_repr_in_the_study(tmp_path: Path) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<odd one>"

    odd = Odd()

    def train(session: Session) -> Odd:
        loop()(session)
        return odd

    study = run(tmp_path, train, search_budget=0)
    assert study.result is odd
    assert load_study("run", str(tmp_path)).result == "<odd one>"


def test_the_default_name_is_the_functions_with_8_hex_of_what_identifies_the_study(tmp_path: Path) -> None:
    def my_train(session: Session) -> None:
        loop()(session)

    def name(**changes: Any) -> str:
        settings = {"name": None, "search_budget": 0, "steps": 4, "strategy": "horizon"}
        return run(tmp_path, my_train, **(settings | changes)).name

    first = name()
    assert re.fullmatch(r"my_train-[0-9a-f]{8}", first)
    assert load_study(first, str(tmp_path)).finished
    others = [
        name(steps=5),
        name(seed=1),
        name(space="adam"),
        name(strategy="autolrs"),
        name(options={"length": 0.1}),
        name(curve_model="exponential"),
        name(search_budget=0.25),
    ]
    assert len({first, *others}) == 8
    # What may change between the parts of a run does not change the name; the study being finished, it is a second one.
    again = name(checkpoint_every=3, callbacks=(Heard(),), replay_memory=10_000, args={"a": 1})
    assert again == f"{first}-2"
    my_train.__name__ = "<lambda>"
    assert name().startswith("lambda-")


def test_settings_and_the_loops_own_arguments_reach_the_session(tmp_path: Path) -> None:
    space = autolrs.SearchSpace("mine", (1e-4, 1e-1), params={"momentum": 0.9, "type": "nesterov"})
    seen: dict[str, Any] = {}

    def train(session: Session) -> None:
        seen.update(args=dict(session.args), params=dict(session.params), step=session.step, done=session.done)
        loop()(session)
        seen.update(after=(session.step, session.done))

    run(tmp_path, train, space=space, args={"width": 16}, search_budget=0)
    assert seen == {
        "args": {"width": 16},
        "params": {"momentum": 0.9, "type": "nesterov"},
        "step": 0,
        "done": False,
        "after": (60, True),
    }
    assert load_study("run", str(tmp_path)).record.settings.space == space


def test_probes_past_the_replay_memory_see_the_same_batches(tmp_path: Path) -> None:
    much, little = (run(tmp_path, name=memory, replay_memory=memory) for memory in ("1GiB", "2KB"))
    assert much.result == little.result
    assert much.schedule == little.schedule


# Storage


def test_an_sql_database_end_to_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    expected = run(tmp_path / "folder")
    with pytest.raises(ZeroDivisionError):
        tune_on(url, crash_at=45)
    study = tune_on(url)
    assert study.result == expected.result
    assert study.schedule == expected.schedule
    assert load_study("run", url).record == study.record
    trials = optuna.load_study(study_name="run", storage=url).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len(trials) == 3
    assert (Path("autolrs-runs") / "run" / "checkpoints" / "final.safetensors").is_file()
    model, _, _ = build()
    load_study("run", url).load_into(model)
    assert digest(model) == study.result["weights"]


def tune_on(url: str, *, crash_at: int = 0) -> autolrs.Study:
    return tune(loop(each=crash(crash_at)), storage=url, **SMALL)


def crash(at: int, error: BaseException | None = None) -> Any:
    """Raises once as many updates are done."""

    def each(session: Session, loss: Tensor) -> None:
        if Counter.steps == at > 0:
            raise error or ZeroDivisionError("the user's own")

    return each


def test_checkpoints_may_lie_elsewhere_and_a_resumed_run_finds_them(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "studies", loop(each=crash(60)), checkpoint_dir=tmp_path / "big-disk")
    study = run(tmp_path / "studies")
    assert study.checkpoint() == tmp_path / "big-disk" / "run" / "final.safetensors"
    assert not (tmp_path / "studies" / "run" / "checkpoints").exists()
    assert study.result == run(tmp_path / "other").result


def test_without_a_storage_it_is_a_folder_here(tmp_path: Path) -> None:
    study = tune(loop(), steps=3, search_budget=0, name="here")
    assert (tmp_path / "autolrs-runs" / "here" / "study.journal").is_file()
    assert study.checkpoint().parent == Path("autolrs-runs/here/checkpoints")
    assert load_study("here").record == study.record


class Unusual:
    """State that only pickle can store."""

    def __init__(self) -> None:
        self.value = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unusual) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


def test_what_only_pickle_can_store_needs_allow_pickle(tmp_path: Path) -> None:
    def train(session: Session) -> int:
        session.state.setdefault("odd", Unusual())

        def count(session: Session, loss: Tensor) -> None:
            session.state["odd"].value += 1
            crash(crash_at)(session, loss)

        loop(each=count)(session)
        return int(session.state["odd"].value)

    crash_at = 0
    with pytest.raises(TypeError, match="allow_pickle") as info:
        run(tmp_path, train, search_budget=0)
    assert isinstance(info.value, autolrs.AutoLRSError)
    crash_at = 30
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, train, search_budget=0, allow_pickle=True)
    with pytest.raises(OSError, match="allow_pickle"):
        run(tmp_path, train, search_budget=0)
    crash_at = 0
    assert run(tmp_path, train, search_budget=0, allow_pickle=True).result == 60


# Callbacks


class Heard:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.records: list[Any] = []
        self.progress: list[tuple[Any, int, float]] = []
        self.where = ""

    def on_event(self, record: Any, event: Any) -> None:
        self.events.append(event)
        self.records.append(record)
        torch.rand(3)  # must not be felt by the loop

    def on_progress(self, record: Any, instruction: Any, done: int, loss: float) -> None:
        self.progress.append((instruction, done, loss))
        random.random()


def test_callbacks_hear_every_event_and_how_far_each_instruction_is(tmp_path: Path) -> None:
    heard, other = Heard(), Heard()
    study = run(tmp_path, callbacks=(heard, other))
    with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
        stored = list(store.events())
        settings = store.settings
    assert heard.events == other.events == stored
    assert settings is not None
    assert heard.records == [replay(settings, stored[:n]) for n in range(1, len(stored) + 1)]
    kinds = [type(event) for event in stored]
    assert kinds[:3] == [Started, Opened, Issued]
    assert kinds[-2:] == [Finished, Elapsed]
    assert {Probed, Decided, Trained} < set(kinds)
    assert all(math.isfinite(loss) for _, _, loss in heard.progress)
    by_probe = [done for instruction, done, _ in heard.progress if isinstance(instruction, Probe)]
    assert max(by_probe) == 10
    starts = {instruction.start for instruction, _, _ in heard.progress if not isinstance(instruction, Probe)}
    ends = {i.start + done for i, done, _ in heard.progress if not isinstance(i, Probe)}
    assert max(ends) == 60
    assert all(b - a <= 16 for a, b in pairwise(sorted({*starts, *ends})))
    assert study.result == run(tmp_path / "unheard").result


def test_what_a_callback_raises_comes_out_unchanged_and_the_study_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = KeyError("mine")

    class Stubborn(Heard):
        def on_event(self, record: Any, event: Any) -> None:
            if self.where == "event" and type(event) is not Started:
                raise error

        def on_progress(self, record: Any, instruction: Any, done: int, loss: float) -> None:
            if self.where == "progress" and record.kept_steps > 20:
                raise error

    for where in ("event", "progress"):
        callback = Stubborn()
        callback.where = where
        with pytest.raises(KeyError) as info:
            run(tmp_path, callbacks=(callback,))
        assert info.value is error
        assert "steps saved: run the same again to go on" in error.__notes__[-1]
    assert not caplog.records
    assert run(tmp_path).result == run(tmp_path / "whole").result


# Objectives


def test_without_validation_the_training_loss_is_the_objective(tmp_path: Path) -> None:
    losses: list[float] = []

    def note(session: Session, loss: Tensor) -> None:
        if not session.is_probe:
            losses.append(loss.item())

    study = run(tmp_path, loop(validate=False, each=note))
    assert study.result == plain(study.schedule)
    assert study.cost.validation_calls == 0
    assert study.final_loss == pytest.approx(sum(losses[-16:]) / 16, rel=1e-12)
    frame = study.trials_dataframe()
    assert len(frame) >= 2
    assert frame.objective.notna().all()


def test_a_loss_may_be_negative(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: validation_loss(model) - 100)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch) - 100)

    study = run(tmp_path, train)
    plain_study = run(tmp_path / "plain")
    assert study.final_loss is not None
    assert -100 < study.final_loss < -99
    assert study.schedule(0) > 0
    # float32 losses round differently after the shift, the choice among far-apart rates does not
    assert study.stages[0].rate == pytest.approx(plain_study.stages[0].rate, rel=0.3)


def never_finite(session: Session) -> None:
    model, optimizer, loader = build()
    session.track(model=model, optimizer=optimizer)
    for batch in session.batches(loader):
        session.report(update(model, optimizer, batch) * math.nan)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_from_the_first_step_blames_model_and_data(tmp_path: Path, strategy: str) -> None:
    for _ in range(2):  # and again when it is resumed
        with pytest.raises(DivergedError, match="loss is nan at step 0, before any update: the model or the data"):
            run(tmp_path, never_finite, **STRATEGIES[strategy])
    assert Counter.steps <= 16


def test_nan_from_the_first_step_without_a_search_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged again .*nan.* after 3 roll-backs"):
        run(tmp_path, never_finite, search_budget=0)
    assert Counter.steps <= 4 * 16


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_probes_diverging_lowers_the_top_and_then_says_so(tmp_path: Path, strategy: str) -> None:
    """The loss is finite at first and overflows after one update, at whatever rate."""

    def train(session: Session) -> None:
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        session.track(weight=weight.data, optimizer=optimizer)
        for _ in session.batches([0] * 10):
            loss = weight.sum() if weight.item() == 1 else weight.sum() * math.inf
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
            session.report(loss)

    settings = STRATEGIES[strategy] | ({"options": {"tau": 50, "k": 4}} if strategy == "autolrs" else {})
    with pytest.raises(DivergedError, match=r"all \d+ probes of stage 0 diverged \(rates .*bounds") as info:
        run(tmp_path, train, steps=100, **settings)
    rates = [float(rate) for rate in re.search(r"rates ([^)]*)\)", str(info.value))[1].split(", ")]  # type: ignore[index]
    assert len(rates) >= 2
    assert all(b < a for a, b in pairwise(rates))
    states = {trial.state.name for trial in load_study("run", str(tmp_path)).optuna_study.trials}
    assert states == {"PRUNED"}


def measured_by(values: dict[str, float]) -> Any:
    """A loop whose validation loss is replaced at the given moments: "start", "probe N", "end"."""

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        probe = -1

        def validate() -> float:
            nonlocal probe
            if session.is_probe:
                probe += 1
                return values.get(f"probe {probe}", validation_loss(model))
            return values.get("end" if session.step else "start", validation_loss(model))

        session.validate(validate)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    return train


def test_a_validation_loss_that_is_not_finite_makes_the_probe_a_diverged_one(tmp_path: Path) -> None:
    study = run(tmp_path, measured_by({"probe 0": math.nan, "probe 1": math.inf}), search_budget=0.7)
    trials = study.stages[0].trials
    assert [trial.state for trial in trials[:2]] == ["diverged", "diverged"]
    assert trials[0].reason == "validation loss nan"
    assert study.stages[0].winner not in (None, 0, 1)
    assert study.cost.validation_calls == len(trials) + 2


def test_a_validation_loss_that_is_not_finite_at_the_end_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = run(tmp_path, measured_by({"end": math.nan}))
    assert study.finished
    assert math.isnan(study.final_loss or 0)
    assert "validation loss at the end is nan" in caplog.text
    loaded = load_study("run", str(tmp_path))
    assert math.isnan(loaded.final_loss or 0)
    model, _, _ = build()
    loaded.load_into(model)


def test_a_validation_loss_that_is_not_finite_before_training_is_no_obstacle(tmp_path: Path) -> None:
    study = run(tmp_path, measured_by({"start": math.nan}))
    assert study.stages[0].start_loss is not None
    assert math.isfinite(study.stages[0].start_loss)
    assert study.stages[0].rate == run(tmp_path / "other").stages[0].rate


def test_a_kept_run_that_diverges_goes_back_with_a_lower_rate_and_is_no_longer_exact(tmp_path: Path) -> None:
    def explode(session: Session, loss: Tensor) -> None:
        if session.step >= 40 and session.lr > 1.5e-3:
            loss.data.fill_(math.inf)

    space = autolrs.SearchSpace("constant", (1e-4, 1), schedule="constant")
    study = run(tmp_path, loop(each=explode), search_budget=0, space=space)
    assert study.cost.discarded_steps > 0
    assert steps_paid(study) == Counter.steps
    assert not study.exact
    assert "rolled back" in study.exact_reason
    assert [study.schedule(step) for step in (0, 31, 32, 59)] == [2e-3, 2e-3, 1e-3, 1e-3]


# Strategies and curve models as objects


@dataclass(frozen=True)
class Halving:
    """A strategy of the user's: tries its rates, keeps the best one."""

    rates: tuple[float, ...] = (1e-2, 1e-3)
    name = "halving"
    search_budget = 0.4

    def decide(self, record: Any) -> Any:
        from autolrs.records import Decide, Open
        from autolrs.schedules import base_pieces

        stage = record.stage
        if stage is None:
            return Open(0, 0, evaluate=True)
        number = sum(trial.steps > 0 for trial in stage.trials)
        if number < len(self.rates):
            rate = self.rates[number]
            return Probe(0, number, rate, 8, base_pieces("constant", rate=rate, start=0, stop=8))
        best = min(stage.trials, key=lambda trial: trial.objective)
        pieces = base_pieces("linear", rate=best.rate, start=0, stop=record.settings.steps)
        return Decide(0, best.rate, record.settings.steps, pieces, best.number, reason="best of two")

    def judge(self, record: Any, probed: Any) -> Any:
        return None

    def prune(self, record: Any, probe: Any, curve: Any) -> str:
        return ""


def test_a_strategy_may_be_any_object_with_its_methods(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=crash(12)), strategy=Halving(), search_budget=None)
    with pytest.raises(IdentityError, match=r"options was .*0.01.* now .*0.5"):
        run(tmp_path, strategy=Halving(rates=(0.5,)), search_budget=None)
    study = run(tmp_path, strategy=Halving(), search_budget=None)
    assert study.result == plain(study.schedule)
    assert (study.cost.probe_steps, study.record.settings.budget) == (16, 24)
    assert [trial.rate for trial in study.stages[0].trials] == [1e-2, 1e-3]
    assert study.record.settings.strategy == "halving"


class Flat:
    """A curve model that is no dataclass: the last loss forever."""

    def extrapolate(self, curves: Any, at: Any, *, schedule: Any = None, history: Any = ()) -> Forecasts:
        last = np.array([curve.losses[-1] for curve in curves])
        return Forecasts(np.asarray(at, float), last, np.full(len(curves), 0.1))


def test_a_curve_model_may_be_any_object_with_its_method(tmp_path: Path) -> None:
    study = run(tmp_path, strategy="autolrs", curve_model=Flat(), options={"tau": 16, "k": 2, "validations": 0})
    for trial in study.stages[0].trials:
        assert trial.forecast is not None
        assert isinstance(trial.curve, Curve)
        assert trial.forecast.mean == trial.curve.losses[-1]
    settings = load_study("run", str(tmp_path)).record.settings
    assert settings == study.record.settings
    assert settings.curve_model == "Flat"
    assert settings.options["curves"] == {"kind": "Flat"}


# Stopping


class Signalled:
    def __init__(self, number: signal.Signals, at: int, times: int = 1) -> None:
        self.number, self.at, self.times = number, at, times

    def __call__(self, session: Session, loss: Tensor) -> None:
        if Counter.steps == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_at_the_next_item(tmp_path: Path, number: signal.Signals) -> None:
    whole = run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for at in (5, 55):  # in a probe, in the kept run
        with pytest.raises(StoppedError, match=rf"stopped at step \d+ of 60 \({number.name}\); all is saved"):
            run(tmp_path, loop(each=Signalled(number, at)))
        assert Counter.steps == at
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    study = run(tmp_path)
    assert study.result == whole.result
    assert study.schedule == whole.schedule
    assert steps_paid(study) == Counter.steps + 5 + 55
    assert study.cost.lost_steps == 5  # a probe's; what is kept is saved to the step


def test_a_second_interrupt_raises_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loop(each=Signalled(signal.SIGINT, 25, times=2)))
    assert signal.getsignal(signal.SIGINT) == before
    assert run(tmp_path).result == run(tmp_path / "whole").result


def test_max_seconds_stops_a_run_that_goes_on_later(tmp_path: Path) -> None:
    """Asked for less time than anything takes, it stops when the losses are read: at the end of each probe first."""
    search = replace(SEARCH, keep=0)
    for _ in range(3 + 4):  # probes; reads at 16, 32, 48, 60
        with pytest.raises(StoppedError, match=r"\(max_seconds is over\); all is saved"):
            run(tmp_path, strategy=search, max_seconds=1e-3)
    study = run(tmp_path, strategy=search, max_seconds=1e-3)
    assert study.result == run(tmp_path / "whole", strategy=search).result
    assert study.cost.lost_steps == 0


def test_it_runs_outside_the_main_thread(tmp_path: Path) -> None:
    found: list[autolrs.Study] = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path, search_budget=0)))
    thread.start()
    thread.join()
    assert found[0].finished


# Resuming in the same process


def test_resume_modes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quick = {"search_budget": 0}
    with pytest.raises(FileNotFoundError, match=r"no study 'run' in .*; studies there: none"):
        run(tmp_path, resume="must", **quick)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=crash(20)), **quick)
    assert run(tmp_path, resume="never", **quick).name == "run-2"
    assert run(tmp_path, resume="never", **quick).name == "run-3"
    assert run(tmp_path, resume="must", **quick).name == "run"
    assert Counter.steps == 60 - 16
    with pytest.raises(IdentityError, match="study 'run' is finished: choose another name"):
        run(tmp_path, resume="must", **quick)
    assert not caplog.records
    assert run(tmp_path, **quick).name == "run-4"
    assert "finished: starting another under the name run-4" in caplog.text
    assert load_study("run-4", str(tmp_path)).result == load_study("run", str(tmp_path)).result


def test_a_finished_run_is_not_extended(tmp_path: Path) -> None:
    run(tmp_path, search_budget=0)
    with pytest.raises(IdentityError, match="its decay to zero is spent, so it cannot be extended to 80"):
        run(tmp_path, search_budget=0, steps=80)
    with pytest.raises(IdentityError, match="study 'run' is finished, and had other settings: seed was 0, now 1"):
        run(tmp_path, search_budget=0, seed=1)


def test_an_error_after_the_last_step_leaves_only_the_rest_of_train_to_do(tmp_path: Path) -> None:
    def train(session: Session) -> dict[str, Any]:
        result = loop()(session)
        if broken:
            raise ZeroDivisionError("while it evaluates")
        return result

    broken = True
    with pytest.raises(ZeroDivisionError, match="while it evaluates"):
        run(tmp_path, train)
    broken = False
    study = run(tmp_path, train)
    assert Counter.steps == 0
    assert study.name == "run"
    assert study.result == run(tmp_path / "whole").result
    assert study.cost.validation_calls == load_study("run", str(tmp_path / "whole")).cost.validation_calls


def test_other_conditions_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=crash(20)), search_budget=0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, loop(each=crash(25)), search_budget=0)
    assert not caplog.records
    monkeypatch.setattr("autolrs.tuner.environment", lambda: environment() | {"torch": "9.9", "threads": 64})
    study = run(tmp_path, search_budget=0)
    assert not study.exact
    assert "resumed under other conditions: torch was" in load_study("run", str(tmp_path)).exact_reason
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"torch was {torch.__version__}, now 9.9" in warning.getMessage()
    assert "now 64" in warning.getMessage()
    assert "not bit for bit" in warning.getMessage()


@pytest.mark.parametrize("at", [6, 8, 21, 33])
def test_a_signal_amid_gradient_accumulation_waits_for_the_end_of_the_step(at: int, tmp_path: Path) -> None:
    """Half-accumulated gradients are in no checkpoint. Batches are replayed one by one just after a search."""

    def accumulating(halt_at: int | None) -> Callable[[Session], dict[str, Any]]:
        def train(session: Session) -> dict[str, Any]:
            model, optimizer, loader = build()
            session.track(model=model, optimizer=optimizer)
            for number, (inputs, targets) in enumerate(session.batches(loader)):
                loss = nn.functional.mse_loss(model(inputs), targets)
                loss.backward()
                if number % 2 == 0:
                    if not session.is_probe and session.step == halt_at:
                        session.halt("SIGTERM")
                    continue
                optimizer.step()
                optimizer.zero_grad()
                session.report(loss)
            return {"weights": digest(model)}

        return train

    whole = run(tmp_path / "whole", accumulating(None))
    with pytest.raises(StoppedError, match=f"stopped at step {at + 1} of 60"):
        run(tmp_path, accumulating(at))
    assert run(tmp_path, accumulating(None)).result == whole.result


def test_a_loop_that_never_reports_is_told_so(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            update(model, optimizer, batch)

    with pytest.raises(SessionError, match=r"no `report` in 1000 items: call `session\.report\(loss\)` once per"):
        run(tmp_path, train)


def test_a_misspelt_setting_of_attach_is_said_before_a_study_is_made(tmp_path: Path) -> None:
    model, optimizer, _ = build()
    with pytest.raises(UntrackableError, match="no setting 'search_buget': did you mean the setting 'search_budget'"):
        autolrs.attach(model=model, optimizer=optimizer, steps=10, storage=str(tmp_path / "runs"), search_buget=0.1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_the_momentum_found_trains_the_kept_run_and_its_replay_is_exact(tmp_path, make):
    """Without noise in the batches a probe of a lower momentum wins on this bowl, or does not: both must replay."""

    def build():
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
        if make == "sgd":
            return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.95)
        return model, torch.optim.Adam(model.parameters(), betas=(0.98, 0.999))

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator)
    batches = list(zip(x.split(8), (x @ torch.arange(6.0))[:, None].split(8), strict=True))
    used = []

    def train(session):
        model, optimizer = build()
        session.track(model=model, optimizer=optimizer)
        for inputs, targets in session.batches(batches):
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            group = optimizer.param_groups[0]
            used.append((session.is_probe, group["betas"][0] if "betas" in group else group["momentum"]))
            session.report(loss)

    space = autolrs.SearchSpace("mine", bounds=(1e-4, 1.0), momentum=(0.5, 0.8))
    study = autolrs.tune(train, steps=200, space=space, storage=str(tmp_path), search_budget=0.6)
    own = 0.95 if make == "sgd" else 0.98
    frame = study.trials_dataframe()
    assert {0.5, 0.8} <= set(frame["momentum"].dropna())
    assert {momentum for probe, momentum in used if probe} == {own, 0.5, 0.8}
    found = own if study.schedule.momentum is None else study.schedule.momentum
    assert {momentum for probe, momentum in used if not probe} == {found}
    assert found != own  # a momentum of nearly one is the wrong one on a bowl

    path = tmp_path / "schedule.json"
    study.schedule.save(path)
    schedule = autolrs.Schedule.load(path)
    assert schedule == study.schedule
    model, optimizer = build()
    scheduler = schedule.to_lambda_lr(optimizer)
    for step in range(200):
        inputs, targets = batches[step % len(batches)]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    trained, _ = build()
    study.load_into(trained)
    for mine, theirs in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert study.exact


def test_a_study_is_not_resumed_with_another_momentum(tmp_path):
    def train(session, momentum, stop):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
        session.track(model=model, optimizer=sgd)
        for number, inputs in enumerate(session.batches([torch.ones(3, 2)] * 4)):
            loss = model(inputs).square().mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            session.report(loss)
            if number == stop:
                raise RuntimeError("stop here")

    given = {"steps": 60, "space": "sgd", "storage": str(tmp_path), "name": "m"}
    with pytest.raises(RuntimeError, match="stop here"):
        autolrs.tune(lambda session: train(session, 0.9, 30), **given)
    with pytest.raises(IdentityError, match=r"another momentum: 0\.9, now 0\.8"):
        autolrs.tune(lambda session: train(session, 0.8, None), **given)


def test_a_run_that_goes_on_with_other_arguments_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = {"batch": 16, "rates": (1.0, math.nan), "data": Path("a")}
    for number, given in ((20, args), (40, args | {"data": Path("b")})):  # whose value cannot be told
        with pytest.raises(StoppedError):
            run(tmp_path, loop(each=stop_at(number)), args=given)
    assert "other conditions" not in caplog.text
    study = run(tmp_path, args=args | {"batch": 32})
    assert "resuming under other conditions (args was" in caplog.text
    assert not study.exact
    assert '"batch": 16' in study.exact_reason
    assert '"batch": 32' in study.exact_reason


def test_a_validation_that_is_never_finite_is_named_and_not_the_rates(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: math.nan)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    with pytest.raises(DivergedError, match=r"`session.validate` gave no finite loss .*: validation loss nan\)"):
        run(tmp_path, train, strategy="horizon")


def test_a_run_that_has_no_room_for_a_search_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        while not session.done:
            for batch in session.batches(list(loader)[:5], epochs=1):
                session.report(update(model, optimizer, batch))

    run(tmp_path, train, strategy="horizon")
    told = [record.getMessage() for record in caplog.records if "was not searched" in record.getMessage()]
    assert len(told) == 1
    assert "a probe has 10 steps, the loader's pass only 5 left" in told[0]
