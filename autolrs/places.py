"""Where files are kept: a folder, or a prefix in an object store (s3://, gs://, and whatever fsspec knows)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from autolrs.errors import SettingError
from autolrs.files import Writable, remove_temporaries, replace_file

# pyarrow's own limit is 15 minutes, which pass without a word where Google's credentials are missing.
GCS_RETRY_SECONDS: Final = 60


class Place(Protocol):
    """A flat set of named files, each of which is the old one or the new one, never half of each."""

    def prepare(self) -> None:
        """Make it usable for writing."""

    def show(self, name: str) -> Path | str:
        """A file's path or URI."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError: there is none of that name."""

    def write(self, name: str, write: Callable[[Writable], object], before: Callable[[], None] = ...) -> None:
        """Put what `write` writes in its place; `before` is called just before the old file is gone."""

    def names(self) -> list[str]: ...

    def remove(self, name: str) -> None: ...


def is_uri(place: str | Path | None) -> bool:
    return isinstance(place, str) and "://" in place


def under(place: str | Path, name: str) -> Path | str:
    """The folder or URI called `name` in `place`; a URI's query stays at its end.

    >>> under("s3://bucket/runs?region=x", "a")
    's3://bucket/runs/a?region=x'
    """
    if not is_uri(place):
        return Path(place) / name
    parts = urlsplit(str(place))
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def place_of(place: str | Path) -> Place:
    """The place at a path or URI.

    Raises:
        SettingError: nothing is known that reads or writes there, or the URI has a password in it.
    """
    if not is_uri(place):
        return _Folder(Path(place))
    parts = urlsplit(str(place))
    if parts.password is not None:
        raise SettingError(
            f"a checkpoint URI is stored and shown, so it must not have a secret in it ({parts.scheme}://***): put "
            "keys into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) or the store's own files."
        )
    return _Folder(Path(unquote(parts.path))) if parts.scheme == "file" else _Objects(str(place))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self._folder)

    def show(self, name: str) -> Path:
        return self._folder / name

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, write: Callable[[Writable], object], before: Callable[[], None] = lambda: None) -> None:
        replace_file(self._folder / name, write, before=before)

    def names(self) -> list[str]:
        return os.listdir(self._folder)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


class _Objects:
    """An object appears whole when its upload is complete, so nothing need be renamed."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._system, self._root = _system(uri)

    def prepare(self) -> None:
        self._system.create_dir(self._root)

    def show(self, name: str) -> str:
        return str(under(self._uri, name))

    def read(self, name: str) -> bytes:
        with self._system.open_input_stream(f"{self._root}/{name}") as file:
            data: bytes = file.read()
        return data

    def write(self, name: str, write: Callable[[Writable], object], before: Callable[[], None] = lambda: None) -> None:
        # First in memory: a stream that is closed by an error would leave half an object.
        held = _Held()
        write(held)
        before()
        with self._system.open_output_stream(f"{self._root}/{name}") as file:
            file.write(held.data)

    def names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        found = self._system.get_file_info(FileSelector(self._root, allow_not_found=True))
        return [info.base_name for info in found]

    def remove(self, name: str) -> None:
        self._system.delete_file(f"{self._root}/{name}")


class _Held:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview, /) -> None:
        self.data += data


def _system(uri: str) -> tuple[Any, str]:
    """A pyarrow file system, and the path in it."""
    try:
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    except ImportError as error:
        raise SettingError(f"checkpoints at {uri} need pyarrow: pip install 'autolrs[cloud]'.") from error
    try:
        system, root = FileSystem.from_uri(_with_limit(uri))
    except (ValueError, NotImplementedError, OSError) as unknown:
        try:
            from fsspec.core import url_to_fs

            other, root = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise SettingError(f"cannot keep checkpoints at {uri}: {unknown}; {error}.") from error
        system = PyFileSystem(FSSpecHandler(other))
    return system, root.rstrip("/")


def _with_limit(uri: str) -> str:
    """`uri`, and if it is Google's and does not say for how long to try again, that too.

    >>> _with_limit("gs://bucket/runs")
    'gs://bucket/runs?retry_limit_seconds=60'
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parse_qs(parts.query):
        return uri
    limit = f"retry_limit_seconds={GCS_RETRY_SECONDS}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{limit}" if parts.query else limit))
