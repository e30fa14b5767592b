from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolrs.backends import is_url, masked_url, open_sql, sql_exists
from autolrs.errors import SettingError


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("mysql+pymysql://me:se@cr/et@host/db?charset=utf8", "mysql+pymysql://me:***@host/db?charset=utf8"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://me@host:5432/db?options=a@b", "postgresql://me@host:5432/db?options=a@b"),
        ("postgresql://me:secret@host/db?options=a@b", "postgresql://me:***@b"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://host:5432/db?x=a@b:c", "postgresql://host:5432/db?x=a@b:c"),
        ("sqlite:///folder/a@b:c.db", "sqlite:///folder/a@b:c.db"),
        ("folder/name", "folder/name"),
    ],
)
def test_masking(url: str, masked: str) -> None:
    assert masked_url(url) == masked


@given(password=st.text("abc0:/@?#&=%+ ", min_size=1).map(lambda text: f"Z{text}Z"))
def test_no_password_survives(password: str) -> None:
    assert "Z" not in masked_url(f"postgresql://me:{password}@host:5432/db")


def test_what_is_a_url() -> None:
    assert [is_url(s) for s in ("sqlite:///x.db", "runs/a", Path("runs"), None)] == [True, False, False, False]


@pytest.mark.parametrize(
    "url",
    [
        "nosuchdatabase://me:hunter2@host/db",
        "postgresql+nosuchdriver://me:hunter2@host/db",
        "redis://me:hunter2@host",
        "://me:hunter2@host",
        "postgresql://me:hunter2@host:port/db",
    ],
)
def test_a_storage_that_does_not_open_is_named_without_its_password(url: str) -> None:
    with pytest.raises(SettingError, match=r"the storage .*\*\*\*@host.* failed") as caught:
        open_sql(url, readonly=False)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value, chain=True))


def test_looking_for_an_sqlite_file_does_not_make_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    assert not sql_exists(url)
    assert not list(tmp_path.iterdir())
    open_sql(url, readonly=False).close()
    assert sql_exists(url)
    with pytest.raises(SettingError, match="unable to open database file"):
        open_sql(f"sqlite:///{tmp_path}/no/folder/a.db", readonly=False)
