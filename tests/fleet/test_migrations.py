"""A registry that older code made is brought to what this code knows, and nothing in it is lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from jupyter_dsserve.fleet import schema
from jupyter_dsserve.fleet.registry import TABLES, Registry, Stored
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.errors import Conflict
from jupyter_dsserve.protocol.records import Event
from jupyter_dsserve.protocol.spec import WorkerSpec

# As SQLAlchemy wrote them before the schema had a number; the second came with policies, settings and rollouts.
FIRST = """
CREATE TABLE deployments (name VARCHAR NOT NULL, weights JSON NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (name));
CREATE TABLE versions (
    deployment VARCHAR NOT NULL, name VARCHAR NOT NULL, spec TEXT NOT NULL, num_replicas INTEGER NOT NULL,
    note TEXT NOT NULL, created_at FLOAT NOT NULL, is_wanted BOOLEAN NOT NULL, PRIMARY KEY (deployment, name));
CREATE TABLE history (
    id INTEGER NOT NULL, at FLOAT NOT NULL, kind TEXT NOT NULL, deployment TEXT NOT NULL, version TEXT NOT NULL,
    replica TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (id));
INSERT INTO deployments VALUES ('demo', '{"v1": 100.0}', 3);
INSERT INTO versions VALUES ('demo', 'v1', '{"model": "builtin:demo-v1", "dtype": "bf16"}', 2, 'first', 12.5, 1);
INSERT INTO history VALUES (7, 12.5, 'registered', 'demo', 'v1', '', 'builtin:demo-v1');
"""
SECOND = (
    FIRST
    + """
ALTER TABLE deployments ADD COLUMN policy JSON DEFAULT '{}' NOT NULL;
ALTER TABLE versions ADD COLUMN settings JSON DEFAULT '{}' NOT NULL;
CREATE TABLE rollouts (deployment VARCHAR NOT NULL, state JSON NOT NULL, PRIMARY KEY (deployment));
UPDATE deployments SET policy = '{"max_queue": 5}';
UPDATE versions SET settings = '{"priority": "low"}';
INSERT INTO rollouts VALUES ('demo', '{"step": 2}');
"""
)


def made_by(statements: str, path: Path) -> sa.URL:
    with sqlite3.connect(path) as db:
        db.executescript(statements)
    db.close()
    return sa.URL.create("sqlite", database=str(path))


def opened(url: sa.URL) -> Stored:
    registry = Registry(url)
    try:
        return registry.open(10)
    finally:
        registry.close()


def number_of(path: Path) -> list[tuple[str]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT version_num FROM alembic_version").fetchall()
    db.close()
    return found


@pytest.mark.parametrize(
    ("statements", "policy", "settings", "rollouts"),
    [(FIRST, {}, {}, {}), (SECOND, {"max_queue": 5}, {"priority": "low"}, {"demo": {"step": 2}})],
    ids=["first", "second"],
)
def test_what_older_code_wrote_is_all_there(
    tmp_path: Path, statements: str, policy: object, settings: object, rollouts: object
) -> None:
    url = made_by(statements, tmp_path / "fleet.db")
    for _ in range(2):
        stored = opened(url)
        assert stored.routes == {"demo": Route({"v1": 100}, 3)}
        assert stored.policies == {"demo": policy}
        assert stored.rollouts == rollouts
        [version] = stored.versions
        assert (version.spec, version.num_replicas) == (WorkerSpec("builtin:demo-v1", dtype="bf16"), 2)
        assert (version.settings, version.created_by, version.metadata) == (settings, "", {})
        assert stored.events == [Event(7, 12.5, "registered", "demo", "v1", "", "builtin:demo-v1")]


@pytest.mark.parametrize("statements", ["", FIRST, SECOND], ids=["empty", "first", "second"])
def test_the_migrations_end_at_the_tables_that_the_code_names(tmp_path: Path, statements: str) -> None:
    url = made_by(statements, tmp_path / "fleet.db")
    opened(url)
    with sa.create_engine(url).connect() as db:
        assert compare_metadata(MigrationContext.configure(db), TABLES) == []


def test_a_new_database_has_the_tables_that_the_code_names(url: sa.URL) -> None:
    opened(url)
    with sa.create_engine(url).connect() as db:
        assert compare_metadata(MigrationContext.configure(db), TABLES) == []


def test_a_database_that_newer_code_made_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    url = made_by("", tmp_path / "fleet.db")
    opened(url)
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    with pytest.raises(Conflict, match=r"number 9999.*newer"):
        opened(url)
    assert number_of(tmp_path / "fleet.db") == [("9999",)]


def test_a_migration_that_breaks_off_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.db"
    url = made_by(FIRST, path)
    migrate = schema.upgrade

    def break_off(db: sa.Connection) -> None:
        migrate(db)
        raise RuntimeError("killed")

    monkeypatch.setattr(schema, "upgrade", break_off)
    with pytest.raises(RuntimeError):
        opened(url)
    with sqlite3.connect(path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = [row[1] for row in db.execute("PRAGMA table_info(versions)")]
    db.close()
    assert tables == {"deployments", "versions", "history"}
    assert "settings" not in columns
    monkeypatch.undo()
    assert opened(url).versions[0].note == "first"


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database, by any means" * 100)
    with pytest.raises(Conflict, match="not a database"):
        opened(sa.URL.create("sqlite", database=str(tmp_path / "fleet.db")))
