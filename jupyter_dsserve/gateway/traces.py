"""``/api/traces``: the last calls of models, and what happened in one of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.tracing import KEPT
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.traces import TraceRecord, TraceSummary

_Deployment = Annotated[str, Field(description="Only calls of this one.")]
_Limit = Annotated[int, Field(ge=0, lt=10**9, description=f"The most to tell; {KEPT} unless told.")]


class LastTraces(Handler):
    @describes(
        "The last calls of models, the newest first.",
        {200: list[TraceSummary]},
        query={"deployment": _Deployment, "limit": _Limit},
    )
    def get(self) -> None:
        limit = self.number("limit", str(KEPT))
        found = self.context.traces.last(self.get_query_argument("deployment", ""), KEPT if limit is None else limit)
        self.answer(found)


class OneTrace(Handler):
    @describes(
        "Where the time of a call went, by its X-Request-Id or its trace id.", {200: TraceRecord}, errors=(NotFound,)
    )
    def get(self, id: str) -> None:
        self.answer(self.context.traces.find(id))


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/traces", LastTraces),
    (r"/api/traces/([^/]+)", OneTrace),
]
