"""One row a run, appended to a CSV file, so that a benchmark can be stopped and continued."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).parent / "results"
BASELINES: Final = RESULTS / "baselines.csv"
TUNED: Final = RESULTS / "tuned.csv"


def commit() -> str:
    """The repository's commit, with a + if files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: base schedule ("cosine", "linear", "wsd") or strategy ("horizon", "autolrs").
        rate: peak rate, given or found.
        validation_loss, test_loss: at the end of the kept run; NaN if it diverged.
        probe_steps: every update that is not part of the kept run, adopted ones left out.
        wall_seconds: of the whole run, search and validation included, reading the data not.
    """

    task: str
    method: str
    rate: float
    seed: int
    validation_loss: float
    test_loss: float
    kept_steps: int
    probe_steps: int
    wall_seconds: float
    torch: str = field(default_factory=lambda: version("torch"))
    autolrs: str = field(default_factory=lambda: version("autolrs"))
    commit: str = field(default_factory=commit)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed


def append(row: Row, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of all files that exist, in order."""
    rows = []
    for path in paths:
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows += [_row(values) for values in csv.DictReader(file)]
    return rows


def _row(values: dict[str, str]) -> Row:
    convert = {"int": int, "float": float, "str": str}
    return Row(**{item.name: convert[str(item.type)](values[item.name]) for item in fields(Row)})
