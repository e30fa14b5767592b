"""A study on disk: its events, their mirror as Optuna trials, its checkpoints, its one owner.

The truth is the list of events (`records.Event`), each stored by one atomic write as a user attribute of an
Optuna study; the trials, and the attributes that tell decisions, are made from it for people.

    storage=None or a folder    FOLDER/NAME/study.journal, lock, progress.json, checkpoints/    (./autolrs-runs)
    an SQL URL                  the database; ./autolrs-runs/NAME/checkpoints/ with progress.json
    with checkpoint_dir         CHECKPOINT_DIR/NAME/ instead of .../NAME/checkpoints/; a folder, or a URI (s3://, gs://)
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast

import optuna
from optuna.storages import BaseStorage

from autolrs.backends import Backend, is_url, masked_url, open_journal, open_sql, sql_exists, using
from autolrs.checkpoints import CheckpointStore
from autolrs.errors import CheckpointError, IdentityError, SettingError, StudyLockedError, StudyNotFoundError
from autolrs.files import replace_file
from autolrs.locks import FileLock, Lease, Ownership
from autolrs.mirror import Mirror
from autolrs.places import under
from autolrs.records import Event, Issued, Settings, from_json, to_json

__all__ = ["RUNS", "StudyStore", "masked_url"]

RUNS: Final = "autolrs-runs"
"""Folder of studies that name no other."""

JOURNAL: Final = "study.journal"
PROGRESS: Final = "progress.json"
PROGRESS_SECONDS: Final = 1.0

_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")
_PREFIX: Final = "autolrs:"
_SETTINGS: Final = "autolrs:settings"
_RESULT: Final = "autolrs:result"
_CHECKPOINTS: Final = "autolrs:checkpoints"
_LEASE: Final = "autolrs:lease"
_EVENT: Final = "autolrs:event:%06d"


class StudyStore:
    """One study; made by `open`. A context manager: leaving it gives the study free for other processes.

    Attributes:
        name: the study's name.
        location: folder or URL that it lies in, without a password.
        checkpoints: its checkpoints; guarded, so that only the study's owner writes any.
    """

    def __init__(
        self, name: str, location: str, backend: Backend, study_id: int, owner: Ownership | None, folder: Path
    ) -> None:
        self.name = name
        self.location = location
        self.checkpoints: CheckpointStore
        self._backend = backend
        self._study_id = study_id
        self._owner = owner
        self._progress = folder / PROGRESS
        self._last_progress = 0.0
        self._events = self._read_events()
        self._stored = len(self._events)  # the rest waits, see `lagging`
        self._lagging = False
        self._mirror: Mirror | None = None

    @classmethod
    def open(
        cls,
        name: str,
        *,
        storage: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        create: bool = True,
        takeover: bool = False,
        readonly: bool = False,
        allow_pickle: bool = False,
    ) -> StudyStore:
        """Open a study, to write unless `readonly`, and repair what a crash left.

        Args:
            storage: folder, or URL of any SQL database that Optuna knows; None: `./autolrs-runs`.
            checkpoint_dir: folder or URI for checkpoints; the study remembers it.
            create: make the study if there is none.
            takeover: make its present owner stop (see `locks`).
            readonly: take no lock, repair and write nothing.
            allow_pickle: for checkpoints of other than plain values (see `codec`).

        Raises:
            SettingError: the name is bad, the storage cannot be opened, or what is there is not of autolrs.
            StudyNotFoundError: no such study, and `create` is off or `readonly` on.
            StudyLockedError: another process owns it.
            CheckpointError: the journal or the list of checkpoints is damaged, or cannot be written.
        """
        _check_name(name)
        home = _folder(storage) / name
        create = create and not readonly
        if not create and not (sql_exists(str(storage)) if is_url(storage) else (home / JOURNAL).is_file()):
            raise _not_found(name, storage)
        with ExitStack() as undo:
            if is_url(storage):
                backend = open_sql(str(storage), readonly=readonly)
                undo.callback(backend.close)
                study_id = _study_id(backend.storage, name, storage, create)
                owner: Ownership = _lease(backend.storage, study_id, name)
            else:
                owner = FileLock(home / "lock", f"study {name!r}")
            if not readonly:
                with _unusable(home), using(_shown(storage)):
                    if not is_url(storage):
                        home.mkdir(parents=True, exist_ok=True)
                    owner.acquire(takeover=takeover)
                undo.callback(owner.release)
            if not is_url(storage):
                backend = open_journal(home / JOURNAL, readonly=readonly)
                study_id = _study_id(backend.storage, name, storage, create)
            directory = _checkpoints(backend.storage, study_id, name, home, checkpoint_dir)
            store = cls(
                name,
                _shown(storage),
                backend,
                study_id,
                None if readonly else owner,
                directory if is_url(storage) and isinstance(directory, Path) else home,
            )
            store.checkpoints = CheckpointStore(directory, allow_pickle, readonly=readonly, guard=store._check)
            if not readonly:
                store._begin(remember=is_url(storage) or checkpoint_dir is not None)
            undo.pop_all()
        return store

    @staticmethod
    def exists(name: str, storage: str | Path | None = None) -> bool:
        """Whether the storage has a study of that name, with settings."""
        _check_name(name)
        if is_url(storage):
            return name in StudyStore.list_names(storage)
        return name in _journal_names(_folder(storage) / name / JOURNAL)

    @staticmethod
    def list_names(storage: str | Path | None = None) -> list[str]:
        """Names of the studies in the storage, sorted."""
        if not is_url(storage):
            journals = _folder(storage).glob(f"*/{JOURNAL}")
            return sorted(path.parent.name for path in journals if path.parent.name in _journal_names(path))
        if not sql_exists(str(storage)):
            return []
        backend = open_sql(str(storage), readonly=True)
        try:
            return _names(backend.storage)
        finally:
            backend.close()

    @property
    def settings(self) -> Settings | None:
        """What the study was created for; None until `create_settings`."""
        data = self._attrs().get(_SETTINGS)
        with _readable(self.location):
            return cast("Settings", from_json(data["settings"])) if data else None

    @property
    def extra(self) -> dict[str, Any]:
        """What was stored beside the settings."""
        return dict(self._attrs().get(_SETTINGS, {}).get("extra", {}))

    def create_settings(self, settings: Settings, extra: Mapping[str, Any]) -> None:
        """Store the settings, and JSON values beside them, once and for all.

        Raises:
            IdentityError: the study already has settings.
        """
        if self.settings is not None:
            raise IdentityError(f"study {self.name!r} in {self.location} already has settings.")
        self._put(_SETTINGS, {"settings": to_json(settings), "extra": dict(extra)})

    @property
    def result(self) -> dict[str, Any] | None:
        """What `save_result` stored: {"repr": ...} and, if it was JSON, {"value": ...}; None before."""
        return self._attrs().get(_RESULT)

    def save_result(self, value: object) -> None:
        """Store what the train function returned: as JSON if it is, and how it prints."""
        data = {"repr": repr(value)[:10_000]}
        with suppress(TypeError, ValueError, RecursionError):
            data["value"] = json.loads(json.dumps(value, allow_nan=False))
        self._put(_RESULT, data)

    def events(self) -> tuple[Event, ...]:
        """All events so far, in order."""
        if self._owner is None:
            self._events = self._read_events()
            self._stored = len(self._events)
        return tuple(self._events)

    def append(self, event: Event) -> None:
        """Store an event, and show it as an Optuna trial or attribute. Unless within `lagging`, it is on disk when this
        returns.

        Only of an `Issued`, which is worth nothing without its `Probed`, a journal does not wait to be on the disk: it
        outlives a kill, but a power cut may take it, so that the same probe is issued anew.

        Raises:
            StudyLockedError: the study was taken over, or opened for reading only.
            CheckpointError: it cannot be written; the events before it are intact.
        """
        self._events.append(event)
        if not self._lagging:
            self.flush()

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """Context at whose end events are stored, by when others can be at work; it waits for the disk once.

        Until then `flush` stores them. After an exception they are stored as well.

        Raises:
            StudyLockedError: see `append`.
            CheckpointError: see `append`.
        """
        self._lagging = True
        try:
            yield
        finally:
            self._lagging = False
            with self._backend.lagging():
                self.flush()

    def flush(self) -> None:
        """Store now what waits within `lagging`, before something is done that must come after it.

        What cannot be stored is no event any more; what an interrupt held up is stored with the next one.
        """
        try:
            for position in range(self._stored, len(self._events)):
                self._store(position, self._events[position])
                self._stored += 1
        except BaseException as error:
            told, self._events = self._events, self._events[: self._stored]
            with suppress(Exception):  # what failed may be there none the less
                self._events = self._read_events()
                self._stored = len(self._events)
            if not isinstance(error, Exception):
                self._events += told[self._stored :]
            raise

    def _store(self, position: int, event: Event) -> None:
        if self._mirror is None:
            self._mirror = self._new_mirror()
        self._check()
        if isinstance(event, Issued):
            hold = self._backend.unsynced
        else:  # Optuna needs a new trial's line in the journal at once.
            hold = nullcontext if self._mirror.creates(event) else self._backend.hold
        with using(self.location), hold():
            self._backend.storage.set_study_user_attr(self._study_id, _EVENT % position, to_json(event))
            self._mirror.apply(position, event)

    def heartbeat(self, payload: Mapping[str, Any]) -> None:
        """Say that the run is alive and where it is; cheap, for it does nothing within a second of the last.

        Raises:
            StudyLockedError: the study was taken over.
        """
        if time.monotonic() - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = time.monotonic()
        self._check()
        assert self._owner is not None
        self._owner.refresh()
        text = json.dumps(to_json({"time": time.time(), **payload})).encode()
        with suppress(OSError):  # progress is no reason to end a run
            replace_file(self._progress, lambda file: file.write(text), durable=False)

    def last_heartbeat(self) -> dict[str, Any] | None:
        """The last payload, with `time` [s since 1970]; None if there is none."""
        try:
            return cast("dict[str, Any]", from_json(json.loads(self._progress.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            return None

    @property
    def optuna_study(self) -> optuna.Study:
        """Optuna's view of the study; autolrs itself never reads trials from it."""
        return optuna.load_study(study_name=self.name, storage=self._backend.storage)

    def close(self) -> None:
        """Give the study free. Nothing can be written afterwards."""
        try:
            self.flush()  # there is something only if `lagging` was interrupted
        finally:
            if self._owner is not None:
                self._owner.release()
            self._backend.close()

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, *, remember: bool) -> None:
        """What an owner does first."""
        attrs = self._attrs()
        directory = self.checkpoints.directory
        if _SETTINGS in attrs:
            self._mirror = self._new_mirror()
            with using(self.location):
                self._mirror.repair(self._events)
        elif any(not key.startswith(_PREFIX) for key in attrs) or self._backend.storage.get_n_trials(self._study_id):
            raise SettingError(f"{self.location} has an Optuna study {self.name!r} that is not of autolrs.")
        elif not self.checkpoints.empty:
            raise SettingError(
                f"study {self.name!r} is new, but {directory} has checkpoints of another study. "
                "Remove them or choose another name."
            )
        known = str(directory.resolve() if isinstance(directory, Path) else directory)
        if remember and attrs.get(_CHECKPOINTS) != known:
            self._put(_CHECKPOINTS, known)

    def _new_mirror(self) -> Mirror:
        settings = self.settings
        if settings is None:
            raise SettingError(f"study {self.name!r} has no settings yet: call create_settings first.")
        return Mirror(self._backend.storage, self._study_id, settings.space.bounds, self._backend.points)

    def _check(self) -> None:
        if self._owner is None:
            raise StudyLockedError(f"study {self.name!r} was opened for reading only.")
        with using(self.location):
            self._owner.check()

    def _put(self, key: str, value: Any) -> None:
        self._check()
        with using(self.location):
            self._backend.storage.set_study_user_attr(self._study_id, key, value)

    def _attrs(self) -> dict[str, Any]:
        with using(self.location):
            return self._backend.storage.get_study_user_attrs(self._study_id)

    def _read_events(self) -> list[Event]:
        attrs = self._attrs()
        keys = sorted(key for key in attrs if key.startswith(_EVENT.partition("%")[0]))
        for position, key in enumerate(keys):
            if key != _EVENT % position:
                raise CheckpointError(f"event {position} of study {self.name!r} in {self.location} is missing.")
        with _readable(self.location):
            return [from_json(attrs[key]) for key in keys]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"a study's name must be 1 to 100 of the characters A-Z a-z 0-9 . _ - and not begin with a dot, "
            f"but got {name!r}."
        )


def _folder(storage: str | Path | None) -> Path:
    return Path(RUNS) if storage is None or is_url(storage) else Path(storage)


def _shown(storage: str | Path | None) -> str:
    return masked_url(str(storage)) if is_url(storage) else str(_folder(storage))


def _names(storage: BaseStorage) -> list[str]:
    return sorted(study.study_name for study in storage.get_all_studies() if _SETTINGS in study.user_attrs)


def _journal_names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        return _names(open_journal(path, readonly=True).storage)
    except CheckpointError:  # a study none the less: opening it says what is wrong
        return [path.parent.name]


def _not_found(name: str, storage: str | Path | None) -> StudyNotFoundError:
    known = ", ".join(StudyStore.list_names(storage)) or "none"
    return StudyNotFoundError(f"no study {name!r} in {_shown(storage)}; studies there: {known}.")


def _study_id(opened: BaseStorage, name: str, storage: str | Path | None, create: bool) -> int:
    """Optuna's number of the study, which is made if there is none and `create` is on."""
    if not create and name not in _names(opened):
        raise _not_found(name, storage)
    with suppress(KeyError):
        return opened.get_study_id_from_name(name)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        return opened.create_new_study([optuna.study.StudyDirection.MINIMIZE], name)
    except optuna.exceptions.DuplicatedStudyError:  # made by another process this very moment
        return opened.get_study_id_from_name(name)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _checkpoints(
    storage: BaseStorage, study_id: int, name: str, home: Path, checkpoint_dir: str | Path | None
) -> Path | str:
    if checkpoint_dir is not None:
        return under(checkpoint_dir, name)
    remembered = storage.get_study_user_attrs(study_id).get(_CHECKPOINTS)
    if is_url(remembered):
        return str(remembered)
    return Path(remembered) if remembered else home / "checkpoints"


def _lease(storage: BaseStorage, study_id: int, name: str) -> Lease:
    # A system attribute, so that reading it before each write does not read all events too.
    return Lease(
        lambda: storage.get_study_system_attrs(study_id).get(_LEASE),
        lambda record: storage.set_study_system_attr(study_id, _LEASE, record),
        f"study {name!r}",
    )


@contextmanager
def _unusable(folder: Path) -> Iterator[None]:
    try:
        yield
    except StudyLockedError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot keep a study in {folder}: {error.strerror or error}.") from error


@contextmanager
def _readable(location: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, LookupError, ValueError) as error:
        raise CheckpointError(f"{location} was written by another version of autolrs: {error}") from error
