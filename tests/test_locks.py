from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autolrs import locks
from autolrs.errors import StudyLockedError
from autolrs.locks import FileLock, Lease, Owner

HOLDER = """
import sys, time
from pathlib import Path
from autolrs.errors import StudyLockedError
from autolrs.locks import FileLock

lock = FileLock(Path(sys.argv[1]), "study 'x'")
lock.acquire()
if sys.argv[2] == "forks":
    import os
    if os.fork() == 0:
        time.sleep(60)
print("held", flush=True)
while True:
    time.sleep(0.01)
    if sys.argv[2] == "cooperates":
        try:
            lock.check()
        except StudyLockedError as error:
            print(error, flush=True)
            break
"""


class Holder:
    """Another process that holds the lock."""

    def __init__(self, path: Path, how: str) -> None:
        command = [sys.executable, "-c", HOLDER, str(path), how]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def lock(path: Path) -> Iterator[FileLock]:
    lock = FileLock(path, "study 'x'", patience=0.3)
    yield lock
    lock.release()


def test_the_second_process_is_refused_and_told_whose_it_is(path: Path, lock: FileLock) -> None:
    holder = Holder(path, "sleeps")
    try:
        expected = rf"study 'x' is in use by process {holder.process.pid} on .*, since 20\d\d-.*--takeover"
        with pytest.raises(StudyLockedError, match=expected):
            lock.acquire()
        with pytest.raises(StudyLockedError, match="not this process's to write"):
            lock.check()
        started = time.monotonic()
        with pytest.raises(StudyLockedError, match=rf"process {holder.process.pid} .* did not give way within 0.3 s"):
            lock.acquire(takeover=True)
        assert time.monotonic() - started < 5
        assert not path.with_name("lock.takeover").exists()
    finally:
        holder.stop()
    lock.acquire()  # the kernel dropped the killed one's
    lock.check()


def test_a_takeover_waits_until_the_owner_has_stopped(path: Path) -> None:
    holder = Holder(path, "cooperates")
    lock = FileLock(path, "study 'x'")
    try:
        lock.acquire(takeover=True)
        lock.check()
        assert f"taken over by process {os.getpid()} on" in holder.line()
        assert holder.process.wait(10) == 0
        lock.check()
    finally:
        holder.stop()
        lock.release()


def test_children_do_not_inherit_the_lock(path: Path, lock: FileLock) -> None:
    holder = Holder(path, "forks")
    try:
        holder.process.kill()  # its child lives on, as DataLoader workers may
        holder.process.wait()
        lock.acquire()
        lock.check()
    finally:
        holder.stop()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_may_not_write(lock: FileLock) -> None:
    lock.acquire()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            lock.check()
        except StudyLockedError as error:
            os._exit(17 if "forked" in str(error) else 18)
        os._exit(19)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    lock.check()


def test_one_process_cannot_own_it_twice_but_may_take_it_from_itself(path: Path, lock: FileLock) -> None:
    lock.acquire()
    second = FileLock(path.parent / "." / "lock", "study 'x'")
    with pytest.raises(StudyLockedError, match=rf"this very process \({os.getpid()}\)"):
        second.acquire()
    lock.check()
    second.acquire(takeover=True)
    second.check()
    with pytest.raises(StudyLockedError, match="this process opened it again"):
        lock.check()
    second.release()
    lock.acquire()
    lock.release()
    lock.release()
    assert path.read_text() == ""


def test_a_lock_dropped_by_a_stray_close_is_locked_again(path: Path, lock: FileLock) -> None:
    lock.acquire()
    path.read_text()  # closing this drops the process's lock
    lock.check()
    code = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in outcome.stderr


def test_a_removed_lock_file_ends_ownership(path: Path, lock: FileLock) -> None:
    lock.acquire()
    path.unlink()
    with pytest.raises(StudyLockedError, match="was removed or taken"):
        lock.check()
    lock.acquire()
    lock.check()


def test_a_stale_request_does_not_end_the_next_owner(path: Path, lock: FileLock) -> None:
    path.with_name("lock.takeover").write_text("process 1 on nowhere")
    lock.acquire()
    lock.check()


def test_who_is_gone() -> None:
    here = Owner.here()
    assert not here.gone
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    there = replace(here, pid=child.pid, started=locks._start_time(child.pid))
    assert not there.gone
    child.kill()
    time.sleep(0.2)
    assert there.gone  # dead but not yet waited for
    child.communicate()
    assert there.gone
    assert replace(here, started="1").gone  # its number went to another process
    assert not replace(there, machine="elsewhere").gone


class Shelf:
    """Where leases are kept."""

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self.writes = 0

    def read(self) -> dict[str, Any] | None:
        return json.loads(json.dumps(self.record))

    def write(self, record: dict[str, Any]) -> None:
        self.record = record
        self.writes += 1

    def lease(self) -> Lease:
        return Lease(self.read, self.write, "study 'x'")


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    return Shelf()


def elsewhere(silence: float) -> dict[str, Any]:
    owner = replace(Owner.here(), host="elsewhere", machine="elsewhere", pid=7)
    return {"owner": asdict(owner), "generation": 3, "heartbeat": time.time() - silence}


def test_a_live_lease_is_refused_and_named(shelf: Shelf) -> None:
    shelf.record = elsewhere(50)
    with pytest.raises(StudyLockedError, match=r"in use by process 7 on elsewhere.*life 50 s ago.*--takeover"):
        shelf.lease().acquire()
    shelf.record["owner"] |= asdict(Owner.here())
    with pytest.raises(StudyLockedError, match=f"process {os.getpid()}"):
        shelf.lease().acquire()
    assert shelf.writes == 0


@pytest.mark.parametrize("how", ["silent", "gone", "takeover", "released"])
def test_a_free_lease_is_taken_and_its_former_owner_stops(how: str, shelf: Shelf) -> None:
    former = shelf.lease()
    former.acquire()
    assert shelf.record is not None
    generation = shelf.record["generation"]
    if how == "silent":
        shelf.record["heartbeat"] -= 61
    elif how == "gone":
        shelf.record["owner"]["started"] = "1"
    elif how == "released":
        former.release()
    lease = shelf.lease()
    lease.acquire(takeover=how == "takeover")
    assert shelf.record["generation"] == generation + 1
    for _ in range(2):
        with pytest.raises(StudyLockedError, match="not this process's to write"):
            former.check()
    former.release()  # of no consequence
    lease.check()


def test_two_at_once_end_with_one_owner(shelf: Shelf) -> None:
    barrier = threading.Barrier(4)
    outcomes: list[object] = []

    def read() -> dict[str, Any] | None:
        record = shelf.read()
        if record is None:
            barrier.wait()  # all have seen it free before any has written
        return record

    def run() -> None:
        lease = Lease(read, shelf.write, "study 'x'")
        try:
            lease.acquire()
            outcomes.append(lease)
        except StudyLockedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Lease) for outcome in outcomes) == 1


def test_a_lease_is_refreshed_now_and_then(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = shelf.lease()
    lease.acquire()
    before = shelf.writes
    lease.refresh()
    assert shelf.writes == before
    monkeypatch.setattr(locks, "REFRESH_SECONDS", 0.0)
    lease.refresh()
    assert shelf.writes == before + 1
    shelf.record = elsewhere(0)
    with pytest.raises(StudyLockedError, match="taken over by process 7 on elsewhere"):
        lease.refresh()
    assert shelf.record["owner"]["pid"] == 7
