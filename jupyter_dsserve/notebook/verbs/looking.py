"""Verbs that look: they start nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter

from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.notebook.stats import StatsTable, moment
from jupyter_dsserve.notebook.traces import Trace, TraceList
from jupyter_dsserve.notebook.verbs.talk import DEPLOYMENT, VERSION, Talk, Talking, path_of
from jupyter_dsserve.notebook.views import Deployment, History, Status, Version
from jupyter_dsserve.protocol.records import Event, GatewayState
from jupyter_dsserve.protocol.traces import TraceSummary


@dataclass(frozen=True, slots=True)
class _Served:
    """What we read of ``/api/status``."""

    deployments: list[Deployment]
    grpc: str = ""


_EVENTS = TypeAdapter(list[Event])
_STATUS = TypeAdapter(_Served)
_LOGS = TypeAdapter(dict[str, list[str]])
_LEDGER = TypeAdapter(Ledger)
_STATS = TypeAdapter(StatsTable)
_TRACE = TypeAdapter(Trace)
_TRACES = TypeAdapter(list[TraceSummary])


class Looking(Talking):
    """Starts nothing."""

    def status(self) -> Talk[Status]:
        """The gateway and everything on it."""
        gateway = yield from self.gateway()
        if gateway.state is not GatewayState.RUNNING:
            return Status(gateway)
        found = yield from self._look(_STATUS, "/api/status")
        return Status(replace(gateway, grpc=found.grpc), found.deployments)

    def deployment(self, name: str) -> Talk[Deployment]:
        """Raises `NotFound`."""
        return (yield from self._look(DEPLOYMENT, path_of(name)))

    def version(self, name: str, version: str) -> Talk[Version]:
        """Raises `NotFound`."""
        return (yield from self._look(VERSION, path_of(name, version)))

    def logs(self, name: str, version: str, num_lines: int = 200) -> Talk[dict[str, list[str]]]:
        """The last lines that each of the version's workers wrote."""
        return (yield from self._look(_LOGS, f"{path_of(name, version)}/logs?lines={num_lines}"))

    def history(
        self,
        deployment: str = "",
        *,
        since: int | str | float | None = None,
        until: str | float | None = None,
        before: int | None = None,
        limit: int = 1000,
    ) -> Talk[History]:
        """What happened, oldest first, to one deployment or to all: the last ``limit`` events (10,000 at most).

        ``since`` is a whole number, the id of an event: the first ones after it; or an age (``30m``, ``24h``, ``7d``),
        a time (``2026-01-31T09:00``), or seconds since the epoch with a point: the last ones from then on. ``until`` is
        such a time. ``before`` is the id of an event: the last ones before it, so
        ``history(…, before=events[0].id)`` goes on from ``events`` backwards. It goes as far back as the gateway keeps
        it (90 days unless told).
        """
        now = time.time()
        asked: dict[str, str | float] = {"deployment": deployment, "limit": limit}
        if since is not None:
            asked |= {"since": since} if isinstance(since, int) else {"from": moment(since, now)}
        if until is not None:
            asked["to"] = moment(until, now, "until")
        if before is not None:
            asked["before"] = before
        return History((yield from self._look(_EVENTS, f"/api/history?{urlencode(asked)}")))

    def stats(
        self,
        deployment: str = "",
        version: str = "",
        *,
        since: str | float = "24h",
        until: str | float | None = None,
        step_s: int | None = None,
    ) -> Talk[StatsTable]:
        """What versions did, in steps of ``step_s`` seconds (whole minutes): ``client.stats("demo", since="7d")``.

        ``since`` and ``until`` (now unless told) are ages (``30m``, ``24h``, ``7d``), times (``2026-01-31T09:00``), or
        seconds since the epoch. It goes as far back as the gateway keeps it (14 days unless told). `StatsTable.figure`
        is a plot of it, `StatsTable.to_frame` a pandas DataFrame.
        """
        now = time.time()
        asked_for = {"deployment": deployment, "version": version, "from": moment(since, now)}
        asked_for |= {} if until is None else {"to": moment(until, now, "until")}
        asked_for |= {} if step_s is None else {"step": step_s}
        return (yield from self._look(_STATS, f"/api/stats?{urlencode(asked_for)}"))

    def ledger(self) -> Talk[Ledger]:
        """Who holds the memory of every device, and who waits for it."""
        return (yield from self._look(_LEDGER, "/api/ledger"))

    def trace(self, id: str = "", *, deployment: str = "", limit: int = 20) -> Talk[TraceList | Trace]:
        """Where the time of a call went: ``id`` is the answer's ``request_id`` (or ``X-Request-Id``, or the id of a
        trace that the caller began). Without it the last calls, of one deployment or of all, the newest first.

        The gateway keeps the last 200 calls unless told; raises `NotFound` for one that it does not have.
        """
        if id:
            return (yield from self._look(_TRACE, f"/api/traces/{quote(id, safe='')}"))
        query = urlencode({"deployment": deployment, "limit": limit})
        return TraceList((yield from self._look(_TRACES, f"/api/traces?{query}")))
