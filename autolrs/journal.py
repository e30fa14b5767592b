"""Optuna's journal file, made safe against kills and full disks.

Optuna writes each operation as one line. This backend can write several in one piece, so that an event and its
effect on a trial are stored together or not at all, and takes back what a full disk let it write by half.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from autolrs.errors import CheckpointError
from autolrs.files import sync

logger = logging.getLogger("autolrs")

STALE_SECONDS: Final = 1.0
"""Age after which Optuna's lock on the journal, held for milliseconds at a time, is a killed process's."""


class Journal(JournalFileBackend):
    """Optuna's file backend with `hold`, `unsynced` and `lagging`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._symlink = JournalFileSymlinkLock(str(path))
        self._held: list[dict[str, Any]] | None = None
        self._sync = True
        self._owed = False  # what was written last need not be on the disk
        self._read = (-1, -1)
        super().__init__(str(path), self._symlink)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Write what is appended inside at the end, in one piece; nothing of it after an exception."""
        self._held = []
        try:
            yield
            logs, self._held = self._held, None
            self.append_logs(logs)
        finally:
            self._held = None

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """Write what is appended inside at once, for a kill cannot take it back then, but wait for no disk.

        It is on the disk with whatever is appended next: a power cut before that loses it, and nothing before it.
        """
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """Write what is appended inside at once, and wait for the disk at the end, once for all of it.

        Raises:
            CheckpointError: the disk does not take it.
        """
        try:
            with self.unsynced():
                yield
        finally:
            if self._owed:
                with self._speaking_of_the_disk():
                    sync(self._path)
                self._owed = False

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:  # type: ignore[override]
        """Optuna asks before and after each operation, and opens the file each time; mostly nothing is new."""
        size = self._path.stat().st_size
        if self._read == (log_number_from, size):
            return []
        logs = list(super().read_logs(log_number_from))
        self._read = log_number_from + len(logs), size
        return logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one line for each log, durably unless within `unsynced`.

        Raises:
            CheckpointError: it cannot be written; the file is as it was.
        """
        if self._held is not None:
            self._held.extend(logs)
            return
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._speaking_of_the_disk():
            self._symlink.acquire()
            try:
                _append(self._path, data, sync=self._sync)
            finally:
                self._symlink.release()
        self._owed = not self._sync

    @contextmanager
    def _speaking_of_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self._path}: {error.strerror or error}. What was stored before is intact: "
                "make room on the disk, then run the same command again."
            ) from error


def _append(path: Path, data: bytes, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if sync:
                os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def check_journal(path: Path, *, repair: bool) -> None:
    """Find lines that are damaged.

    With `repair` a last line that is incomplete, because its writer was killed, is moved to PATH.damaged and
    reported to the log; without, readers pass over it.

    Raises:
        CheckpointError: a line before the last is damaged; the message has its number.
    """
    lines = path.read_bytes().split(b"\n")
    rest = lines.pop()
    numbers = [number for number, line in enumerate(lines, 1) if not _whole(line)]
    if numbers and (numbers[0] < len(lines) or rest):
        raise CheckpointError(
            f"line {numbers[0]} of {path} is damaged, and there are more after it. Restore the file from a backup, "
            "or cut it before that line to continue from there."
        )
    if numbers:
        rest = lines.pop() + b"\n"
    if rest and repair:
        damaged = path.with_name(f"{path.name}.damaged")
        with damaged.open("ab") as file:
            file.write(rest)
        os.truncate(path, path.stat().st_size - len(rest))
        logger.warning(
            "the last line (%d) of %s is incomplete: its writer was killed. It was moved to %s; "
            "the %d lines before it are used.",
            *(len(lines) + 1, path, damaged.name, len(lines)),
        )


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def clear_stale_lock(path: Path) -> None:
    """Remove the lock that a process killed amid an append left, for which Optuna would wait half a minute."""
    lock = path.with_name(f"{path.name}.lock")
    with suppress(FileNotFoundError):
        while time.time() - lock.lstat().st_mtime < STALE_SECONDS:
            time.sleep(0.02)
        lock.unlink()
