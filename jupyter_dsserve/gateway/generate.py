"""From a request to the fleet's chunks: what every generating route does, and ``/predict``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timezone

from jupyter_dsserve.gateway.bodies import PredictBody
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.request import Chunk, Request


def start(handler: Handler, model: str, request: Request, user: str = "") -> AsyncGenerator[Chunk, None]:
    """The answer's chunks, from the version that the route picks for ``user`` (or for this request alone).

    Names the version in ``X-DSServe-Version``. Raises `NotFound` and `Unavailable`.
    """
    version = handler.fleet.pick(model, user or request.id)
    handler.keep_header("X-DSServe-Version", version.name)
    return version.generate(request)


async def collect(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    """All chunks as one. Raises the error that ended the answer, if one did."""
    async with aclosing(chunks):
        whole = await anext(chunks)
        async for chunk in chunks:
            whole = whole.merged(chunk)
    if whole.error:
        raise whole.error
    return whole


class Predict(Handler):
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(PredictBody)
        started = time.monotonic()
        whole = await collect(start(self, body.model, body.request()))
        self.answer(
            {
                "result": whole.text,
                "latency_ms": round(1000 * (time.monotonic() - started), 3),
                "timestamp": datetime.now(timezone.utc).isoformat(),
                "version": self._headers["X-DSServe-Version"],
            }
        )


ROUTES: list[tuple[str, type[Handler]]] = [(r"/predict", Predict)]
