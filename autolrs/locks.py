"""One writer for each study: a file lock beside a journal, a lease inside an SQL storage.

The file lock is a POSIX record lock: the kernel drops it when its process ends, however it ends, and DataLoader
workers do not inherit it (flock would be). It cannot be taken from a live process, so a takeover *asks*: the owner
sees the request at its next write, gives way and stops; only then does the other one get the lock. There are
never two writers.

A lease is a record that its owner refreshes. It is free at once when the owner's process is gone from this
machine, else after `LEASE_SECONDS` of silence; a takeover replaces it under a higher generation, and the former
owner, who reads it before each write, stops. Times are wall-clock: machines that share a storage share NTP.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from autolrs.errors import StudyLockedError
from autolrs.files import replace_file

LEASE_SECONDS: Final = 60.0
"""Silence after which a lease is free."""

REFRESH_SECONDS: Final = 10.0
"""How often its owner refreshes it."""

SETTLE_SECONDS: Final = 0.3
"""From writing a lease to relying on it: longer than a write takes that started before ours."""

PATIENCE_SECONDS: Final = 30.0
"""How long a takeover waits for the owner of a file lock to give way."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its host's name, its number, when it took the study, and what tells it from others.

    Attributes:
        machine: identity of the running system and its process numbers; containers may share a host's name.
        started: the process's own start time, since numbers are used again [clock ticks since boot].
        since: when it took the study [s since 1970].
    """

    host: str
    pid: int
    machine: str
    started: str
    since: float

    @classmethod
    def here(cls) -> Owner:
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _machine(), _start_time(pid), time.time())

    @property
    def gone(self) -> bool:
        """The process surely no longer runs: it was on this machine, and is not."""
        return self.machine == _machine() and _start_time(self.pid) != self.started

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).isoformat(sep=" ", timespec="seconds")
        return f"process {self.pid} on {self.host}, since {since}"


class Ownership(Protocol):
    """The right to write to a study."""

    def acquire(self, *, takeover: bool = False) -> None:
        """Become the owner, or raise `StudyLockedError` naming who is."""

    def check(self) -> None:
        """Raise `StudyLockedError` unless still the owner; called before each write."""

    def refresh(self) -> None:
        """Show that the owner is alive."""

    def release(self) -> None:
        """Let others have it. Does nothing if not the owner."""


class FileLock:
    """Ownership by a POSIX record lock on `path`, whose content says who holds it.

    Closing *any* descriptor of a file drops a process's record locks on it, so nothing else may open `path` in
    the owning process; a second `FileLock` of the same path knows the first from a registry.
    """

    def __init__(self, path: Path, study: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self.path = path
        self._study = study
        self._patience = patience
        self._request = path.with_name(f"{path.name}.takeover")
        self._descriptor: int | None = None
        self._pid = 0
        self._lost = "it was never opened for writing"

    def acquire(self, *, takeover: bool = False) -> None:
        key = os.path.realpath(self.path)
        mine = _held.get(key)
        if mine is not None and mine._pid == os.getpid():
            if not takeover:
                raise _locked(self._study, f"this very process ({os.getpid()}), which has not closed it")
            mine._give_way("this process opened it again")
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_lock(descriptor):
                owner = _read_owner(descriptor)
                if not takeover:
                    raise _locked(self._study, owner)
                self._ask_for(descriptor, owner)
            self._request.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Owner.here())).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._pid = descriptor, os.getpid()
        _held[key] = self

    def check(self) -> None:
        if self._descriptor is not None and self._pid != os.getpid():
            raise StudyLockedError(f"{self._study} belongs to process {self._pid}, which forked this one.")
        if self._descriptor is not None and self._request.exists():
            by = "another process"
            with suppress(OSError):  # it may just be withdrawn
                by = self._request.read_text(encoding="utf-8")
            self._give_way(f"it was taken over by {by}")
        if self._descriptor is not None and not self._intact():
            self._give_way(f"its lock file {self.path} was removed or taken")
        if self._descriptor is None:
            raise StudyLockedError(f"{self._study} is not this process's to write: {self._lost}.")

    def refresh(self) -> None:
        """Nothing to do: the kernel knows that we live."""

    def release(self) -> None:
        if self._descriptor is not None and self._pid == os.getpid():
            os.ftruncate(self._descriptor, 0)
            self._give_way("it was closed")

    def _intact(self) -> bool:
        """The file is still the one we locked. Locks it again, should someone's close have dropped the lock."""
        assert self._descriptor is not None
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
        return same and _try_lock(self._descriptor)

    def _give_way(self, why: str) -> None:
        assert self._descriptor is not None
        self._lost = why
        del _held[os.path.realpath(self.path)]
        os.close(self._descriptor)
        self._descriptor = None

    def _ask_for(self, descriptor: int, owner: object) -> None:
        """Ask the owner to give way, and wait until it has."""
        replace_file(self._request, lambda file: file.write(str(Owner.here()).encode()), durable=False)
        deadline = time.monotonic() + self._patience
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                self._request.unlink(missing_ok=True)
                raise StudyLockedError(
                    f"{self._study} is in use by {owner}, which did not give way within {self._patience:g} s. "
                    "End that process, then run the same command again."
                )
            time.sleep(0.02)


_held: Final[dict[str, FileLock]] = {}


class Lease:
    """Ownership by a record that `read` and `write` keep somewhere all processes see (None: no record)."""

    def __init__(
        self,
        read: Callable[[], dict[str, Any] | None],
        write: Callable[[dict[str, Any]], None],
        study: str,
    ) -> None:
        self._read = read
        self._write = write
        self._study = study
        self._owner: Owner | None = None
        self._generation = 0
        self._refreshed = 0.0

    def acquire(self, *, takeover: bool = False) -> None:
        record = self._read() or {}
        if record.get("owner") and not takeover:
            owner = Owner(**record["owner"])
            silence = time.time() - record["heartbeat"]
            if not owner.gone and silence < LEASE_SECONDS:
                raise _locked(self._study, f"{owner} (last sign of life {max(0.0, silence):.0f} s ago)")
        self._owner = Owner.here()
        self._generation = record.get("generation", 0) + 1
        self._beat()
        time.sleep(SETTLE_SECONDS)
        self.check()

    def check(self) -> None:
        if self._owner is None:
            raise StudyLockedError(f"{self._study} is not this process's to write: it was closed or taken over.")
        if self._owner.pid != os.getpid():
            raise StudyLockedError(f"{self._study} belongs to process {self._owner.pid}, which forked this one.")
        record = self._read() or {}
        if record.get("owner") != asdict(self._owner) or record.get("generation") != self._generation:
            self._owner = None
            by = Owner(**record["owner"]) if record.get("owner") else "another process"
            raise StudyLockedError(f"{self._study} is not this process's to write: it was taken over by {by}.")

    def refresh(self) -> None:
        if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self.check()
            self._beat()

    def release(self) -> None:
        if self._owner is None or self._owner.pid != os.getpid():
            return
        with suppress(StudyLockedError):
            self.check()
            self._write({"generation": self._generation, "owner": None})
        self._owner = None

    def _beat(self) -> None:
        assert self._owner is not None
        self._write({"generation": self._generation, "owner": asdict(self._owner), "heartbeat": time.time()})
        self._refreshed = time.monotonic()


def _locked(study: str, owner: object) -> StudyLockedError:
    return StudyLockedError(
        f"{study} is in use by {owner}. Wait for it to end, or make it stop and continue here with --takeover "
        "(takeover=True)."
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _read_owner(descriptor: int) -> object:
    try:
        return Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # it is just being written
        return "another process"


def _machine() -> str:
    """What is equal for two processes just when each sees the other's process number."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_time(pid: int) -> str:
    """Start time of a running process, "running" where the system does not tell, "" if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    else:
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
