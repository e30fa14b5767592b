"""A folder of checkpoints, or a place in an object store: written whole or not at all, verified before use, pruned.

    step-00000500.safetensors    a checkpoint of the kept run          NAME.safetensors    one with a tag ("final")
    manifest.json                size and SHA-256 of each; a file that it does not list does not count

Order of writes: temporary file, fsync, rename, fsync of the folder; then the manifest likewise. So a kill at any
moment leaves every listed checkpoint whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from autolrs import codec
from autolrs.errors import CheckpointError, SettingError, StudyLockedError
from autolrs.files import Writable
from autolrs.places import is_uri, place_of

MANIFEST: Final = "manifest.json"
_STEP_FILE: Final = re.compile(r"step-\d{8,}\.safetensors")
_TAG: Final = re.compile(r"(?!step-)[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest knows of one file. `former`: checksum of the file that it is about to replace."""

    step: int
    tag: str
    size: int
    sha256: str
    former: str = ""


class CheckpointStore:
    """Checkpoints in `directory`, keyed by kept step, or by tag for those that pruning never removes.

    Args:
        allow_pickle: store and load objects other than plain values, tensors and arrays (see `codec`).
        readonly: create, clean and write nothing.
        guard: called before each write; raises if this process may no longer write.
    """

    def __init__(
        self,
        directory: str | Path,
        allow_pickle: bool = False,
        *,
        readonly: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory if is_uri(directory) else Path(directory)
        self._place = place_of(directory)
        self._allow_pickle = allow_pickle
        self._readonly = readonly
        self._guard = guard
        if not readonly:
            try:
                self._place.prepare()
            except OSError as error:
                raise CheckpointError(f"cannot use {self.directory} for checkpoints: {error}") from error

    @property
    def steps(self) -> tuple[int, ...]:
        """Kept steps that have a checkpoint, ascending; tagged ones left out."""
        return tuple(sorted(entry.step for entry in self._entries().values() if not entry.tag))

    @property
    def size(self) -> int:
        """Bytes of all listed checkpoints."""
        return sum(entry.size for entry in self._entries().values())

    @property
    def empty(self) -> bool:
        """No checkpoint at all, tagged or not."""
        return not self._entries()

    def path(self, key: int | str) -> Path | str:
        """Where the checkpoint of a step or tag lies; a URI in an object store.

        Raises:
            CheckpointError: there is none.
        """
        return self._place.show(self._listed(key))

    def save(self, step: int, tree: Any, *, tag: str = "", keep: int | None = None) -> Path | str:
        """Write `tree` as the checkpoint of kept step `step`, or of `tag`, replacing an earlier one.

        Args:
            keep: prune to so many steps as well, at the price of saving alone.

        Raises:
            CheckpointError: it could not be written (disk full, ...); all other checkpoints are untouched.
            UntrackableError: something in the tree cannot be stored.
        """
        _check(keep)
        self._writing()
        name = _file_name(tag or step)
        path = self._place.show(name)
        hashing = _Hashing()

        def write(file: Writable) -> None:
            hashing.file = file
            codec.dump(tree, hashing, allow_pickle=self._allow_pickle)

        entries = self._entries()

        def announce() -> None:
            # Until the rename is done and listed, the old file and the new one are both right.
            if name in entries:
                new = Entry(step, tag, hashing.size, hashing.sha.hexdigest(), former=entries[name].sha256)
                self._write_manifest(entries | {name: new})

        try:
            self._place.write(name, write, before=announce)
            kept = entries | {name: Entry(step, tag, hashing.size, hashing.sha.hexdigest())}
            if keep is not None:
                wanted = _last(kept, keep)
                kept = {other: entry for other, entry in kept.items() if entry.tag or entry.step in wanted}
            self._write_manifest(kept)
        except OSError as error:
            last = max((entry.step for other, entry in entries.items() if other != name), default=None)
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}. "
                + (f"The checkpoint of step {last} is still good. " if last is not None else "")
                + "Make room on the disk, then run the same command again."
            ) from error
        if keep is not None:
            self._remove_unlisted(kept, entries)
        return path

    def tag(self, step: int, tag: str) -> Path | str:
        """Keep the checkpoint of kept step `step` under `tag` too, where pruning never removes it.

        Raises:
            CheckpointError: there is none, or the copy could not be written.
        """
        self._writing()
        source, name = self._listed(step), _file_name(tag)

        def write(file: Writable) -> None:
            file.write(self._place.read(source))

        entries, path = self._entries(), self._place.show(name)
        try:
            self._place.write(name, write)
            self._write_manifest(entries | {name: replace(entries[source], tag=tag)})
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}. That of step {step} is "
                "still good. Make room on the disk, then run the same command again."
            ) from error
        return path

    def load(self, key: int | str) -> Any:
        """The tree saved for a step or tag, after its size and checksum were compared with the manifest's.

        Raises:
            CheckpointError: it is missing, damaged, or needs `allow_pickle`.
        """
        name, path = self._listed(key), self.path(key)
        entry, data = self._entries()[name], b""
        try:
            if isinstance(path, Path):
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                    size = file.tell()
            else:
                data = self._place.read(name)
                sha256, size = hashlib.sha256(data).hexdigest(), len(data)
        except OSError as error:
            why = error.strerror or error
            raise CheckpointError(f"checkpoint {path} is listed but cannot be read: {why}.") from error
        if sha256 not in (entry.sha256, entry.former):
            how = f"{size:,} bytes instead of {entry.size:,}" if size != entry.size else "its checksum is wrong"
            raise CheckpointError(f"checkpoint {path} is damaged: {how}.")
        if isinstance(path, Path):
            return codec.load(path, allow_pickle=self._allow_pickle)
        return codec.decode(data, allow_pickle=self._allow_pickle, place=path)

    def latest(self, at_most: int | None = None) -> tuple[int, Any, list[str]]:
        """The last loadable checkpoint: its step, its tree, and what was wrong with each later one.

        Args:
            at_most: look only at checkpoints of this kept step or earlier.

        Raises:
            CheckpointError: none can be loaded; the message has what is wrong with each.
        """
        damaged: list[str] = []
        for step in reversed(self.steps):
            if at_most is not None and step > at_most:
                continue
            try:
                return step, self.load(step), damaged
            except CheckpointError as error:
                damaged.append(str(error))
        limit = "" if at_most is None else f" at or before step {at_most}"
        raise CheckpointError(" ".join([f"no checkpoint{limit} in {self.directory} can be loaded.", *damaged]))

    def prune(self, keep: int = 2, protect: Collection[int] = ()) -> None:
        """Remove all but the last `keep` steps, those in `protect`, and the tagged ones."""
        _check(keep)
        wanted = {*_last(self._entries(), keep), *protect}
        self._keep_only(lambda entry: bool(entry.tag) or entry.step in wanted)

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later kept steps, tagged ones too: training went back to `step`."""
        self._keep_only(lambda entry: entry.step <= step)

    def remove(self, tag: str) -> None:
        """Remove the checkpoint with this tag, if there is one."""
        self._keep_only(lambda entry: entry.tag != tag, also=_file_name(tag))

    def _keep_only(self, wanted: Callable[[Entry], bool], *, also: str = "") -> None:
        """`also`: a file that goes, too, should a kill have left it unlisted."""
        self._writing()
        entries = self._entries()
        kept = {name: entry for name, entry in entries.items() if wanted(entry)}
        try:
            if kept != entries:
                self._write_manifest(kept)
        except OSError as error:
            raise self._not_removed(error) from error
        self._remove_unlisted(kept, {*entries, also})

    def _remove_unlisted(self, listed: Collection[str], before: Collection[str]) -> None:
        """Remove the files that the manifest listed before, and no longer does."""
        try:
            for name in self._place.names():
                # Step files that the manifest does not list are left over from a kill.
                if name not in listed and (name in before or _STEP_FILE.fullmatch(name)):
                    self._place.remove(name)
        except OSError as error:
            raise self._not_removed(error) from error

    def _not_removed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot remove old checkpoints in {self.directory}: {error.strerror or error}. The last ones are "
            "good: make room on the disk, then run the same command again."
        )

    def _writing(self) -> None:
        if self._readonly:
            raise StudyLockedError(f"{self.directory} was opened for reading only.")
        self._guard()

    def _listed(self, key: int | str) -> str:
        """Name of the file of a step or tag.

        Raises:
            CheckpointError: there is none.
        """
        name = _file_name(key)
        if name not in (entries := self._entries()):
            known = ", ".join(sorted(entries)) or "none"
            raise CheckpointError(f"no checkpoint {name} in {self.directory}; listed there: {known}.")
        return name

    def _entries(self) -> dict[str, Entry]:
        try:
            data = json.loads(self._place.read(MANIFEST))
            return {name: Entry(**entry) for name, entry in data["checkpoints"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{self._place.show(MANIFEST)}, the list of checkpoints, is damaged: {error}"
            ) from error

    def _write_manifest(self, entries: dict[str, Entry]) -> None:
        data = {"version": 1, "checkpoints": {name: asdict(entry) for name, entry in entries.items()}}
        text = json.dumps(data, indent=1).encode()
        self._place.write(MANIFEST, lambda file: file.write(text))


class _Hashing:
    """Passes bytes on to a file, keeping their number and checksum."""

    file: Writable

    def __init__(self) -> None:
        self.size = 0
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        self.file.write(data)
        self.sha.update(data)
        self.size += len(data)


def _check(keep: int | None) -> None:
    if keep is not None and keep < 1:
        raise SettingError(f"`keep >= 1` must hold, but got ({keep=}).")


def _last(entries: Mapping[str, Entry], keep: int) -> set[int]:
    """The last `keep` steps that have a checkpoint."""
    return set(sorted(entry.step for entry in entries.values() if not entry.tag)[-keep:])


def _file_name(key: int | str) -> str:
    if isinstance(key, int):
        return f"step-{key:08d}.safetensors"
    if not _TAG.fullmatch(key):
        raise SettingError(f"a checkpoint's tag must match {_TAG.pattern!r}, but got {key!r}.")
    return f"{key}.safetensors"
