"""Files: whether there is one, and writing so that it is the old one or the new one, never half of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

TEMPORARY: Final = ".autolrs-tmp"
"""Ending of files that are being written; one that a kill left behind can be removed."""


class Writable(Protocol):
    """The one method of a binary file that writing needs."""

    def write(self, data: bytes | memoryview, /) -> object: ...


def is_file(path: Path) -> bool:
    """Whether there is such a file; not if there can be none: a name that is too long, or with a NUL inside."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def replace_file(
    path: Path,
    write: Callable[[Writable], object],
    *,
    durable: bool = True,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Put what `write` writes in place of `path`, in one step.

    Args:
        before: called when all is written but `path` still holds the old file.
        durable: have it on the disk (file and folder) before returning, so that it outlives a power cut.

    Raises:
        OSError: it could not be written; `path` is untouched and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        before()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the files that killed writers left half-written in `folder`."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)
