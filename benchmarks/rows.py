"""One row a run, in a parquet file, so that a benchmark can be stopped and continued."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas

RESULTS: Final = Path(__file__).parent / "results"
RUNS: Final = RESULTS / "runs.parquet"


@cache
def commit() -> str:
    """The repository's commit, with a + if the library or the benchmark differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "../autolrs", "../search_spaces", "../examples", ".", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def run_number(*parts: object) -> int:
    """A number of the run that these parts name, the same in every process: by it processes share runs."""
    return zlib.crc32(" ".join(map(str, parts)).encode())


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: name of the schedule, optimizer, search or strategy.
        settings: what it was run with, as JSON with sorted keys.
        rate: highest learning rate used, given or found.
        validation_loss, test_loss: at the end of the kept run; NaN if it diverged.
        probe_steps: every update that is not part of the kept run, adopted ones left out.
        evaluations: calls of the validation function; -1: not recorded, as in rows older than the column.
        wall_seconds: of the whole run, search and validation included, reading the data not.
    """

    task: str
    method: str
    settings: str
    seed: int
    rate: float
    validation_loss: float
    test_loss: float
    kept_steps: int
    probe_steps: int
    evaluations: int
    wall_seconds: float
    torch: str = field(default_factory=lambda: version("torch"))
    autolrs: str = field(default_factory=lambda: version("autolrs"))
    commit: str = field(default_factory=commit)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.task, self.method, self.settings, self.seed


def settings_key(settings: Mapping[str, Any]) -> str:
    """Settings as a row has them.

    >>> settings_key({"rate": 0.1, "beta": 2})
    '{"beta": 2, "rate": 0.1}'
    """
    return json.dumps(settings, sort_keys=True)


def append(row: Row, path: Path = RUNS) -> None:
    """Add a row. The file is replaced as a whole, under a lock: two processes may share it, and none is ever half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        table = pandas.DataFrame([asdict(each) for each in (*read(path), row)])
        temporary = path.with_suffix(f".{os.getpid()}")
        table.to_parquet(temporary, index=False)
        temporary.replace(path)


def read(path: Path = RUNS) -> list[Row]:
    """The rows on file, in order; none if there is no file."""
    if not path.exists():
        return []
    names = [item.name for item in fields(Row)]
    return [Row(**dict(zip(names, values, strict=True))) for values in _columns(path, names)]


def _columns(path: Path, names: list[str]) -> Iterator[tuple[Any, ...]]:
    table = pandas.read_parquet(path, columns=names)
    return zip(*(table[name].tolist() for name in names), strict=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
