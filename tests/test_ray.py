"""The executor on real Ray workers: the run is the serial one, whatever the loop is and wherever it comes from."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Scripted
from ray_loops import HORIZON, local_ray, run_on_ray, story
from torch.utils.data import DataLoader, TensorDataset
from tuned_loops import SEARCH, build, data, loop, run, update

from autolrs import Session, journal
from autolrs.distributed.cluster import check_store
from autolrs.distributed.members import Member
from autolrs.errors import CheckpointError, IdentityError, SettingError, StoppedError, UnfinishedError
from autolrs.records import Event, Issued, Trained
from autolrs.storage import StudyStore

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _ray() -> Iterator[None]:
    with local_ray():
        yield


def in_epochs(session: Session) -> Any:
    """A loop with epochs of its own, and with state of its own."""
    model, optimizer, loader = build()
    session.track(model=model, optimizer=optimizer)
    session.state["items"] = 0
    while not session.done:
        for batch in session.batches(loader, epochs=1):
            session.state["items"] += 1
            session.report(update(model, optimizer, batch))
    return {"items": session.state["items"], "bias": model[0].bias.tolist()}


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (loop(), HORIZON),
        (loop(), {"strategy": Scripted(rates=(0.1,), length=20), "average": True}),
        (loop(own_generator=True, validate=False), {}),  # adopts the winner's plateau
        pytest.param(in_epochs, {}, marks=pytest.mark.slow),
    ],
)
def test_one_worker_is_the_serial_run_bit_for_bit(train: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    assert story(run_on_ray(tmp_path / "ray", train, **settings)) == story(run(tmp_path / "serial", train, **settings))


def test_two_workers_run_twice_are_equal_bit_for_bit(tmp_path: Path) -> None:
    first, second = (run_on_ray(tmp_path / name, workers=2, **HORIZON) for name in "ab")
    assert story(first) == story(second)
    assert first.exact


def meeting(folder: Path) -> Any:
    """A loop whose probes go on only when two workers have begun one."""

    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            if session.is_probe:
                (folder / str(os.getpid())).touch()
                deadline = time.monotonic() + 120
                while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
                    time.sleep(0.02)
            session.report(update(model, optimizer, batch))

    return train


def test_two_workers_probe_at_once(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    run_on_ray(tmp_path / "a", meeting(tmp_path / "met"), workers=2)
    assert len(list((tmp_path / "met").iterdir())) == 2
    with StudyStore.open("run", storage=tmp_path / "a", readonly=True) as store:
        events = [type(event).__name__ for event in store.events()]
    assert any(pair == ("Issued", "Issued") for pair in pairwise(events))


@pytest.mark.slow
def test_a_worker_that_nobody_needs_any_more_is_given_back(tmp_path: Path) -> None:
    """In its kept run, this loop asks for the CPU of the other worker, which leaves through its `finally`."""

    def train(session: Session) -> Any:
        import ray

        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        try:
            for batch in session.batches(loader):
                if not session.is_probe and session.step == 100:
                    ray.get(ray.remote(lambda: 1).options(num_cpus=1).remote(), timeout=30)
                session.report(update(model, optimizer, batch))
        finally:
            (tmp_path / str(os.getpid())).touch()
        return os.getpid()

    study = run_on_ray(tmp_path, train, workers=2, **HORIZON)
    left = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert len(left) == 2
    assert str(study.result) in left


def test_the_winner_keeps_the_run_on_the_worker_that_has_its_state(tmp_path: Path) -> None:
    """Three probes on two workers, the second wins: the same as one worker, without a step trained twice."""
    search = {"strategy": SEARCH, "steps": 60}
    study = run_on_ray(tmp_path / "ray", workers=2, **search)
    assert story(study) == story(run(tmp_path / "serial", **search))
    assert study.stages[0].winner == 1
    assert study.cost.adopted_steps == 6
    with StudyStore.open("run", storage=tmp_path / "ray", readonly=True) as store:
        assert next(event for event in store.events() if isinstance(event, Trained)).adopted


@pytest.mark.slow
def test_asynchronous_workers_spend_the_budget_and_no_more(tmp_path: Path) -> None:
    study = run_on_ray(tmp_path, workers=2, deterministic=False, **HORIZON)
    assert study.finished
    assert study.cost.probe_steps <= 80
    assert len(study.stages[0].trials) >= 4
    with StudyStore.open("run", storage=tmp_path, readonly=True) as store:
        assert len([event for event in store.events() if isinstance(event, Issued)]) == len(study.stages[0].trials)


def with_loader_workers(session: Session) -> dict[str, Any]:
    """Loads in processes of its own; says what the worker gives it."""
    model, optimizer, _ = build()
    inputs, targets = data()
    loader = DataLoader(TensorDataset(inputs, targets), 20, shuffle=True, num_workers=1)
    session.track(model=model, optimizer=optimizer)
    for batch in session.batches(loader):
        session.report(update(model, optimizer, batch))
    return {
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "process": os.getpid(),
        "args": dict(session.args),
    }


def test_a_worker_has_its_share_of_the_machine_and_may_load_in_processes(tmp_path: Path) -> None:
    settings = {"resources_per_worker": {"CPU": 2}, "args": {"a": 1}, "search_budget": 0, "steps": 30}
    result = run_on_ray(tmp_path, with_loader_workers, **settings).result
    assert result.pop("process") != os.getpid()
    assert result == {"threads": 2, "omp": "2", "gpus": "", "args": {"a": 1}}


# Where functions come from

SCRIPT = """
import functools
import torch

import autolrs

WIDTH = 8

@functools.cache
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, WIDTH, generator=generator)
    return x, x.sum(1, keepdim=True)

def train(session):
    model = torch.nn.Linear(WIDTH, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session.track(model=model, optimizer=optimizer)
    for x, y in session.batches(list(zip(*(part.split(20) for part in data())))):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss)
    return model.weight.tolist()
"""


@pytest.mark.slow
def test_functions_of_a_script_and_of_main_run_as_they_do_serially(tmp_path: Path) -> None:
    """The same file by `autolrs tune FILE:train`, and as a program without a guard, which workers must not run."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    call = "autolrs.tune(train, steps=40, name='run', search_budget=0.5, executor='{}', storage='{}')"
    (tmp_path / "program.py").write_text(f"{SCRIPT}\nprint({call.format('ray', 'main')}.result)\n")
    script = (sys.executable, "-m", "autolrs.cli", "tune", "mine.py:train", "--steps", "40", "--search-budget", "0.5")
    name = ("--name", "run", "--storage")
    commands = [
        (*script, *name, "serial"),
        (*script, *name, "script", "--executor", "ray"),
        (sys.executable, "program.py"),
    ]
    running = [subprocess.Popen(command, cwd=tmp_path) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    found = []
    for storage in ("serial", "script", "main"):
        with StudyStore.open("run", storage=tmp_path / storage, readonly=True) as store:
            found.append((store.result, store.events()[:-2]))  # without the wall time
    assert found[1][0] == found[0][0]
    assert found[2][0] == found[0][0]
    assert found[1][1] == found[0][1]


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    lock = threading.Lock()

    def train(session: Session) -> None:
        with lock:
            pass

    with pytest.raises(SettingError, match=r"train' cannot be sent to the workers, because it uses 'lock', a lock, wh"):
        run_on_ray(tmp_path, train)
    with pytest.raises(SettingError, match=r"cannot be sent to the workers, because it uses 0, a lock, which"):
        run_on_ray(tmp_path, functools.partial(print, lock))
    assert not list(tmp_path.iterdir())


# Errors


class OwnError(Exception):
    """Cannot be unpickled: it wants two arguments, and passes one on."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


def failing(kind: type[Exception], *args: str) -> Any:
    def broken_in_the_users_code(session: Session, loss: torch.Tensor) -> None:
        if session.is_probe and session.step == 5:
            raise kind(*args)

    return loop(each=broken_in_the_users_code)


def test_the_users_error_comes_out_with_its_traceback_and_the_study_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="mine") as info:
        run_on_ray(tmp_path, failing(ZeroDivisionError, "mine"), workers=2)
    assert "in broken_in_the_users_code" in str(info.value.__cause__)
    assert "run the same again to go on" in info.value.__notes__[0]
    assert story(run_on_ray(tmp_path)) == story(run(tmp_path / "serial"))


@pytest.mark.slow
def test_an_error_that_cannot_be_sent_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"OwnError: no luck") as info:
        run_on_ray(tmp_path, failing(OwnError, "no", "luck"))
    assert "in broken_in_the_users_code" in str(info.value.__cause__)


def test_a_loop_that_ends_too_soon(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, optimizer, loader = build()
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))
            return

    with pytest.raises(UnfinishedError, match="after 0 of 60 steps"):
        run_on_ray(tmp_path, train)


@pytest.mark.slow
def test_workers_that_set_up_different_optimizers_are_refused(tmp_path: Path) -> None:
    def train(session: Session) -> None:
        model, _, loader = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=os.getpid() * 1e-6)
        session.track(model=model, optimizer=optimizer)
        for batch in session.batches(loader):
            session.report(update(model, optimizer, batch))

    with pytest.raises(IdentityError, match="`train` must set up the same model and optimizer wherever it runs"):
        run_on_ray(tmp_path, train, workers=2)


class Stops:
    """A callback that stops the run, by its own error, at the first probe's end."""

    def on_event(self, record: Any, event: Any) -> None:
        if type(event).__name__ == "Probed":
            raise KeyError("enough")

    def on_progress(self, *args: Any) -> None:
        pass


def test_a_callbacks_error_comes_out_unchanged(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="enough"):
        run_on_ray(tmp_path, callbacks=[Stops()])


def test_what_could_not_be_stored_is_not_said_to_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StudyStore._store

    def full(self: StudyStore, position: int, event: Event) -> None:
        if isinstance(event, Trained):
            monkeypatch.setattr(StudyStore, "_store", store)
            raise CheckpointError("no room for this")
        store(self, position, event)

    monkeypatch.setattr(StudyStore, "_store", full)
    with pytest.raises(CheckpointError, match="no room for this") as error:
        run_on_ray(tmp_path, **HORIZON)
    assert "has 0 of 200 steps saved" in error.value.__notes__[0]
    with StudyStore.open("run", storage=tmp_path, readonly=True) as reader:
        assert not any(isinstance(event, Trained) for event in reader.events())
    assert story(run_on_ray(tmp_path, **HORIZON)) == story(run(tmp_path / "serial", **HORIZON))


@pytest.mark.slow
def test_max_seconds_stops_resumable_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    settings = {"steps": 400, "checkpoint_every": 50}

    def slow(session: Session, loss: torch.Tensor) -> None:
        if not session.is_probe and session.step == 120:
            threading.Event().wait(4)

    with pytest.raises(StoppedError, match=r"stopped at step \d+ of 400 \(max_seconds is over\)"):
        run_on_ray(tmp_path / "ray", loop(each=slow), max_seconds=1.5, **settings)
    study = run_on_ray(tmp_path / "ray", **settings)
    assert story(study) == story(run(tmp_path / "serial", **settings))
    assert study.cost.lost_steps == 0


def test_what_a_worker_told_is_stored_while_it_is_at_work_again_and_the_disk_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, wait, send = journal._append, journal.sync, Member.send
    told: list[str] = []

    def appended(path: Path, data: bytes, *, sync: bool) -> None:
        told.append("waits for an event" if sync else "event")
        append(path, data, sync=sync)

    monkeypatch.setattr(journal, "_append", appended)
    monkeypatch.setattr(journal, "sync", lambda path: (told.append("waits"), wait(path)))
    monkeypatch.setattr(Member, "send", lambda self, *order: (told.append("order"), send(self, *order)))
    run_on_ray(tmp_path)
    orders = [number for number, what in enumerate(told) if what == "order"]
    between = [told[a + 1 : b] for a, b in pairwise(orders[2:6])]  # after the beginning, and the stage's: three probes
    assert between == [["event", "event", "event", "waits"]] * 3


# Before anything is paid


@pytest.mark.parametrize(
    ("workers", "resources", "message"),
    [
        (3, {"CPU": 1}, r"3 workers with CPU 1 each can never run here: there is room for 2 \(CPU 2\)"),
        (
            1,
            {"CPU": 1, "GPU": 1},
            r"1 workers with CPU 1, GPU 1 each can never run here: there is room for 0 \(CPU 2, G",
        ),
        (1, {"CPU": 1, "tpu": 0.5}, r"room for 0 \(CPU 2, tpu 0\). Ask for fewer workers or fewer resources"),
    ],
)
def test_what_can_never_be_given_is_refused_at_once(
    workers: int, resources: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        run_on_ray(tmp_path, workers=workers, resources_per_worker=resources)


def test_a_state_that_the_object_store_cannot_hold_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"has 1,000,000.0 MB, of which Ray's object store must hold 2.2 copies, but"
    ):
        check_store(10**12)


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    code = (
        "import autolrs\nfrom autolrs.distributed.cluster import RayExecutor\n"
        "autolrs.tune(print, steps=1, executor=RayExecutor(address='127.0.0.1:1'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "SettingError: cannot connect to Ray at '127.0.0.1:1'" in done.stderr
