from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from autolrs import journal as module
from autolrs.errors import CheckpointError
from autolrs.journal import Journal, check_journal, clear_stale_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def filled(path: Path) -> JournalStorage:
    storage = JournalStorage(Journal(path))
    storage.create_new_study([StudyDirection.MINIMIZE], "x")
    for i in range(5):
        storage.set_study_user_attr(0, f"key{i}", "value" * 10)
    return storage


def test_hold_writes_in_one_piece_and_nothing_after_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    storage = JournalStorage(journal)
    storage.create_new_study([StudyDirection.MINIMIZE], "x")
    pieces = []
    monkeypatch.setattr(
        module, "_append", lambda path, data, sync, real=module._append: pieces.append(real(path, data, sync=sync))
    )
    with journal.hold():
        storage.set_study_user_attr(0, "a", 1)
        storage.set_study_user_attr(0, "b", 2)
        assert not pieces
    assert len(pieces) == 1
    with pytest.raises(KeyError), journal.hold():  # noqa: PT012
        storage.set_study_user_attr(0, "c", 3)
        raise KeyError
    storage.set_study_user_attr(0, "d", 4)
    assert storage.get_study_user_attrs(0) == {"a": 1, "b": 2, "d": 4}
    assert JournalStorage(Journal(path)).get_study_user_attrs(0) == {"a": 1, "b": 2, "d": 4}


def test_unsynced_writes_at_once_and_the_next_append_waits_for_all_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    storage = JournalStorage(journal)
    storage.create_new_study([StudyDirection.MINIMIZE], "x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with pytest.raises(KeyError), journal.unsynced():  # noqa: PT012
        storage.set_study_user_attr(0, "a", 1)
        assert JournalStorage(Journal(path)).get_study_user_attrs(0) == {"a": 1}, "a kill cannot take it back"
        raise KeyError
    assert synced == []
    storage.set_study_user_attr(0, "b", 2)
    assert synced == [path.stat().st_size]


def test_lagging_writes_at_once_and_waits_for_the_disk_once_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    storage = JournalStorage(journal)
    storage.create_new_study([StudyDirection.MINIMIZE], "x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with pytest.raises(KeyError), journal.lagging():  # noqa: PT012
        storage.set_study_user_attr(0, "a", 1)
        with journal.unsynced():
            storage.set_study_user_attr(0, "b", 2)
        with journal.hold():
            storage.set_study_user_attr(0, "c", 3)
        assert JournalStorage(Journal(path)).get_study_user_attrs(0) == {"a": 1, "b": 2, "c": 3}
        assert synced == []
        raise KeyError
    assert synced == [path.stat().st_size]
    with journal.lagging():
        pass
    assert len(synced) == 1, "there was nothing to wait for"
    storage.set_study_user_attr(0, "d", 4)
    assert len(synced) == 2

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left on device"), journal.lagging():
        storage.set_study_user_attr(0, "e", 5)


def test_the_file_is_opened_for_reading_only_where_it_has_grown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, other = filled(path), JournalStorage(Journal(path))
    read = []
    real = JournalFileBackend.read_logs
    monkeypatch.setattr(JournalFileBackend, "read_logs", lambda self, number: read.append(number) or real(self, number))
    for _ in range(3):
        assert len(storage.get_study_user_attrs(0)) == 5
    assert read == []
    other.set_study_user_attr(0, "late", 1)
    assert storage.get_study_user_attrs(0)["late"] == 1


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_failed_append_is_taken_back(failing: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = filled(path)
    before = path.read_bytes()
    real = os.write
    budget = [20]

    def write(descriptor: int, data: bytes) -> int:
        if not budget[0]:
            raise OSError(28, "No space left on device")
        count = real(descriptor, bytes(data)[: budget[0]])
        budget[0] -= count
        return count

    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, write if failing == "write" else fsync)
        with pytest.raises(CheckpointError, match=r"cannot write to .*study\.journal: .*intact"):
            storage.set_study_user_attr(0, "big", "x" * 1000)
    assert path.read_bytes() == before
    assert not path.with_name("study.journal.lock").is_symlink()
    storage.set_study_user_attr(0, "small", 1)
    assert JournalStorage(Journal(path)).get_study_user_attrs(0).keys() == {*(f"key{i}" for i in range(5)), "small"}


def test_a_journal_cut_anywhere_keeps_its_whole_lines(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    content = path.read_bytes()
    damaged = path.with_name("study.journal.damaged")
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        damaged.unlink(missing_ok=True)
        caplog.clear()
        whole, newline, rest = content[:cut].rpartition(b"\n")
        check_journal(path, repair=False)
        assert path.read_bytes() == content[:cut]
        with caplog.at_level(logging.WARNING, logger="autolrs"):
            check_journal(path, repair=True)
        assert path.read_bytes() == whole + newline
        if rest:
            number = whole.count(b"\n") + bool(newline) + 1
            assert f"the last line ({number}) of {path} is incomplete" in caplog.text
            assert damaged.read_bytes() == rest
        else:
            assert not caplog.records
            assert not damaged.exists()


def test_a_last_line_that_is_no_json_is_moved_too(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content + b"\0\0\0\0\n")
    check_journal(path, repair=True)
    assert path.read_bytes() == content
    assert "incomplete" in caplog.text


@pytest.mark.parametrize("tail", [b"", b'{"op_co'])
def test_damage_before_the_last_line_is_named(tail: bytes, path: Path) -> None:
    filled(path)
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3][:10] + b"\xff" + lines[3][11:]
    content = b"\n".join(lines) + tail
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"line 4 of {path} is damaged"):
        check_journal(path, repair=True)
    assert path.read_bytes() == content


def test_a_killed_writers_lock_is_removed_at_once(path: Path) -> None:
    storage = filled(path)
    lock = path.with_name("study.journal.lock")
    lock.symlink_to(path)
    started = time.monotonic()
    clear_stale_lock(path)
    clear_stale_lock(path)
    storage.set_study_user_attr(0, "a", 1)
    assert time.monotonic() - started < 5  # Optuna alone waits for 30 s
    assert not lock.is_symlink()
