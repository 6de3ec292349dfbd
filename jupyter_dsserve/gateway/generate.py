"""From a request to the fleet's chunks: what every generating route does, and ``/predict``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone

from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.bodies import PredictBody
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, Request
from jupyter_dsserve.protocol.spec import Task

# Where each task is asked.
ROUTES_OF: Mapping[Task, str] = {
    "generate": "/v1/completions, /v1/chat/completions or /predict",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "tensor": "/v2/models/NAME/infer",
}


def start(handler: Handler, model: str, request: Request, user: str = "") -> AsyncGenerator[Chunk, None]:
    """The answer's chunks, from the version that the route picks for ``user`` (or for this request alone).

    Names the version in ``X-DSServe-Version``. Raises `NotFound`, `Unavailable`, and `InvalidRequest` if the version
    generates nothing.
    """
    return pick(handler, model, user or request.id, "generate").generate(request)


def pick(handler: Handler, model: str, key: str, task: Task) -> Version:
    """The version that answers, named in ``X-DSServe-Version``.

    Raises `NotFound`, `Unavailable`, and `InvalidRequest` if the version's task is another than ``task``.
    """
    version = handler.fleet.pick(model, key)
    handler.keep_header("X-DSServe-Version", version.name)
    own = version.spec.task
    if own != task:
        raise InvalidRequest(
            f"{version.id} has the task {own!r}, and this route is for {task!r}: ask it at {ROUTES_OF[own]}",
            param="model",
        )
    return version


async def collect(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    """All chunks as one. Raises the error that ended the answer, if one did."""
    async with aclosing(chunks):
        whole = await anext(chunks)
        async for chunk in chunks:
            whole = whole.merged(chunk)
    if whole.error:
        raise whole.error
    return whole


async def collect_all(version: Version, requests: Sequence[Request]) -> list[Chunk]:
    """The whole answers, in order. The first error ends the others, and is raised; so does leaving."""
    asking = [asyncio.create_task(collect(version.generate(request))) for request in requests]
    try:
        return await asyncio.gather(*asking)
    finally:
        for one in asking:
            one.cancel()


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
