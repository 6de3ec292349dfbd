"""From requests to the fleet's chunks: what every generating route does, and ``/predict``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone

from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.bodies import PredictBody
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.spec import Task

# Where each task is asked.
ROUTES_OF: Mapping[Task, str] = {
    "generate": "/v1/completions, /v1/chat/completions or /predict",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "tensor": "/v2/models/NAME/infer",
}

Chunks = AsyncGenerator[Chunk, None]
# The chunks of several answers, each with the number of its answer.
Numbered = AsyncGenerator[tuple[int, Chunk], None]


def start(handler: Handler, model: str, requests: Sequence[Request], user: str = "") -> Numbered:
    """The answers, all from the version that the route picks for ``user`` (or for this call alone).

    Names the version in ``X-DSServe-Version``. Raises `NotFound`, `Unavailable`, and `InvalidRequest` if the version
    generates nothing.
    """
    version = pick(handler, model, user or requests[0].id, "generate")
    return interleaved([version.generate(request) for request in requests])


def pick(handler: Handler, model: str, key: str, task: Task) -> Version:
    """The version that answers, named in ``X-DSServe-Version``.

    Raises `NotFound`, `Unavailable`, and `InvalidRequest` if the version's task is another than ``task``.
    """
    version = handler.fleet.pick(model, key)
    handler.keep_header("X-DSServe-Version", version.name)
    check_task(version, task)
    return version


def check_task(version: Version, task: Task) -> None:
    """Raises `InvalidRequest`, naming where to ask, if the version's task is another than ``task``."""
    own = version.spec.task
    if own != task:
        raise InvalidRequest(
            f"{version.id} has the task {own!r}, and this route is for {task!r}: ask it at {ROUTES_OF[own]}",
            param="model",
        )


async def interleaved(answers: Sequence[Chunks]) -> Numbered:
    """The chunks of all ``answers`` as they come. Leaving early ends those that still run."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        return
    # It holds one chunk an answer: what a slow reader leaves beyond that merges in the replica's inbox.
    ready: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue(len(answers))
    tasks = [asyncio.create_task(_forward(answer, number, ready)) for number, answer in enumerate(answers)]
    try:
        num_open = len(answers)
        while num_open:
            number, chunk = await ready.get()
            num_open -= chunk.finish_reason is not None
            yield number, chunk
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(answer: Chunks, number: int, ready: asyncio.Queue[tuple[int, Chunk]]) -> None:
    try:
        async with aclosing(answer):
            async for chunk in answer:
                await ready.put((number, chunk))
    except DSServeError as fault:
        await ready.put((number, Chunk("", finish_reason=FinishReason.ERROR, error=fault)))


async def collect(numbered: Numbered) -> list[Chunk]:
    """Each answer as one chunk. Raises the first error that ended an answer; the others are given up then."""
    wholes: dict[int, Chunk] = {}
    async with aclosing(numbered):
        async for number, chunk in numbered:
            if chunk.error:
                raise chunk.error
            wholes[number] = wholes[number].merged(chunk) if number in wholes else chunk
    return [wholes[number] for number in sorted(wholes)]


class Predict(Handler):
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(PredictBody)
        started = time.monotonic()
        (whole,) = await collect(start(self, body.model, [body.request()]))
        self.answer(
            {
                "result": whole.text,
                "latency_ms": round(1000 * (time.monotonic() - started), 3),
                "timestamp": datetime.now(timezone.utc).isoformat(),
                "version": self._headers["X-DSServe-Version"],
            }
        )


ROUTES: list[tuple[str, type[Handler]]] = [(r"/predict", Predict)]
