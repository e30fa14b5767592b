"""Rows of a dataclass in a CSV file that a benchmark goes on with."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, cast

R = TypeVar("R")

_KINDS = {"int": int, "float": float, "str": str}


def read(kind: type[R], path: Path) -> list[R]:
    """The rows on file, in order; none if there is no file. Fields are int, float or str."""
    if not path.exists():
        return []
    names = {item.name: _KINDS[str(item.type)] for item in fields(cast(Any, kind))}
    with path.open(newline="", encoding="utf-8") as file:
        return [kind(**{name: of(values[name]) for name, of in names.items()}) for values in csv.DictReader(file)]


def append(row: Any, path: Path) -> None:
    """Add a row, and the header to a new file."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))
