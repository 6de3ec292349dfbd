"""``/api/stats``: what versions did over hours and days."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime, timezone
from typing import Annotated

from pydantic import Field

from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.protocol.errors import InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import StatsHistory

_DAY_S = 86_400.0
_COMPACT = re.compile(r"\d{4}(\d\d){0,2}")
_LAST_S = 4e9  # of the year 2096: what is larger is meant as milliseconds

Moment = Annotated[str, Field(description="ISO 8601 (UTC unless it says otherwise), or seconds.")]
_StepS = Annotated[int, Field(ge=60, lt=10**9, multiple_of=60, description="Seconds between points: whole minutes.")]
_Name = Annotated[str, Field(description="Only of this one.")]


class Stats(Handler):
    """The last day unless told. Percentiles are read off histograms that are added up, a fifth off at most."""

    @describes(
        "What versions did: requests, errors, tokens, latencies, in steps of minutes.",
        {200: StatsHistory},
        query={"deployment": _Name, "version": _Name, "from": Moment, "to": Moment, "step": _StepS},
        errors=(Unavailable,),
    )
    async def get(self) -> None:
        until = asked_moment(self, "to", time.time())
        since = asked_moment(self, "from", until - _DAY_S)
        deployment, version = self.get_query_argument("deployment", ""), self.get_query_argument("version", "")
        self.answer(await self.fleet.stats(deployment, version, since, until, self.number("step", "")))


def asked_moment(handler: Handler, name: str, default: float) -> float:
    """Of the query, in seconds since the epoch. Raises `InvalidRequest` for what is none."""
    text = handler.get_query_argument(name, "")
    if not text:
        return default
    at = moment(text)
    if not 0 <= at < _LAST_S:
        raise InvalidRequest(
            f"{name} is {text!r}: give a time such as 2026-01-31T12:00:00Z, or seconds since the epoch", param=name
        )
    return at


def moment(text: str) -> float:
    """Seconds since the epoch. NaN for what is no time, and for what may be two: four, six or eight digits are a year,
    a month or a date to some, and as seconds they are of 1970, which nobody asks for."""
    if _COMPACT.fullmatch(text):
        return math.nan
    try:
        return float(text)
    except ValueError:
        return _iso(text)


def _iso(text: str) -> float:
    """NaN for what is no time."""
    try:
        # In a query a + is a blank; Python 3.10 does not know the Z.
        found = datetime.fromisoformat(text.replace(" ", "+").replace("Z", "+00:00"))
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


ROUTES: list[tuple[str, type[Handler]]] = [(r"/api/stats", Stats)]
