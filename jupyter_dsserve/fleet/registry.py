"""What must outlive the gateway: deployments, versions, routes, rollouts, keys, history. One thread does all of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from jupyter_dsserve.fleet import schema
from jupyter_dsserve.fleet.database import open_engine, place_of
from jupyter_dsserve.fleet.events import Asked
from jupyter_dsserve.fleet.keys import StoredKey
from jupyter_dsserve.fleet.minutes import MINUTE_S, Minute
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.errors import Conflict, Unavailable
from jupyter_dsserve.protocol.records import Event
from jupyter_dsserve.protocol.spec import WorkerSpec

log = logging.getLogger(__name__)

Work = Callable[[sa.Connection], object]

EVENT = "event "  # with its id: what `on_failure` is told of one
_PRUNE_EVERY = 1000  # events
_PRUNED_AT_ONCE = 5000
_PRUNE_MINUTES_S = 3600
_MINUTES_AT_ONCE = 5000  # read: whoever writes does not wait for all of them
_MAX_TOLD = 1000  # events of a gateway that were not written when it was killed
_LOOK_S = 5.0  # between looks at the lease
_DAY_S = 86_400.0
# Changes that could not be written are kept, to be tried again; more than this many are not.
_MAX_UNWRITTEN = 10_000

# A change of a table is a new file in migrations/ too.
TABLES = sa.MetaData()
_deployments = sa.Table(
    "deployments",
    TABLES,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("weights", sa.JSON, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False, server_default="{}"),
)
_versions = sa.Table(
    "versions",
    TABLES,
    sa.Column("deployment", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("num_replicas", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("is_wanted", sa.Boolean, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("created_by", sa.Text, nullable=False, server_default=""),
    sa.Column("metadata", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("content", sa.Text, nullable=False, server_default=""),
)
_rollouts = sa.Table(
    "rollouts",
    TABLES,
    sa.Column("deployment", sa.String, primary_key=True),
    sa.Column("state", sa.JSON, nullable=False),
)
_keys = sa.Table(
    "api_keys",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("grants", sa.JSON, nullable=False),
)
_history = sa.Table(
    "history",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("kind", "deployment", "version", "replica", "reason")),
)
# A row is added up with others and never looked for by what is in it.
_minutes = sa.Table(
    "minutes",
    TABLES,
    sa.Column("deployment", sa.String, primary_key=True),
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("row", sa.JSON, nullable=False),
    sa.Index("minutes_at", "at"),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as it is registered. ``is_wanted``: it is to be loaded when the gateway starts. ``settings``: what may
    change while it stays the same version, as JSON. ``created_by`` is who registered it, ``metadata`` what is known of
    the run that trained it, ``content`` names what lay in its directory then (`content.content_of`)."""

    deployment: str
    name: str
    spec: WorkerSpec
    num_replicas: int
    note: str
    created_at: float
    is_wanted: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    created_by: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: str = ""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the history is kept: the last ``max_events``, of the last ``max_days``, and the minutes of the last
    ``max_stats_days``. Zero sets no such limit."""

    max_events: int = 100_000
    max_days: float = 90.0
    max_stats_days: float = 14.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What a start finds: routes, policies and rollouts by deployment, versions, the last events (oldest first)."""

    routes: Mapping[str, Route]
    policies: Mapping[str, Mapping[str, Any]]
    rollouts: Mapping[str, Mapping[str, Any]]
    versions: list[VersionRow]
    events: list[Event]
    keys: list[StoredKey]


async def written(writing: Awaitable[None]) -> None:
    """Wait until a change is on disk. If it cannot be written the change holds all the same: half a change would be
    worse. The registry tries again, and history says so."""
    with contextlib.suppress(Unavailable):
        await writing


class Registry:
    """Each call is one transaction, done in order in one thread, so that a commit never stalls a stream.

    Awaiting the result waits for the commit, and raises `Unavailable` if it cannot be; a call whose result nobody
    awaits is still done. What could not be written, because a disk is full or a server is away, is kept in order, and
    so is all that comes after it until `retry` could write it. ``on_failure`` is told, on the loop, what was not
    written and why.
    """

    def __init__(self, url: sa.URL, retention: Retention = Retention()) -> None:  # it is immutable
        """Raises `Conflict` if the database's driver is missing."""
        self._engine = open_engine(url)
        self._retention = retention
        self._place = place_of(url)
        self.on_failure: Callable[[str, str], object] = lambda _what, why: log.error("%s", why)
        self._thread = ThreadPoolExecutor(1, "registry")
        # In the order in which they were to be written; touched by the thread only.
        self._unwritten: dict[str, Work] = {}
        self._trouble = ""  # why the first of them is not written
        self._num_added = 0
        self._pieces = itertools.count()
        self._pruned_hour = 0
        self._has_lease = self._engine.dialect.name != "sqlite"  # whose directory is locked by its own gateway
        self._looked_at = 0.0
        self._question = "is its server there?" if self._has_lease else "is its disk full?"

    def open(self, num_events: int, started: str = "") -> Stored:
        """Bring the tables to what this code knows and read everything. Blocks; called once, before serving.

        With ``started``, an event ``started`` of that reason is written first. Its id, and so those of all that come
        after it, is beyond any that a killed gateway has told and not written.

        Raises `Conflict` if newer code made the tables, another gateway holds the database, or it cannot be used.
        """

        def read() -> Stored:
            with self._engine.begin() as db:
                schema.upgrade(db)
                _forget_what_is_deleted(db)
                if started:
                    last = db.execute(sa.select(sa.func.max(_history.c.id))).scalar()
                    event = Event(1 if last is None else last + _MAX_TOLD, time.time(), "started", reason=started)
                    db.execute(_history.insert().values(**asdict(event)))
                return _read(db, num_events)

        try:
            stored = self._thread.submit(read).result()
        except SQLAlchemyError as fault:
            raise Conflict(f"the registry in {self._place} cannot be used ({_words(fault)})") from None
        self._thread.submit(self._prune)
        return stored

    def close(self) -> None:
        """Finish what is still to be written."""
        self.on_failure = lambda _what, why: log.error("%s", why)  # nobody takes events any more
        self._thread.submit(self._write_what_is_left)
        self._thread.shutdown(wait=True)
        if self._unwritten:
            log.error("lost, because they could not be written to the registry: %s", ", ".join(self._unwritten))
        self._engine.dispose()

    async def retry(self, now: float) -> int:
        """Try again to write what could not be written; how many changes were. Cheap where there is nothing. Called
        every second: a lease on a server is looked after too. ``now`` is monotonic seconds."""
        if self._has_lease and now - self._looked_at > _LOOK_S:
            self._looked_at = now
            self._write("the lease on the database", lambda _db: None)  # lost and not to be had: it waits, as all does
        return await asyncio.wrap_future(self._thread.submit(self._write_what_is_left)) if self._unwritten else 0

    def save_route(self, deployment: str, route: Route) -> asyncio.Future[None]:
        values = {"weights": dict(route.weights), "revision": route.revision}
        return self._write(
            f"the route of {deployment}", lambda db: _upsert(db, _deployments, {"name": deployment}, values)
        )

    def save_policy(self, deployment: str, policy: Mapping[str, Any], route: Route) -> asyncio.Future[None]:
        """With the route as it is now: the deployment may not be written yet."""
        values = {"weights": dict(route.weights), "revision": route.revision, "policy": dict(policy)}
        return self._write(
            f"the policy of {deployment}", lambda db: _upsert(db, _deployments, {"name": deployment}, values)
        )

    def save_rollout(self, deployment: str, state: Mapping[str, Any]) -> asyncio.Future[None]:
        return self._write(
            f"the rollout of {deployment}",
            lambda db: _upsert(db, _rollouts, {"deployment": deployment}, {"state": dict(state)}),
        )

    def save_version(self, row: VersionRow, *, is_new: bool = False) -> asyncio.Future[None]:
        """A new one that cannot be written is not tried again: whoever registers it is told."""
        values = {k: v for k, v in _as_values(row).items() if k not in ("deployment", "name")}
        key = {"deployment": row.deployment, "name": row.name}
        return self._write(_version(**key), lambda db: _upsert(db, _versions, key, values), is_kept=not is_new)

    def forget_version(self, deployment: str, name: str) -> asyncio.Future[None]:
        which = (_versions.c.deployment == deployment) & (_versions.c.name == name)
        return self._write(_version(deployment, name), lambda db: db.execute(_versions.delete().where(which)))

    def forget_deployment(self, name: str) -> asyncio.Future[None]:
        def forget(db: sa.Connection) -> None:
            db.execute(_rollouts.delete().where(_rollouts.c.deployment == name))
            db.execute(_deployments.delete().where(_deployments.c.name == name))

        return self._write(f"the route of {name}", forget)

    def add_key(self, key: StoredKey) -> asyncio.Future[None]:
        """One that cannot be written is not tried again: whoever wants it is told."""
        values = {"id": key.key.id, "digest": key.digest, "grants": key.grants()}
        return self._write(
            f"the key {key.key.id}", lambda db: db.execute(_keys.insert().values(**values)), is_kept=False
        )

    def forget_key(self, id: str) -> asyncio.Future[None]:
        return self._write(f"the key {id}", lambda db: db.execute(_keys.delete().where(_keys.c.id == id)))

    def add_event(self, event: Event) -> asyncio.Future[None]:
        values = {k: _plain(v) if isinstance(v, str) else v for k, v in asdict(event).items()}
        self._num_added += 1
        if self._num_added % _PRUNE_EVERY == 0:
            self._thread.submit(self._prune)
        return self._write(f"{EVENT}{event.id}", lambda db: db.execute(_history.insert().values(**values)))

    def history(self, asked: Asked) -> asyncio.Future[list[Event]]:
        """Events, oldest first. Raises `Unavailable` if they cannot be read."""
        table = _history.c
        query = sa.select(_history).where(table.at >= asked.first).limit(asked.limit)
        query = query.order_by(table.id.desc() if asked.since is None else table.id)
        if asked.deployment:
            query = query.where(table.deployment == asked.deployment)
        if asked.since is not None:
            query = query.where(table.id > asked.since)
        if asked.before is not None:
            query = query.where(table.id < asked.before)
        if asked.last < math.inf:
            query = query.where(table.at <= asked.last)

        def read() -> list[Event]:
            try:
                with self._engine.begin() as db:
                    return asked.of(Event(**row) for row in db.execute(query).mappings())
            except (SQLAlchemyError, Conflict) as fault:
                raise Unavailable(f"the history cannot be read ({_words(fault)})") from None

        return asyncio.wrap_future(self._thread.submit(read))

    def add_minutes(self, minutes: Sequence[Minute]) -> Awaitable[None]:
        """Those of one minute. What is there of it already (from a gateway that ended within it) is added up."""

        def add(db: sa.Connection) -> None:
            for each in minutes:
                key = {"deployment": each.deployment, "version": each.version, "at": each.at}
                which = sa.and_(*(_minutes.c[name] == value for name, value in key.items()))
                before = db.execute(sa.select(_minutes.c.row).where(which)).scalar()
                whole = Minute.read(each.deployment, each.version, each.at, before).plus(each) if before else each
                _upsert(db, _minutes, key, {"row": whole.row()})

        at = minutes[0].at
        if (hour := at // _PRUNE_MINUTES_S) != self._pruned_hour:
            self._pruned_hour = hour
            self._thread.submit(self._prune)
        # By a number too: of a minute that comes twice (a clock that was set back) none is out of date.
        return self._write(f"the minute {at} (piece {next(self._pieces)})", add)

    async def minutes(self, deployment: str, version: str, since: float, until: float) -> AsyncIterator[list[Minute]]:
        """Those that lie in the time, or are cut by it, in pieces, the newest first; of one deployment and version,
        unless they are empty. What is written between two pieces is in neither, as long as it is newer.

        Raises `Unavailable` if they cannot be read.
        """
        table = _minutes.c
        order = (table.at, table.deployment, table.version)
        query = sa.select(_minutes).where(table.at > since - MINUTE_S, table.at < until)
        query = query.order_by(*(column.desc() for column in order)).limit(_MINUTES_AT_ONCE)
        if deployment:
            query = query.where(table.deployment == deployment)
        if version:
            query = query.where(table.version == version)

        def read(query: sa.Select[Any]) -> list[Minute]:
            try:
                with self._engine.begin() as db:
                    return [Minute.read(**row) for row in db.execute(query).mappings()]
            except (SQLAlchemyError, Conflict) as fault:
                raise Unavailable(f"the history cannot be read ({_words(fault)})") from None

        piece = await asyncio.wrap_future(self._thread.submit(read, query))
        yield piece
        while len(piece) == _MINUTES_AT_ONCE:
            last = piece[-1]
            older = query.where(sa.tuple_(*order) < sa.tuple_(last.at, last.deployment, last.version))
            piece = await asyncio.wrap_future(self._thread.submit(read, older))
            yield piece

    def _write(self, what: str, work: Work, *, is_kept: bool = True) -> asyncio.Future[None]:
        waiting = asyncio.wrap_future(self._thread.submit(self._commit, what, work, is_kept))
        waiting.add_done_callback(partial(self._tell, what))
        shielded = asyncio.shield(waiting)  # whoever stops waiting does not stop the writing
        shielded.add_done_callback(lambda w: w.cancelled() or w.exception())  # told above, whether awaited or not
        return shielded

    def _tell(self, what: str, waiting: asyncio.Future[None]) -> None:
        if not waiting.cancelled() and (fault := waiting.exception()):
            self.on_failure(what, str(fault))

    # ---- in the thread

    def _commit(self, what: str, work: Work, is_kept: bool) -> None:
        trouble = self._trouble if self._unwritten else self._tried(what, work)
        if trouble:  # nothing overtakes, and a server that is away is asked by `retry` only
            if is_kept:
                self._keep(what, work)
            self._trouble = trouble
            raise Unavailable(f"{what} was not written to the registry ({trouble}): {self._question}")

    def _tried(self, what: str, work: Work) -> str:
        """Empty if it is written, or why it is not yet. Raises `Unavailable` if another time would not help."""
        try:
            with self._engine.begin() as db:
                work(db)
        except (OperationalError, InterfaceError, Conflict) as fault:
            return _words(fault)
        except SQLAlchemyError as fault:
            log.exception("%s cannot be written to the registry", what)
            raise Unavailable(f"{what} cannot be written to the registry ({_words(fault)})") from None
        return ""

    def _keep(self, what: str, work: Work) -> None:
        self._unwritten.pop(what, None)  # what was to be written of the same thing is out of date
        self._unwritten[what] = work
        if len(self._unwritten) > _MAX_UNWRITTEN:
            oldest = next((w for w in self._unwritten if w.startswith(EVENT)), what)
            del self._unwritten[oldest]

    def _write_what_is_left(self) -> int:
        """The number of changes written; those that cannot be yet stay."""
        num_written = 0
        for what, work in list(self._unwritten.items()):
            with contextlib.suppress(Unavailable):  # given up, and logged
                if trouble := self._tried(what, work):
                    self._trouble = trouble
                    break
                num_written += 1
            del self._unwritten[what]
        return num_written

    def _prune(self) -> None:
        """Forget events that are too many or too old, but never the last: the next id follows from it."""
        try:
            with self._engine.begin() as db:
                is_done = _prune(db, self._retention, time.time())
        except (SQLAlchemyError, Conflict) as fault:
            log.warning("the history could not be shortened: %s", _words(fault))
            return
        if not is_done:  # the next piece, after what came to be written meanwhile
            with contextlib.suppress(RuntimeError):  # we are closing
                self._thread.submit(self._prune)


def _forget_what_is_deleted(db: sa.Connection) -> None:
    """A deployment is there as long as it has versions. A gateway that is killed between the last version's end and
    this would leave a policy that comes back with another deployment of that name."""
    named = sa.select(_versions.c.deployment)
    db.execute(_rollouts.delete().where(_rollouts.c.deployment.not_in(named)))
    db.execute(_deployments.delete().where(_deployments.c.name.not_in(named)))


def _read(db: sa.Connection, num_events: int) -> Stored:
    deployments = db.execute(sa.select(_deployments)).all()
    rows = db.execute(sa.select(_versions).order_by(_versions.c.created_at)).mappings()
    latest = db.execute(sa.select(_history).order_by(_history.c.id.desc()).limit(num_events)).mappings()
    return Stored(
        routes={r.name: Route(r.weights, r.revision) for r in deployments},
        policies={r.name: r.policy for r in deployments},
        rollouts={r.deployment: r.state for r in db.execute(sa.select(_rollouts))},
        versions=[VersionRow(**(dict(r) | {"spec": WorkerSpec.from_json(r["spec"])})) for r in rows],
        events=[Event(**r) for r in latest][::-1],
        keys=[StoredKey.read(r.id, r.digest, r.grants) for r in db.execute(sa.select(_keys))],
    )


def _prune(db: sa.Connection, retention: Retention, now: float) -> bool:
    """Delete at most `_PRUNED_AT_ONCE` events; whether that was all. ``now`` is seconds since the epoch."""
    id, at = _history.c.id, _history.c.at
    if retention.max_stats_days:
        db.execute(_minutes.delete().where(_minutes.c.at < now - retention.max_stats_days * _DAY_S))
    first, last = db.execute(sa.select(sa.func.min(id), sa.func.max(id))).one()
    if first is None:
        return True
    bounds = [0]
    if retention.max_events:
        kept = sa.select(id).order_by(id.desc()).offset(retention.max_events).limit(1)
        bounds.append(db.execute(kept).scalar() or 0)
    if retention.max_days:
        too_old = sa.select(sa.func.max(id)).where(at < now - retention.max_days * _DAY_S)
        bounds.append(db.execute(too_old).scalar() or 0)
    end = min(max(bounds), last - 1)
    db.execute(_history.delete().where(id <= min(end, first + _PRUNED_AT_ONCE - 1)))
    return end < first + _PRUNED_AT_ONCE


def _upsert(db: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    # Update, else insert: the same on every database, and there is only one writer.
    which = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if db.execute(table.update().where(which).values(**values)).rowcount == 0:
        db.execute(table.insert().values(**key, **values))


def _as_values(row: VersionRow) -> dict[str, Any]:
    return asdict(row) | {
        "spec": row.spec.to_json(),
        "settings": dict(row.settings),
        "metadata": dict(row.metadata),
        "note": _plain(row.note),
        "created_by": _plain(row.created_by),
    }


def _plain(text: str) -> str:
    """PostgreSQL's texts hold every character but one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _version(deployment: str, name: str) -> str:
    return f"version {deployment}@{name}"


def _words(fault: Exception) -> str:
    """What the database itself said, without the statement."""
    said = str(fault.orig) if isinstance(fault, DBAPIError) else str(fault)
    return " ".join(said.split())
