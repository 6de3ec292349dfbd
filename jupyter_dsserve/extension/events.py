"""`EventRelay`: what happens on the gateway, as events of the Jupyter server (jupyter_events)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from jupyter_events import EventLogger

from jupyter_dsserve.extension.forward import Forwarder
from jupyter_dsserve.extension.keeper import Keeper
from jupyter_dsserve.protocol.records import Event, GatewayAddress

SCHEMAS = sorted((Path(__file__).parent / "event_schemas").glob("*.yaml"))
_LOOK_S = 1.0


def schemas_by_kind() -> dict[str, str]:
    """The id of the schema that each kind of event has; the kinds that have none stay in the gateway's history."""
    read = [yaml.safe_load(path.read_text()) for path in SCHEMAS]
    return {kind: schema["$id"] for schema in read for kind in schema["properties"]["kind"]["enum"]}


class EventRelay:
    """Reads ``/api/events`` of the gateway while one runs, and starts none. Each event is emitted once, those included
    that happened before the gateway was found, but none from before this server's start."""

    def __init__(self, keeper: Keeper, forwarder: Forwarder, events: EventLogger, log: logging.Logger) -> None:
        for path in SCHEMAS:
            events.register_event_schema(path)
        self._keeper, self._forwarder, self._events, self._log = keeper, forwarder, events, log
        self._schemas = schemas_by_kind()
        self._started = time.time()
        self._last_id = 0
        self._warned = ""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if address := self._keeper.running():
                # It ended, or its silence was too long: both are asked again, from the last event on.
                try:
                    await self._follow(address)
                except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
                    pass
                except Exception as fault:  # a newer gateway's, say: it may end, and an older one come
                    words = f"{type(fault).__name__}: {fault}"
                    if words != self._warned:  # it comes again each second
                        self._log.warning("the gateway's events cannot be read, and are asked for again: %s", words)
                    self._warned = words
            await asyncio.sleep(_LOOK_S)

    async def _follow(self, address: GatewayAddress) -> None:
        is_event = False
        async with self._forwarder.listen(address, self._last_id) as answer:
            async for line in answer.content:  # of a bounded length: a longer one is a ValueError
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    is_event = value == "event"  # the numbers of each second are nothing that happened
                elif name == "data" and is_event:
                    self.emit(_read(json.loads(value)))
                elif name == "id":
                    self._last_id = int(value)

    def emit(self, event: Event) -> None:
        schema = self._schemas.get(event.kind)
        if schema is None or event.at < self._started:
            return
        names = ("kind", "id", "deployment", "version", "replica", "reason")
        try:
            self._events.emit(
                schema_id=schema,
                data={name: getattr(event, name) for name in names},
                timestamp_override=datetime.fromtimestamp(event.at, timezone.utc),
            )
        except Exception as fault:  # of somebody's handler or modifier: the next event is another one
            self._log.warning("the event %s of %s was not emitted: %s", event.kind, event.deployment, fault)

    def gateway_lost(self, reason: str) -> None:
        self.emit(Event(0, time.time(), "gateway_lost", reason=reason))


def _read(raw: Mapping[str, Any]) -> Event:
    """A newer gateway's may say more."""
    return Event(**{f.name: raw[f.name] for f in fields(Event) if f.name in raw})
