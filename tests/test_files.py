from __future__ import annotations

from pathlib import Path

import pytest

from autolrs.files import Writable, is_file, remove_temporaries, replace_file


@pytest.mark.parametrize("durable", [True, False])
def test_the_new_file_appears_whole(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(file: Writable) -> None:
        file.write(b"n" * 100_000)
        seen.append(path.read_text())

    replace_file(path, write, durable=durable, before=lambda: seen.append(path.read_text()))
    assert seen == ["old", "old"]
    assert path.read_text() == "n" * 100_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(file: Writable) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_our_temporaries_are_removed(tmp_path: Path) -> None:
    for name in (".a.123.autolrs-tmp", "a.autolrs-tmp", ".a.tmp", "a"):
        (tmp_path / name).write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp", "a", "a.autolrs-tmp"]


def test_what_can_be_no_file_is_none(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.touch()
    assert is_file(here)
    assert not any(map(is_file, (tmp_path, tmp_path / "gone", tmp_path / ("x" * 3000), tmp_path / "a\0b")))
