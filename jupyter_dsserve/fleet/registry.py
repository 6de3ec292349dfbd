"""What must outlive the gateway: deployments, versions, routes, history. SQLAlchemy on SQLite, one writing thread."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.records import Event
from jupyter_dsserve.protocol.spec import WorkerSpec

log = logging.getLogger(__name__)

_meta = sa.MetaData()
_deployments = sa.Table(
    "deployments",
    _meta,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("weights", sa.JSON, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False, server_default="{}"),
)
_versions = sa.Table(
    "versions",
    _meta,
    sa.Column("deployment", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("num_replicas", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("is_wanted", sa.Boolean, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False, server_default="{}"),
)
_rollouts = sa.Table(
    "rollouts",
    _meta,
    sa.Column("deployment", sa.String, primary_key=True),
    sa.Column("state", sa.JSON, nullable=False),
)
_history = sa.Table(
    "history",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("kind", "deployment", "version", "replica", "reason")),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as it is registered. ``is_wanted``: it is to be loaded when the gateway starts. ``settings``: what may
    change while it stays the same version, as JSON."""

    deployment: str
    name: str
    spec: WorkerSpec
    num_replicas: int
    note: str
    created_at: float
    is_wanted: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a start finds: routes, policies and rollouts by deployment, versions, the last events (oldest first)."""

    routes: Mapping[str, Route]
    policies: Mapping[str, Mapping[str, Any]]
    rollouts: Mapping[str, Mapping[str, Any]]
    versions: list[VersionRow]
    events: list[Event]


class Registry:
    """Each call is one transaction, done in order in one thread, so that a commit never stalls a stream.

    Awaiting the result waits for the commit; a call whose result nobody awaits is still done, and logged if it fails.
    """

    def __init__(self, url: sa.URL) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _be_careful)
        self._thread = ThreadPoolExecutor(1, "registry")

    def open(self, num_events: int) -> Stored:
        """Make the tables if they are missing and read everything. Blocks; called once, before serving."""
        _meta.create_all(self._engine)
        with self._engine.connect() as db:
            deployments = db.execute(sa.select(_deployments)).all()
            routes = {r.name: Route(r.weights, r.revision) for r in deployments}
            policies = {r.name: r.policy for r in deployments}
            rollouts = {r.deployment: r.state for r in db.execute(sa.select(_rollouts))}
            rows = db.execute(sa.select(_versions).order_by(_versions.c.created_at)).mappings()
            versions = [VersionRow(**(dict(r) | {"spec": WorkerSpec.from_json(r["spec"])})) for r in rows]
            latest = db.execute(sa.select(_history).order_by(_history.c.id.desc()).limit(num_events)).mappings()
            events = [Event(**r) for r in latest][::-1]
        return Stored(routes, policies, rollouts, versions, events)

    def close(self) -> None:
        """Finish what is still to be written."""
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    def save_route(self, deployment: str, route: Route) -> asyncio.Future[None]:
        values = {"weights": dict(route.weights), "revision": route.revision}
        return self._write(lambda db: _upsert(db, _deployments, {"name": deployment}, values))

    def save_policy(self, deployment: str, policy: Mapping[str, Any]) -> asyncio.Future[None]:
        """Of a deployment that has a route already."""
        which = _deployments.c.name == deployment
        return self._write(lambda db: db.execute(_deployments.update().where(which).values(policy=dict(policy))))

    def save_rollout(self, deployment: str, state: Mapping[str, Any]) -> asyncio.Future[None]:
        return self._write(lambda db: _upsert(db, _rollouts, {"deployment": deployment}, {"state": dict(state)}))

    def save_version(self, row: VersionRow) -> asyncio.Future[None]:
        values = {k: v for k, v in _as_values(row).items() if k not in ("deployment", "name")}
        return self._write(lambda db: _upsert(db, _versions, {"deployment": row.deployment, "name": row.name}, values))

    def forget_version(self, deployment: str, name: str) -> asyncio.Future[None]:
        which = (_versions.c.deployment == deployment) & (_versions.c.name == name)
        return self._write(lambda db: db.execute(_versions.delete().where(which)))

    def forget_deployment(self, name: str) -> asyncio.Future[None]:
        def forget(db: sa.Connection) -> None:
            db.execute(_rollouts.delete().where(_rollouts.c.deployment == name))
            db.execute(_deployments.delete().where(_deployments.c.name == name))

        return self._write(forget)

    def add_event(self, event: Event) -> asyncio.Future[None]:
        return self._write(lambda db: db.execute(_history.insert().values(**asdict(event))))

    def _write(self, work: Callable[[sa.Connection], object]) -> asyncio.Future[None]:
        def transaction() -> None:
            with self._engine.begin() as db:
                work(db)

        done = self._thread.submit(transaction)
        done.add_done_callback(_log_failure)
        waiting = asyncio.wrap_future(done)
        waiting.add_done_callback(lambda w: w.cancelled() or w.exception())  # logged above, whether awaited or not
        return waiting


def _upsert(db: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    # Update, else insert: the same on every database, and there is only one writer.
    which = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if db.execute(table.update().where(which).values(**values)).rowcount == 0:
        db.execute(table.insert().values(**key, **values))


def _as_values(row: VersionRow) -> dict[str, Any]:
    return asdict(row) | {"spec": json.dumps(asdict(row.spec), sort_keys=True), "settings": dict(row.settings)}


def _log_failure(done: Future[None]) -> None:
    if fault := done.exception():
        log.error("a change could not be written to the registry", exc_info=fault)


def _be_careful(connection: Any, _record: object) -> None:
    # No write-ahead log: the data directory may lie on NFS, where its shared memory does not work.
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=FULL")
