"""Which database, and how it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from jupyter_dsserve.fleet import database
from jupyter_dsserve.fleet.database import database_url, is_local, place_of
from jupyter_dsserve.fleet.registry import Registry
from jupyter_dsserve.protocol.errors import Conflict

MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/sdb1 /home/ann/local\\040disk xfs rw 0 0
server:/home /home nfs4 rw 0 0
server:/x /home/bob nfs 0 0
sshfs /mnt/far fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "is_it"),
    [
        ("/data", True),
        ("/run/user", True),
        ("/home/ann/data", False),
        ("/home/ann/local disk/data", True),
        ("/homely", True),
        ("/mnt/far/away", False),
    ],
)
def test_the_innermost_mount_says_whether_a_path_is_on_this_machine(path: str, is_it: bool) -> None:
    assert is_local(Path(path), MOUNTS) is is_it


def test_what_nothing_is_known_of_is_not_local() -> None:
    assert not is_local(Path("/data"), "")


@pytest.mark.parametrize(("mounts", "journal"), [("disk / ext4 rw 0 0", "wal"), ("a:/ / nfs rw 0 0", "delete")])
def test_a_write_ahead_log_is_kept_on_local_disks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, journal: str
) -> None:
    monkeypatch.setattr(database, "_mounts", lambda: mounts)
    registry = Registry(database_url("", tmp_path))
    registry.open(10)
    try:
        other = sqlite3.connect(tmp_path / "fleet.db")
        assert other.execute("PRAGMA journal_mode").fetchone() == (journal,)
        other.close()
    finally:
        registry.close()
    assert [p.name for p in tmp_path.iterdir()] == ["fleet.db"]


def test_a_url_may_lie_in_a_file_and_names_its_place_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://ann:s3cret@db.example:5433/fleet\n")
    url = database_url(f"@{tmp_path / 'url'}", tmp_path)
    assert (url.drivername, url.password, url.port) == ("postgresql+psycopg", "s3cret", 5433)
    assert place_of(url) == "fleet on db.example"
    assert "s3cret" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    "given", ["mysql://ann:s3cret@h/d", "nonsense s3cret", "sqlite:///s3cret", "postgresql://h:s3cret/d"]
)
def test_another_url_is_refused_without_being_quoted(tmp_path: Path, given: str) -> None:
    with pytest.raises(Conflict, match="postgresql://USER@HOST/DATABASE") as refused:
        database_url(given, tmp_path)
    assert "s3cret" not in refused.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="no-such"):
        database_url(f"@{tmp_path}/no-such", tmp_path)
