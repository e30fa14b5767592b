"""What bad input gets: one error, an AutoLRSError and the builtin that fits it, that says what to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn
from tuned_loops import SEARCH, Counter, build, loop, run, update

import autolrs
from autolrs import Session, attach, load_study, tune
from autolrs.distributed.cluster import RayExecutor
from autolrs.errors import (
    AutoLRSError,
    IdentityError,
    LoaderError,
    RateOverriddenError,
    SessionError,
    SettingError,
    StudyNotFoundError,
    UnfinishedError,
    UnsupportedError,
    UntrackableError,
)
from autolrs.space import SearchSpace
from autolrs.strategies.horizon import Horizon


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# Settings: checked before anything is written

BAD_SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": 0}, ValueError, "`steps >= 1, an integer` must hold, but got 0"),
    ({"steps": -5}, ValueError, "but got -5"),
    ({"steps": 2.5}, ValueError, "but got 2.5"),
    ({"steps": True}, ValueError, "but got True"),
    ({"steps": "100"}, ValueError, "but got '100'"),
    ({"search_budget": -0.1}, ValueError, "`0 <= search_budget <= 100` must hold, but got -0.1"),
    ({"search_budget": 101}, ValueError, "but got 101"),
    ({"search_budget": math.nan}, ValueError, "but got nan"),
    ({"search_budget": "much"}, ValueError, "but got 'much'"),
    ({"seed": -1}, ValueError, r"`0 <= seed < 2\*\*32, an integer` must hold, but got -1"),
    ({"seed": 2**32}, ValueError, "but got 4294967296"),
    ({"seed": 0.5}, ValueError, "but got 0.5"),
    ({"checkpoint_every": 0}, ValueError, "`checkpoint_every >= 1, an integer` must hold, but got 0"),
    ({"checkpoint_every": 1.5}, ValueError, "but got 1.5"),
    ({"max_seconds": 0}, ValueError, r"`max_seconds > 0` must hold, but got \(max_seconds=0\)"),
    ({"max_seconds": math.nan}, ValueError, "max_seconds=nan"),
    ({"max_seconds": "1h"}, ValueError, "max_seconds='1h'"),
    (
        {"replay_memory": "lots"},
        ValueError,
        "`replay_memory` must be bytes, 0 or more, or like '512MiB', but got 'lots'",
    ),
    ({"replay_memory": "12 XiB"}, ValueError, "but got '12 XiB'"),
    ({"replay_memory": "-1MB"}, ValueError, "but got '-1MB'"),
    ({"replay_memory": -1}, ValueError, "but got -1"),
    ({"replay_memory": 1e9}, ValueError, "but got 1000000000.0"),
    ({"replay_memory": None}, ValueError, "but got None"),
    ({"name": "../x"}, ValueError, "a study's name must be 1 to 100 of the characters .* but got '../x'"),
    ({"name": ".x"}, ValueError, "not begin with a dot, but got '.x'"),
    ({"name": "a b"}, ValueError, "but got 'a b'"),
    ({"name": "x" * 101}, ValueError, "1 to 100"),
    ({"name": "größe"}, ValueError, "but got 'größe'"),
    ({"space": "adamx"}, LookupError, "unknown search space 'adamx'; known: .*adamw.*sgd.*or give the path"),
    ({"space": "no/such.yaml"}, LookupError, "there is no search-space file no/such.yaml; shipped spaces: .*adamw"),
    ({"strategy": "magic"}, LookupError, "unknown strategy 'magic'; known: autolrs.*horizon"),
    ({"strategy": None}, ValueError, "`strategy` must be a name or a `protocols.Strategy`, but got None"),
    ({"strategy": Horizon}, ValueError, "`strategy` must be a name or .* but got <class"),
    ({"space": (1e-3, 1.0)}, ValueError, r"`space` must be a name, a path or a `SearchSpace`, but got \(0.001, 1.0\)"),
    ({"callbacks": [print]}, ValueError, "a callback must have `on_event` and `on_progress`, but got <built-in"),
    ({"curve_model": "crystal"}, LookupError, "unknown curve model 'crystal'; known: auto, bayes, exponential, "),
    ({"curve_model": "crystal", "strategy": Horizon()}, LookupError, "unknown curve model 'crystal'"),
    ({"executor": "dask"}, LookupError, "unknown executor 'dask'; known: ray, serial"),
    ({"workers": 2}, ValueError, "executor='serial' runs in this process, but got workers=2, .* use executor='ray'"),
    ({"resources_per_worker": {"CPU": 1}}, ValueError, "use executor='ray'"),
    ({"executor": "ray", "workers": 0}, ValueError, "`workers >= 1, an integer` must hold for executor 'ray', but got"),
    ({"executor": "ray", "resources_per_worker": {"GPU": -1}}, ValueError, "numbers >= 0, by name` .* {'GPU': -1}"),
    ({"executor": RayExecutor(), "workers": 2}, ValueError, "go with executor='ray'; give RayExecutor"),
    ({"resume": "maybe"}, LookupError, "unknown resume mode 'maybe'; known: auto, must, never"),
    ({"options": {"lenght": 0.1}}, ValueError, "no parameter 'lenght', did you mean 'length'"),
    ({"options": {"length": -1}}, ValueError, "`0 < length <= 0.5` must hold in strategy 'horizon'"),
    ({"options": {"length": "long"}}, ValueError, "`length` of strategy 'horizon' must be float, but got 'long'"),
    ({"options": {"sampler.acquisition": "best"}}, LookupError, "'best'; known: "),
    ({"options": {"length": 0.1}, "strategy": Horizon()}, ValueError, "`options` go with a strategy's name"),
]


@pytest.mark.parametrize(("settings", "builtin", "message"), BAD_SETTINGS, ids=lambda value: str(value)[:40])
def test_a_bad_setting(settings: dict[str, Any], builtin: type[Exception], message: str, tmp_path: Path) -> None:
    def train(session: Session) -> None:
        raise AssertionError("must not be called")

    with pytest.raises(builtin, match=message) as info:
        tune(train, **({"steps": 10} | settings))
    assert isinstance(info.value, AutoLRSError)
    assert not list(tmp_path.iterdir())
    if not {"executor", "workers", "resources_per_worker"} & settings.keys():
        with pytest.raises(builtin, match=message):
            attach(**({"steps": 10} | settings))
    assert not list(tmp_path.iterdir())


def test_a_train_function_that_is_none_is_refused_before_a_study_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"`train` must be a function that takes a session, but got 'train\.py:"):
        tune("train.py:train", steps=10)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bounds", [(1e-1, 1e-3), (1e-2, 1e-2), (0.0, 1.0), (-1e-3, 1.0), (1e-3, math.inf), (math.nan, 1.0)]
)
def test_bounds_that_are_inverted_or_not_positive_or_not_finite(bounds: tuple[float, float], tmp_path: Path) -> None:
    values = rf"`0 < low < high < inf` must hold for `bounds`, but got \(low={bounds[0]}, high={bounds[1]}\)"
    with pytest.raises(ValueError, match=values) as info:
        SearchSpace("mine", bounds)
    assert isinstance(info.value, SettingError)
    path = tmp_path / "mine.yaml"
    path.write_text(f"bounds: [{bounds[0]}, {str(bounds[1]).replace('inf', '.inf')}]\n".replace("nan", ".nan"))
    with pytest.raises(SettingError, match=rf"mine\.yaml: {values}"):
        tune(loop(), steps=10, space=path)


def test_a_bad_key_in_a_space_file_is_named_with_the_file_and_the_value(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("bounds: [1e-3, 1]\nwarmpu: 0.1\n")
    with pytest.raises(
        SettingError, match=r"mine\.yaml: unknown key `warmpu` \(did you mean `warmup`\?\) with value 0\.1"
    ):
        tune(loop(), steps=10, space=str(path))


# The session out of order


def bad_loop(body: Callable[..., Any], error: type[AutoLRSError], message: str, **settings: Any) -> None:
    """`body(session, model, optimizer, loader)` is a loop that does something wrong."""

    def train(session: Session) -> None:
        body(session, *build())

    with pytest.raises(error, match=message):
        tune(train, **({"steps": 40, "search_budget": 0, "name": "bad"} | settings))


def test_report_before_track() -> None:
    def body(session: Session, *_: Any) -> None:
        session.report(torch.zeros(()))

    message = r"`report` was called outside `batches`.* after `session.track\(model=model, optimizer=optimizer\)`"
    bad_loop(body, SessionError, message)
    assert issubclass(SessionError, RuntimeError)


def test_batches_before_track() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        next(iter(session.batches(loader)))

    bad_loop(body, SessionError, r"needs a tracked optimizer: call `session.track\(model=model, optimizer=optimizer\)`")


@pytest.mark.parametrize(
    ("value", "name"), [(3, "int"), ("text", "str"), ([1, 2], "list"), (lambda: 0, "function"), (None, "NoneType")]
)
def test_an_object_that_cannot_be_tracked(value: Any, name: str) -> None:
    def body(session: Session, *_: Any) -> None:
        session.track(thing=value)

    bad_loop(body, UntrackableError, rf"`track\(thing=\.\.\.\)` got {name}, which cannot be restored: give a module")
    assert issubclass(UntrackableError, TypeError)


def test_a_tracked_scheduler() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 10))

    bad_loop(body, UntrackableError, r"learning-rate scheduler \(StepLR\).* remove the scheduler from the loop")


def test_track_twice_or_too_late() -> None:
    def twice(session: Session, model: nn.Module, *_: Any) -> None:
        session.track(model=model)
        session.track(model=model)

    def late(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        next(iter(session.batches(loader)))
        session.track(more=torch.zeros(1))

    bad_loop(twice, SettingError, "`track` got 'model' twice")
    bad_loop(late, SessionError, "`track` must be called before the first batch")


def test_which_optimizer_is_tuned() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, a=optimizer, b=torch.optim.SGD(model.parameters(), lr=1.0))
        next(iter(session.batches(loader)))

    bad_loop(body, SettingError, r"2 optimizers are tracked: say which is tuned, `tuned=` one of \['a', 'b'\]")
    bad_loop(body, SettingError, r"tuned='c' is not a tracked optimizer; tracked: \['a', 'b'\]", tuned="c")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], r"the loader \(list\) yields nothing in epoch 0: it is empty"),
        (iter(()), r"yields nothing in epoch 0: .* one-shot iterator that is used up"),
        (iter([(torch.zeros(2, 8), torch.zeros(2, 1))] * 5), r"yields nothing in epoch 1: .* can be iterated again"),
    ],
    ids=["empty", "used up", "too short"],
)
def test_a_loader_that_yields_nothing(loader: Any, message: str) -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, _: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    bad_loop(body, LoaderError, message)
    assert issubclass(LoaderError, ValueError)


def test_a_one_shot_loader_longer_than_the_replay_memory() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, _: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches((torch.zeros(2, 8), torch.zeros(2, 1)) for _ in range(100)):
            session.report(update(model, optimizer, batch))

    message = r"replay_memory is full: 4 batches of about \d+ bytes exceed the cap of 500 bytes.* Raise replay_memory"
    bad_loop(body, LoaderError, message, search_budget=1, replay_memory=500)


def test_two_reports_for_one_item_and_a_loss_that_is_not_a_scalar() -> None:
    def twice(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for _ in session.batches(loader):
            session.report(1.0)
            session.report(1.0)

    def vector(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for _ in session.batches(loader):
            session.report(torch.ones(3))

    bad_loop(twice, SessionError, "`report` was called twice for one item")
    bad_loop(vector, SessionError, r"`report` needs a scalar loss, but got shape \(3,\): reduce it first")


def test_somebody_else_writes_the_rate() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            optimizer.param_groups[0]["lr"] = 0.5
            session.report(update(model, optimizer, batch))

    bad_loop(
        body, RateOverriddenError, r"parameter group 0 has the learning rate 0\.5, but the session set .* Remove the"
    )


def test_train_that_returns_before_the_run_is_done() -> None:
    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))
            if Counter.steps == 35:
                break

    message = r"the loop ended after 32 of 40 steps: let `session\.batches` end by itself .* run it again to go on"
    bad_loop(body, UnfinishedError, message, checkpoint_every=16)
    assert issubclass(UnfinishedError, SessionError)
    assert tune(loop(validate=False), steps=40, search_budget=0, name="bad", checkpoint_every=16).cost.lost_steps == 3
    bad_loop(lambda *_: None, UnfinishedError, "the loop ended after 0 of 40 steps", name="idle")


def test_several_distributed_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)

    def body(session: Session, model: nn.Module, optimizer: Any, loader: Any) -> None:
        session.track(model=model, optimizer=optimizer)
        next(iter(session.batches(loader)))

    bad_loop(body, UnsupportedError, "torch.distributed runs with 4 processes, .* replay the exported schedule on all")


# Resuming something else


def fail_at(update: int) -> Callable[[Session, Tensor], None]:
    def each(session: Session, loss: Tensor) -> None:
        if Counter.steps == update:
            raise ZeroDivisionError("the user's own")

    return each


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(ZeroDivisionError):
        run(folder, loop(each=fail_at(12)), strategy="horizon")
    yield folder
    assert load_study("run", str(folder)).cost.kept_steps == 0, "nobody has gone on with it"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 70}, "steps was 60, now 70; budget was 30, now 35"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"space": "adam"}, "space was .*'toy'.* now .*'adam'"),
        ({"strategy": "autolrs"}, "strategy was 'horizon', now 'autolrs'"),
        ({"options": {"length": 0.25}}, "options was .*'length': 0.06.* now .*'length': 0.25"),
        ({"search_budget": 0.25}, "budget was 30, now 15"),
        ({"curve_model": "exponential"}, "curve_model was 'auto', now 'exponential'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_resumed_study_whose_identity_differs(
    unfinished: Path, changed: dict[str, Any], message: str, resume: str
) -> None:
    with pytest.raises(IdentityError, match=f"study 'run' was begun with other settings: {message}.* Put them back"):
        run(unfinished, **({"strategy": "horizon", "resume": resume} | changed))
    assert issubclass(IdentityError, ValueError)


def test_a_resumed_loop_that_differs(unfinished: Path) -> None:
    def other_rate(session: Session) -> None:
        model, optimizer, loader = build()
        optimizer.param_groups[0]["lr"] = 0.5
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: 0.0)
        next(iter(session.batches(loader)))

    with pytest.raises(IdentityError, match=r"another reference learning rate: 0\.002, now 0\.5\. Put it back"):
        run(unfinished, other_rate, strategy="horizon")
    with pytest.raises(IdentityError, match="another use of `validate`: True, now False"):
        run(unfinished, loop(validate=False), strategy="horizon")

    def other_model(session: Session) -> None:
        model, _, loader = build()
        model.append(nn.Linear(1, 1))
        session.track(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))
        session.validate(lambda: 0.0)
        next(iter(session.batches(loader)))

    with pytest.raises(OSError, match=r"the model's tensors are not those of the checkpoint: .*'4.bias'"):
        run(unfinished, other_model, strategy="horizon")


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    tune(loop(), steps=1, search_budget=0, name="only")
    with pytest.raises(StudyNotFoundError, match="no study 'other' in autolrs-runs; studies there: only"):
        tune(loop(), steps=1, name="other", resume="must")
    with pytest.raises(StudyNotFoundError, match="no study 'other' in autolrs-runs; studies there: only"):
        load_study("other")
    assert issubclass(StudyNotFoundError, FileNotFoundError)
    assert not (tmp_path / "autolrs-runs" / "other").exists()


# Storage


def test_a_storage_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep a study in .*file") as info:
        tune(loop(), steps=1, storage=str(tmp_path / "file"))
    assert isinstance(info.value, AutoLRSError)
    with pytest.raises(OSError, match=r"cannot use .*file.* for checkpoints"):
        tune(loop(), steps=1, checkpoint_dir=tmp_path / "file", name="a")
    with pytest.raises(SettingError, match=r"the storage nosuchdb://me:\*\*\*@host/x failed"):
        tune(loop(), steps=1, storage="nosuchdb://me:secret@host/x")


def test_an_optuna_study_of_somebody_elses(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(study_name="mine", storage=url).set_user_attr("owner", "somebody")
    with pytest.raises(SettingError, match="has an Optuna study 'mine' that is not of autolrs"):
        tune(loop(), steps=1, storage=url, name="mine")


# What is not ours comes out as it is


@pytest.mark.parametrize("moment", [1, 5, 30, 50])
def test_the_users_own_exception_comes_out_unchanged(
    tmp_path: Path, moment: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(BaseException):
        pass

    error = Odd("one", 2)

    def each(session: Session, loss: Tensor) -> None:
        if Counter.steps == moment:
            raise error

    with pytest.raises(Odd) as info:
        run(tmp_path, loop(each=each))
    assert info.value is error
    assert error.args == ("one", 2)
    assert error.__cause__ is None
    (note,) = error.__notes__
    assert (
        note
        == f"study 'run' in {tmp_path} has {16 if moment == 50 else 0} of 60 steps saved: run the same again to go on."
    )
    assert not caplog.records
    assert run(tmp_path).finished


def test_what_validate_raises_comes_out_unchanged(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        session.validate(lambda: 1 / 0)
        next(iter(session.batches(loader)))

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, train)


def test_a_strategy_that_overspends_is_told(tmp_path: Path) -> None:

    with pytest.raises(
        SettingError, match=r"asked for a probe of 10 steps in stage 0, but 5 of the budget of 15 are left"
    ):
        run(tmp_path, strategy=replace(SEARCH, rates=(1e-3, 2e-3)), search_budget=0.25)


def test_warnings_go_to_the_librarys_log_and_nowhere_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert logging.getLogger("autolrs").handlers == []
    run(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert isinstance(autolrs.__version__, str)
