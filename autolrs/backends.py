"""Where Optuna keeps a study: a journal file, or an SQL database."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage

from autolrs.errors import AutoLRSError, CheckpointError, SettingError
from autolrs.journal import Journal, check_journal, clear_stale_lock
from autolrs.records import POINTS

SQL_POINTS: Final = 16
"""Intermediate values of a trial on SQL, where each is a transaction of its own."""

_OPENING: Final = (ImportError, RuntimeError, ValueError)
"""What a missing driver, a schema of another version and a bad URL raise beside the database's own errors."""

_SECRET: Final = re.compile(r"((?:password|passwd|pwd|secret|token)=)[^&;\s]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Backend:
    """An open Optuna storage.

    Attributes:
        hold: context in which writes wait to be made in one piece, where the storage can.
        unsynced: context in which writes are made at once, but need not be on the disk, where that is quicker.
        lagging: the same, but at its end all of it is on the disk.
        points: intermediate values to write for each trial.
    """

    storage: BaseStorage
    hold: Callable[[], AbstractContextManager[None]] = nullcontext
    unsynced: Callable[[], AbstractContextManager[None]] = nullcontext
    lagging: Callable[[], AbstractContextManager[None]] = nullcontext
    points: int = SQL_POINTS
    close: Callable[[], None] = lambda: None


def is_url(storage: str | Path | None) -> bool:
    return isinstance(storage, str) and "://" in storage


def masked_url(url: str) -> str:
    """`url` with `***` for the password, wherever it stands.

    >>> masked_url("postgresql://me:p@ss/word@host/db?sslpassword=x")
    'postgresql://me:***@host/db?sslpassword=***'
    """
    scheme, separator, rest = url.partition("://")
    login = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, after = login.partition("@")[0].partition(":")
    # A password that was not quoted may hold any of "/?#@": it ends at the last "@". A mere number is a port.
    if separator and after and "@" in rest and not ("@" not in login and after.isdigit()):
        rest = f"{user}:***@{rest.rpartition('@')[2]}"
    return scheme + separator + _SECRET.sub(r"\1***", rest)


def open_journal(path: Path, *, readonly: bool) -> Backend:
    """The journal at `path`. A writer, who must own the study, repairs what a kill left.

    Raises:
        CheckpointError: the journal is damaged before its last line.
    """
    if path.exists():
        if not readonly:
            clear_stale_lock(path)
        check_journal(path, repair=not readonly)
    journal = Journal(path)
    return Backend(JournalStorage(journal), journal.hold, journal.unsynced, journal.lagging, POINTS)


def open_sql(url: str, *, readonly: bool) -> Backend:
    """The database at `url`; its tables are made unless `readonly`.

    Raises:
        SettingError: it cannot be opened; the message does not have the password.
    """
    with _speaking_of(url, SettingError, *_OPENING):
        storage = RDBStorage(url, skip_table_creation=readonly)

    def close() -> None:
        storage.remove_session()
        storage.engine.dispose()

    return Backend(get_storage(storage), close=close)


def sql_exists(url: str) -> bool:
    """False if `url` names an SQLite file that does not exist: opening it would make it."""
    from sqlalchemy import make_url

    with _speaking_of(url, SettingError):
        parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return True
    return parsed.database is not None and Path(parsed.database).is_file()


@contextmanager
def using(place: str) -> Iterator[None]:
    """Turns a database's errors into a CheckpointError that names `place`."""
    with _speaking_of(place, CheckpointError):
        yield


@contextmanager
def _speaking_of(place: str, kind: type[AutoLRSError], *more: type[Exception]) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.OptunaError, *more)
    try:
        yield
    except kinds as error:
        text = f"{error} {error.__cause__ or ''}".replace(place, masked_url(place)).strip()
    else:
        return
    # Outside the handler: a traceback that went on to the cause would show the password.
    raise kind(f"the storage {masked_url(place)} failed: {text}")
