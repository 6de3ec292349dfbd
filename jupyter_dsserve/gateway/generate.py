"""From requests to the fleet's chunks: what every generating route does, and ``/predict``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timezone

from pydantic import TypeAdapter, ValidationError

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.road import Call, Numbered
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.access import log_prompts
from jupyter_dsserve.gateway.answers import Predicted
from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.bodies import PredictBody, Priority
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest
from jupyter_dsserve.protocol.records import Scope
from jupyter_dsserve.protocol.request import Chunk, Request
from jupyter_dsserve.protocol.spec import Task

# Where each task is asked.
ROUTES_OF: Mapping[Task, str] = {
    "generate": "/v1/completions, /v1/chat/completions or /predict",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "tensor": "/v2/models/NAME/infer",
}

# Of a request, for routes whose body has no field for it.
PRIORITY_HEADER = "X-DSServe-Priority"
# The label of the caller's key, for the rules of a policy. Ours alone: what a caller sends under this name is dropped.
KEY_LABEL_HEADER = "X-DSServe-Key-Label"


async def start(
    asker: Asker,
    model: str,
    requests: Sequence[Request],
    user: str | None = None,
    task: Task = "generate",
    check: Callable[[Version], None] = lambda _version: None,
) -> Answering:
    """The answers as they begin, all from one version; the same ``user`` gets the same one while weights stand.

    Names the first request in ``X-Request-Id``, the version in ``X-DSServe-Version``, and in ``X-DSServe-Degraded``
    whoever stands in for it. ``check`` may refuse it. Raises what `Fleet.answer` and the `Grant` of the caller's key
    do, and `InvalidRequest` if the version's task is another than ``task``.
    """

    def checked(version: Version) -> None:
        asker.keep_header("X-DSServe-Version", version.name)
        check_task(version, task)
        check(version)

    asker.begin_call(model, requests[0], task)
    if asker.context.log_prompts:
        log_prompts(requests)
    headers = asker.sent_headers
    if (priority := headers.get(PRIORITY_HEADER)) is not None:
        requests = [replace(request, priority=_priority(priority)) for request in requests]
    headers[KEY_LABEL_HEADER] = asker.grant.key.label if asker.grant else ""
    if grant := asker.grant:
        asker.check_model(model)
        requests = grant.limited(requests)
        asker.reservation = grant.admit(requests, time.monotonic())
        if shared := asker.context.shared_limits:
            await shared.take(asker.reservation)
        asker.reservation.begin()
    try:
        answering = await asker.fleet.answer(Call(model, user or "", headers, asker.trace), requests, checked)
    except DSServeError:
        if asker.reservation:
            asker.reservation.refused()
        raise
    if asker.reservation:
        answering = replace(answering, chunks=asker.reservation.counted(answering.chunks))
    if answering.degraded:
        asker.keep_header("X-DSServe-Degraded", answering.degraded)
    if answering.version is None:
        asker.drop_header("X-DSServe-Version")
    return answering


def check_task(version: Version, task: Task) -> None:
    """Raises `InvalidRequest`, naming where to ask, if the version's task is another than ``task``."""
    own = version.spec.task
    if own != task:
        raise InvalidRequest(
            f"{version.id} has the task {own!r}, and this route is for {task!r}: ask it at {ROUTES_OF[own]}",
            param="model",
        )


def _priority(text: str) -> int:
    """Raises `InvalidRequest` for what is none; the same range as in a body."""
    try:
        return TypeAdapter(Priority).validate_strings(text)
    except ValidationError:
        raise InvalidRequest(
            f"{PRIORITY_HEADER} is {text!r}: give a whole number from -100 to 100, lower goes first",
            param=PRIORITY_HEADER,
        ) from None


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
    scope: Scope = "infer"

    @describes(
        "Go on with a text: greedy, max_length new tokens.",
        {200: Predicted},
        body=PredictBody,
        example={"model": "demo", "input_text": "def f(", "max_length": 16},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(PredictBody)
        started = time.monotonic()
        answering = await start(self, body.model, [body.request()])
        (whole,) = await collect(answering.chunks)
        predicted: Predicted = {
            "result": whole.text,
            "latency_ms": round(1000 * (time.monotonic() - started), 3),
            "timestamp": datetime.now(timezone.utc).isoformat(),
            "version": answering.version.name if answering.version else "",
        }
        self.answer(predicted)


ROUTES: list[tuple[str, type[Handler]]] = [(r"/predict", Predict)]
