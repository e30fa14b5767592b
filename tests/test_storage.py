from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState

from autolrs import locks, storage
from autolrs.backends import open_sql
from autolrs.errors import (
    CheckpointError,
    IdentityError,
    SettingError,
    StudyLockedError,
    StudyNotFoundError,
)
from autolrs.records import (
    Curve,
    Decide,
    Decided,
    Event,
    Forecast,
    Issued,
    Opened,
    Probed,
    Settings,
    Started,
    Trained,
    TrialState,
)
from autolrs.schedules import Piece
from autolrs.space import SearchSpace
from autolrs.storage import StudyStore

SETTINGS = Settings(1000, 300, 0, SearchSpace("test", (1e-4, 1.0)), "horizon", {"k": 6})
CURVE = Curve((0.5, 2.5, 4.5), (3.0, 2.0, 1.0), (0.1, 0.1, 0.1), 0.01)
EVENTS: tuple[Event, ...] = (
    Started(0.1, (1.0, 0.5), True),
    Opened(0, 0, 3.0),
    Issued(0, 0, 0.1, 6),
    Probed(0, 0, TrialState.COMPLETE, 6, CURVE, objective=1.0, forecast=Forecast(900, 0.5, 0.1)),
    Issued(0, 1, 0.9, 6),
    Probed(0, 1, TrialState.DIVERGED, 5, replace(CURVE, losses=(3.0, math.inf, math.nan)), objective=math.inf),
    Decided(Decide(0, 0.1, 1000, (Piece(0, 1000, "linear", 0.1, 0.0),), winner=0, reason="best of 2")),
    Trained(0, 100, CURVE),
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Optuna's tables, which take long to make."""
    path = tmp_path_factory.mktemp("database") / "study.db"
    open_sql(f"sqlite:///{path}", readonly=False).close()
    return path


@pytest.fixture(params=["journal", "sqlite"])
def where(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path
) -> str | None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.02)
    if request.param == "journal":
        return None
    shutil.copy(database, tmp_path)
    return "sqlite:///study.db"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a journal study named x with all events, closed."""
    monkeypatch.chdir(tmp_path)
    with new() as store:
        fill(store)
    return tmp_path / "autolrs-runs" / "x"


def new(where: str | Path | None = None, **options: object) -> StudyStore:
    store = StudyStore.open("x", storage=where, **options)  # type: ignore[arg-type]
    store.create_settings(SETTINGS, {"function": "train"})
    return store


def fill(store: StudyStore, events: tuple[Event, ...] = EVENTS) -> None:
    for event in events:
        store.append(event)


def states(store: StudyStore) -> list[OptunaState]:
    return [trial.state for trial in store.optuna_study.trials]


def test_what_was_stored_is_read_back(where: str | None) -> None:
    assert not StudyStore.exists("x", where)
    with new(where) as store:
        fill(store)
        store.save_result({"accuracy": 0.9})
        assert repr(store.events()) == repr(EVENTS)
    assert StudyStore.exists("x", where)
    assert StudyStore.list_names(where) == ["x"]
    for readonly in (False, True):
        with StudyStore.open("x", storage=where, readonly=readonly, create=False) as store:
            assert repr(store.events()) == repr(EVENTS)  # repr, for a NaN is not equal to itself
            assert store.settings == SETTINGS
            assert store.extra == {"function": "train"}
            assert store.result == {"value": {"accuracy": 0.9}, "repr": "{'accuracy': 0.9}"}


def test_each_probe_is_an_optuna_trial(where: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    with new(where) as store:
        fill(store)
    if where is None:
        backend = optuna.storages.journal.JournalFileBackend("autolrs-runs/x/study.journal")
        study = optuna.load_study(study_name="x", storage=optuna.storages.JournalStorage(backend))
    else:
        study = optuna.load_study(study_name="x", storage=where)
    assert [trial.state for trial in study.trials] == [OptunaState.COMPLETE, OptunaState.PRUNED]
    assert study.best_value == 0.5
    assert study.best_params == {"rate": 0.1}
    assert study.trials[0].intermediate_values == {0: 3.0, 2: 2.0, 4: 1.0}
    assert study.trials[1].value == 3.0
    assert study.trials[1].user_attrs["reason"] == "diverged"
    assert study.user_attrs["stage 0"] == "rate 0.1 until step 1000 (best of 2)"
    assert capfd.readouterr().err == ""


def test_a_crash_leaves_no_running_trial_and_reopening_twice_changes_nothing(where: str | None) -> None:
    with new(where) as store:
        fill(store, EVENTS[:3])
        assert states(store) == [OptunaState.RUNNING]
    views = []
    for _ in range(2):
        with StudyStore.open("x", storage=where) as store:
            assert states(store) == [OptunaState.FAIL]
            views.append((store.events(), store.optuna_study.trials, store.optuna_study.user_attrs))
    assert views[0] == views[1]
    with StudyStore.open("x", storage=where) as store:
        fill(store, EVENTS[2:])
        assert states(store) == [OptunaState.FAIL, OptunaState.COMPLETE, OptunaState.PRUNED]


def test_a_reader_follows_the_writer_and_writes_nothing(where: str | None) -> None:
    with new(where) as store:
        fill(store, EVENTS[:3])
        with StudyStore.open("x", storage=where, readonly=True) as reader:
            assert reader.events() == EVENTS[:3]
            store.append(EVENTS[3])
            assert reader.events() == EVENTS[:4]
            for write in (
                lambda: reader.append(EVENTS[4]),
                lambda: reader.save_result(1),
                lambda: reader.heartbeat({}),
                lambda: reader.checkpoints.save(1, {}),
            ):
                with pytest.raises(StudyLockedError, match="reading only"):
                    write()
        store.append(EVENTS[4])
        assert store.events() == EVENTS[:5]


def test_within_lagging_events_are_stored_at_its_end_or_when_flushed(where: str | None) -> None:
    with new(where) as store, StudyStore.open("x", storage=where, readonly=True) as reader:
        with store.lagging():
            fill(store, EVENTS[:3])
            assert (reader.events(), store.events()) == ((), EVENTS[:3])
            store.flush()
            assert reader.events() == EVENTS[:3]
            fill(store, EVENTS[3:5])
            assert reader.events() == EVENTS[:3]
        assert reader.events() == EVENTS[:5]
        with pytest.raises(KeyError), store.lagging():  # noqa: PT012
            store.append(EVENTS[5])
            raise KeyError
        assert repr(reader.events()) == repr(EVENTS[:6])  # one holds a NaN
        fill(store, EVENTS[6:])
        assert repr(reader.events()) == repr(store.events()) == repr(EVENTS)
        assert states(store) == [OptunaState.COMPLETE, OptunaState.PRUNED]


def test_what_cannot_be_stored_at_the_end_of_lagging_is_not_among_the_events(
    where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new(where) as store:
        real, written = store._backend.storage.set_study_user_attr, []

        def full(study_id: int, key: str, value: object) -> None:
            written.append(key)
            if len(written) == 3:
                raise CheckpointError("the disk is full")
            real(study_id, key, value)

        monkeypatch.setattr(store._backend.storage, "set_study_user_attr", full)
        with pytest.raises(CheckpointError, match="full"), store.lagging():
            fill(store)
        assert store.events() == EVENTS[:2]
        store.append(EVENTS[2])
    with StudyStore.open("x", storage=where) as store:
        assert store.events() == EVENTS[:3]


def test_what_an_interrupt_held_up_is_stored_with_the_next_event_or_when_the_store_is_closed(
    where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new(where) as store:
        real, keys = store._backend.storage.set_study_user_attr, []

        def interrupted(study_id: int, key: str, value: object) -> None:
            keys.append(key)
            if len(keys) in (2, 5):
                raise KeyboardInterrupt
            real(study_id, key, value)

        monkeypatch.setattr(store._backend.storage, "set_study_user_attr", interrupted)
        with pytest.raises(KeyboardInterrupt), store.lagging():
            fill(store, EVENTS[:3])
        assert store.events() == EVENTS[:3]
        with StudyStore.open("x", storage=where, readonly=True) as reader:
            assert reader.events() == EVENTS[:1]
            with pytest.raises(KeyboardInterrupt):
                store.append(EVENTS[3])
            assert reader.events() == EVENTS[:3]
    with StudyStore.open("x", storage=where) as store:
        assert store.events() == EVENTS[:4]


def test_studies_that_do_not_exist(where: str | None, tmp_path: Path) -> None:
    before = list(tmp_path.iterdir())
    for options in ({"readonly": True}, {"create": False}):
        with pytest.raises(StudyNotFoundError, match=r"no study 'x' in .*; studies there: none"):
            StudyStore.open("x", storage=where, **options)
    assert list(tmp_path.iterdir()) == before
    new(where).close()
    with pytest.raises(StudyNotFoundError, match=r"no study 'y' in .*; studies there: x"):
        StudyStore.open("y", storage=where, readonly=True)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "x" * 101, "é", "a b", "x\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(SettingError, match="1 to 100 of the characters"):
        StudyStore.open(name)


def test_settings_come_first_and_once(where: str | None) -> None:
    with StudyStore.open("x", storage=where) as store:
        assert store.settings is None
        with pytest.raises(SettingError, match="no settings yet"):
            store.append(EVENTS[0])
    assert not StudyStore.exists("x", where)  # killed at birth: not a study
    with new(where) as store, pytest.raises(IdentityError, match="already has settings"):
        store.create_settings(SETTINGS, {})


def test_results_that_are_no_json_leave_their_repr(where: str | None) -> None:
    with new(where) as store:
        assert store.result is None
        for value in ({1, 2}, math.nan, torch.ones(1), None):
            store.save_result(value)
            assert store.result == {"repr": repr(value)} | ({"value": None} if value is None else {})


def test_heartbeats(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with new(where) as store:
        assert store.last_heartbeat() is None
        store.heartbeat({"step": 1, "loss": math.inf})
        store.heartbeat({"step": 2})
        with StudyStore.open("x", storage=where, readonly=True) as reader:
            beat = reader.last_heartbeat()
        assert beat is not None
        assert (beat["step"], beat["loss"]) == (1, math.inf)
        assert abs(beat["time"] - time.time()) < 5
        monkeypatch.setattr(storage, "PROGRESS_SECONDS", 0.0)
        store.heartbeat({"step": 3})
        assert store.last_heartbeat()["step"] == 3  # type: ignore[index]
        monkeypatch.setattr(storage, "replace_file", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
        store.heartbeat({"step": 4})


def test_two_writers_are_refused_and_a_takeover_stops_the_first(where: str | None) -> None:
    first = new(where)
    with pytest.raises(StudyLockedError, match=rf"study 'x' is in use by .*{os.getpid()}.*--takeover"):
        StudyStore.open("x", storage=where)
    first.append(EVENTS[0])
    second = StudyStore.open("x", storage=where, takeover=True)
    assert second.events() == EVENTS[:1]
    for write in (
        lambda: first.append(EVENTS[1]),
        lambda: first.checkpoints.save(1, {}),
        lambda: first.heartbeat({}),
        lambda: first.save_result(1),
    ):
        with pytest.raises(StudyLockedError, match="not this process's to write"):
            write()
    first.close()
    second.append(EVENTS[1])
    second.close()
    with pytest.raises(StudyLockedError):
        second.append(EVENTS[2])
    with StudyStore.open("x", storage=where) as third:
        assert third.events() == EVENTS[:2]


def test_where_things_lie(where: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new(where) as store:
        store.checkpoints.save(5, {"a": 1})
    assert (tmp_path / "autolrs-runs/x/checkpoints/step-00000005.safetensors").is_file()
    assert store.location == ("autolrs-runs" if where is None else where)
    options = {"storage": where or "runs", "checkpoint_dir": "elsewhere"}
    with StudyStore.open("y", **options) as store:  # type: ignore[arg-type]
        store.create_settings(SETTINGS, {})
        store.checkpoints.save(6, {"a": 2})
    assert (tmp_path / "elsewhere/y/step-00000006.safetensors").is_file()
    assert StudyStore.list_names(where or Path("runs")) == (["y"] if where is None else ["x", "y"])
    # A study remembers a checkpoint_dir, and an SQL study its folder, for those who open it from elsewhere.
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    again = f"sqlite:///{tmp_path}/study.db" if where else tmp_path / "runs"
    with StudyStore.open("y", storage=again, readonly=True) as store:
        assert store.checkpoints.load(6) == {"a": 2}


def test_a_journal_study_can_be_moved(folder: Path, tmp_path: Path) -> None:
    with StudyStore.open("x") as store:
        store.checkpoints.save(5, {"a": 1})
    shutil.move(tmp_path / "autolrs-runs", tmp_path / "moved")
    with StudyStore.open("x", storage=tmp_path / "moved", create=False) as store:
        assert store.checkpoints.load(5) == {"a": 1}


def test_what_is_not_ours_is_left_alone(where: str | None, tmp_path: Path) -> None:
    if where is not None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(study_name="x", storage=where)
        study.add_trial(optuna.trial.create_trial(value=1.0))
        with pytest.raises(SettingError, match="an Optuna study 'x' that is not of autolrs"):
            StudyStore.open("x", storage=where)
        assert not StudyStore.exists("x", where)
    with StudyStore.open("old") as store:
        store.checkpoints.save(1, {})
    options = {"storage": where or "runs", "checkpoint_dir": "autolrs-runs"}
    shutil.move(tmp_path / "autolrs-runs/old/checkpoints/manifest.json", tmp_path / "autolrs-runs/old/manifest.json")
    with pytest.raises(SettingError, match=r"is new, but .*old has checkpoints of another study"):
        StudyStore.open("old", **options)  # type: ignore[arg-type]
    with new("runs") as store:  # and the failed openings have let go of everything
        fill(store)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot keep a study in .*file/x"):
        StudyStore.open("x", storage=tmp_path / "file")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0.3, 1))
def test_a_journal_cut_anywhere_continues_from_its_whole_lines(
    cut: float, folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    content = (folder / "study.journal").read_bytes()
    place = max(int(cut * len(content)), content.index(b"autolrs:event:000000"))
    copy = tmp_path / "cut" / "x"
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.mkdir(parents=True)
    (copy / "study.journal").write_bytes(content[:place])
    caplog.clear()
    with StudyStore.open("x", storage=copy.parent, readonly=True) as reader:
        known = len(reader.events())
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="autolrs"), StudyStore.open("x", storage=copy.parent) as store:
        assert repr(store.events()) == repr(EVENTS[:known])
        assert OptunaState.RUNNING not in states(store)
        assert ("incomplete" in caplog.text) == (content[place - 1 : place] != b"\n")
        assert (copy / "study.journal.damaged").exists() == bool(caplog.records)
        fill(store, EVENTS[known:])
    with StudyStore.open("x", storage=copy.parent) as store:
        assert repr(store.events()) == repr(EVENTS)
        assert [state for state in states(store) if state != OptunaState.FAIL] == [
            OptunaState.COMPLETE,
            OptunaState.PRUNED,
        ]


def test_a_journal_damaged_in_the_middle_is_named(folder: Path) -> None:
    journal = folder / "study.journal"
    lines = journal.read_bytes().split(b"\n")
    lines[4] = lines[4][:30]
    journal.write_bytes(b"\n".join(lines))
    for readonly in (True, False):
        with pytest.raises(CheckpointError, match=r"line 5 of .*study\.journal is damaged"):
            StudyStore.open("x", readonly=readonly)
    assert StudyStore.list_names() == ["x"]  # one damaged study does not hide the others


def test_missing_and_unknown_events_are_errors(folder: Path) -> None:
    journal = folder / "study.journal"
    text = journal.read_text()
    for old, new_, message in (
        ("autolrs:event:000001", "autolrs:event:900001", "event 1 of study 'x' in .* is missing"),
        ('"type":"Started"', '"type":"Rebooted"', "another version of autolrs"),
        ('"own_rate"', '"their_rate"', "another version of autolrs"),
    ):
        assert old in text
        journal.write_text(text.replace(old, new_))
        with pytest.raises(CheckpointError, match=message):
            StudyStore.open("x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "autolrs-test", str(disk)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a file system")
    except FileNotFoundError:
        pytest.skip("no mount command")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with new(small_disk) as store:
        fill(store)
        store.checkpoints.save(100, {"a": torch.ones(1000)})
        ballast.write_bytes(b"x" * 40_000)
        count = 0
        with pytest.raises(CheckpointError, match=r"No space left on device.*Make room|make room"):  # noqa: PT012
            while True:
                store.append(replace(EVENTS[-1], start=100 + count, stop=101 + count))
                count += 1
        assert len(store.events()) == len(EVENTS) + count
        with pytest.raises(CheckpointError, match="cannot write checkpoint"):
            store.checkpoints.save(200, {"a": torch.ones(100_000)})
        assert store.checkpoints.latest()[0] == 100
        ballast.unlink()
        store.append(EVENTS[-1])
    with StudyStore.open("x", storage=small_disk, create=False) as store:
        assert len(store.events()) == len(EVENTS) + count + 1
        assert not (small_disk / "x" / "study.journal.damaged").exists()


KILLED = """
import os, pickle, signal, sys
import torch
from optuna.storages import JournalStorage, RDBStorage
from autolrs import checkpoints, journal, locks
from autolrs.mirror import Mirror
from autolrs.storage import StudyStore

locks.SETTLE_SECONDS = 0.02
settings, events, places = pickle.load(sys.stdin.buffer)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_half_way(descriptor, data):
    real(descriptor, bytes(data)[:part])
    die()

def run(where, name, storage):
    global real, part
    real, part = os.write, 100 if where == "in-the-event" else 1500
    store = StudyStore.open(name, storage=storage)
    store.create_settings(settings, {})
    for event in events[:2]:
        store.append(event)
    if where == "before-the-trial":
        Mirror._create = die
    store.append(events[2])
    if where == "in-the-trial-end":
        JournalStorage.set_trial_state_values = RDBStorage.set_trial_state_values = die
    elif where in ("in-the-event", "in-the-trial"):
        os.write = die_half_way
    store.append(events[3])
    store.checkpoints.save(100, {"step": 100})
    if where == "checkpoint-listed":
        die()
    checkpoints.CheckpointStore._write_manifest = die
    store.checkpoints.save(200, {"step": 200})

StudyStore.exists("x", places[1][2])  # imports what is to be imported before forking
for where, name, storage in places:
    child = os.fork()
    if child == 0:
        run(where, name, storage)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, where
"""


def test_a_kill_at_any_moment_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.02)
    moments = {  # number of events, whether the trial is made, last checkpoint
        "before-the-trial": (3, OptunaState.FAIL, None),
        "in-the-trial-end": (3, OptunaState.FAIL, None),  # on SQL the event is already stored
        "in-the-event": (3, OptunaState.FAIL, None),
        "in-the-trial": (4, OptunaState.COMPLETE, None),
        "checkpoint-listed": (4, OptunaState.COMPLETE, 100),
        "checkpoint-unlisted": (4, OptunaState.COMPLETE, 100),
    }
    places: list[tuple[str, str, str | None]] = []
    for where in moments:
        places.append((where, where, None))
        if where in ("before-the-trial", "in-the-trial-end"):
            shutil.copy(database, tmp_path / f"{where}.db")
            places.append((where, f"{where}-sql", f"sqlite:///{where}.db"))
    command = [sys.executable, "-c", KILLED]
    subprocess.run(command, input=pickle.dumps((SETTINGS, EVENTS, places)), check=True)
    for where, name, url in places:
        count, state, step = moments[where]
        if url and where == "in-the-trial-end":
            count, state = 4, OptunaState.COMPLETE
        started = time.monotonic()
        for _ in range(2):
            with StudyStore.open(name, storage=url, create=False) as store:
                assert store.events() == EVENTS[:count], where
                assert states(store) == [state], where
                if step is not None:
                    assert store.checkpoints.latest() == (step, {"step": step}, [])
        with StudyStore.open(name, storage=url, create=False) as store:
            fill(store, EVENTS[2:] if state == OptunaState.FAIL else EVENTS[count:])
            store.checkpoints.save(200, {"step": 200})
            assert store.checkpoints.latest() == (200, {"step": 200}, [])
            ended = [state for state in states(store) if state != OptunaState.FAIL]
            assert ended == [OptunaState.COMPLETE, OptunaState.PRUNED]
        assert time.monotonic() - started < 10  # no waiting for what the dead held


def test_the_owner_in_another_process_is_named_and_yields(where: str | None) -> None:
    new(where).close()
    script = """
import sys, time
from autolrs.errors import StudyLockedError
from autolrs.records import Lost
from autolrs.storage import StudyStore

with StudyStore.open("x", storage=sys.argv[1] or None) as store:
    print("open", flush=True)
    try:
        while True:
            store.append(Lost(1))
            time.sleep(0.01)
    except StudyLockedError as error:
        print(error, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script, where or ""], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StudyLockedError, match=f"in use by process {process.pid} on .*since"):
            StudyStore.open("x", storage=where)
        with StudyStore.open("x", storage=where, takeover=True) as store:
            count = len(store.events())
            assert f"taken over by process {os.getpid()} on" in process.stdout.readline()
            store.append(EVENTS[0])
            with StudyStore.open("x", storage=where, readonly=True) as reader:
                assert len(reader.events()) == count + 1
                assert reader.events()[-1] == EVENTS[0]
    finally:
        process.kill()
        process.communicate()


def test_a_killed_owner_is_replaced_at_once(where: str | None) -> None:
    script = f"""
import os, signal
from autolrs.storage import StudyStore
StudyStore.open("x", storage={where!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with new(where) as store:
        fill(store)


def test_optuna_dashboard_shows_the_study(folder: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "from optuna_dashboard._cli import main; main()"
    command = [sys.executable, "-c", script, str(folder / "study.journal"), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                        listed = json.load(answer)
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert [study["study_name"] for study in listed["study_summaries"]] == ["x"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/0", timeout=10) as answer:
                trials = json.load(answer)["trials"]
            assert [trial["state"] for trial in trials] == ["Complete", "Pruned"]
        finally:
            server.kill()
