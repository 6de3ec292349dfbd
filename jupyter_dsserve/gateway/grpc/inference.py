"""``dsserve.v1.Inference``: what ``POST /predict`` does, at once, in pieces, and many on one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timezone

from jupyter_dsserve.gateway.bodies import PredictBody, validated
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.generate import collect
from jupyter_dsserve.gateway.grpc.call import (
    GrpcAsker,
    ServicerContext,
    asked,
    calling,
    code_of,
    each,
    number_of,
)
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, DSServeError, InvalidRequest
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceServicer
from jupyter_dsserve.protocol.request import Request


class Inference(InferenceServicer):
    def __init__(self, context: Context) -> None:
        self._context = context

    async def Predict(  # noqa: N802  (the names are the .proto's)
        self, request: pb.InferenceRequest, call: ServicerContext
    ) -> pb.InferenceResponse | None:
        async with asked(self._context, call, "Inference/Predict") as asker:
            return await _predict(asker, request)
        return None

    async def PredictServerStream(self, request: pb.InferenceRequest, call: ServicerContext) -> None:  # noqa: N802
        async with asked(self._context, call, "Inference/PredictServerStream") as asker:
            answering = await asker.ask(request.model, [_request_of(request)])
            version = answering.version.name if answering.version else ""
            async with aclosing(answering.chunks) as chunks:
                async for _, chunk in chunks:
                    if chunk.error and not chunk.text:
                        raise chunk.error
                    reason = chunk.finish_reason.value if chunk.finish_reason and not chunk.error else ""
                    if chunk.text or reason:  # a token may complete no character
                        await asker.tell(pb.InferencePiece(text=chunk.text, finish_reason=reason, version=version))
                    if chunk.error:
                        raise chunk.error

    async def PredictStream(  # noqa: N802
        self, requests: AsyncIterator[pb.StreamRequest], call: ServicerContext
    ) -> None:
        running: set[str] = set()
        writing = asyncio.Lock()  # a call takes one message at a time

        async def answer(request: pb.StreamRequest) -> None:
            answered = await _answered(stream, request, running)
            async with writing:
                await stream.tell(answered)

        async with asked(self._context, call, "Inference/PredictStream") as stream:
            await each(requests, answer)


async def _answered(stream: GrpcAsker, request: pb.StreamRequest, running: set[str]) -> pb.StreamResponse:
    """The answer, or why there is none. ``running``: the ids of those that run."""
    try:
        if not request.id:
            raise InvalidRequest("the request has no id: give each on the stream its own", param="id")
        if request.id in running:
            raise Conflict(f"a request {request.id!r} runs on this stream already: give each one its own id")
        running.add(request.id)
        try:
            async with calling(stream.again()) as asker:
                return pb.StreamResponse(id=request.id, response=await _predict(asker, request.request))
        finally:
            running.discard(request.id)
    except DSServeError as fault:
        error = pb.Error(code=number_of(code_of(fault)), message=fault.message)
        return pb.StreamResponse(id=request.id, error=error)


async def _predict(asker: GrpcAsker, request: pb.InferenceRequest) -> pb.InferenceResponse:
    started = time.monotonic()
    answering = await asker.ask(request.model, [_request_of(request)])
    (whole,) = await collect(answering.chunks)
    return pb.InferenceResponse(
        result=whole.text,
        latency_ms=round(1000 * (time.monotonic() - started), 3),
        timestamp=datetime.now(timezone.utc).isoformat(),
        version=answering.version.name if answering.version else "",
    )


def _request_of(request: pb.InferenceRequest) -> Request:
    """Raises `InvalidRequest` for what ``/predict`` does not take either."""
    given = {"max_length": request.max_length} if request.HasField("max_length") else {}
    return validated(PredictBody, {"model": request.model, "input_text": request.input_text, **given}).request()
