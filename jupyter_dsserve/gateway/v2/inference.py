"""``infer`` for every task, and Triton's ``generate`` and ``generate_stream``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import Priority
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.sse import EventStream
from jupyter_dsserve.gateway.v2 import mapping, shared_memory
from jupyter_dsserve.gateway.v2.handlers import MODEL, VERSION, OIPHandler
from jupyter_dsserve.gateway.v2.mapping import TEXT_INPUT, Inference
from jupyter_dsserve.gateway.v2.models import task_of
from jupyter_dsserve.gateway.v2.peers import peer_of
from jupyter_dsserve.gateway.v2.shapes import GenerateBody, Generated
from jupyter_dsserve.gateway.v2.shared_memory import aside
from jupyter_dsserve.gateway.v2.wire import HEADER_LENGTH, InferBody, answered, read_infer, read_tensors
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk
from jupyter_dsserve.protocol.tensors import BYTES, ModelInfo, Tensor

Json = dict[str, Any]


class _Asking(OIPHandler):
    """What calls of models share."""

    async def ask(self, name: str, version: str, inference: Inference) -> tuple[Answering, ModelInfo]:
        """The answers as they begin, and what the version that gives them says of itself."""
        infos: list[ModelInfo] = []

        def chosen(version: Version) -> None:
            mapping.check_outputs(inference, version.info)
            infos.append(version.info)

        model = f"{name}@{version}" if version else name
        answering = await start(self, model, inference.requests, task=inference.task, check=chosen)
        return answering, infos[-1] if infos else ModelInfo()


class Infer(_Asking):
    """Bodies are JSON, with raw tensors after it or without; gzip and deflate are taken."""

    @describes(
        "Run a model on tensors.",
        {200: answers.Inferred},
        body=InferBody,
        example={"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.0]}]},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self, name: str, version: str = "") -> None:
        self.check_model(name)
        body, rest = read_infer(await self.raw_body(), self.request.headers.get(HEADER_LENGTH))
        is_binary = body.is_binary
        places = [place for each in (*body.inputs, *(body.outputs or ())) if (place := each.place)]
        connection: Any = self.request.connection
        shared_memory.check(self, peer_of(connection.stream.socket), places)
        tensors = await aside(places, read_tensors, body, rest, partial(shared_memory.read, self))
        task = task_of(self.fleet, name, version)
        inference = mapping.requests(task, tensors, body.own_parameters, body.wanted)
        if inference.is_stream:
            raise InvalidRequest("stream is true, and this route answers once: ask generate_stream", param="stream")
        answering, info = await self.ask(name, version, inference)
        found = mapping.outputs(inference, await collect(answering.chunks), info)
        head = {
            "model_name": name,
            "model_version": answering.version.name if answering.version else "",
            "id": body.id or inference.requests[0].id,
        }
        answer, header_length = await aside(
            places, answered, head, found, body, is_binary, partial(shared_memory.write, self)
        )
        if header_length is not None:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header(HEADER_LENGTH, str(header_length))
        self.finish(answer)


class Generate(_Asking):
    """Triton's generate extension, for the task ``generate``."""

    @describes(
        "Continue a text.",
        {200: Generated},
        body=GenerateBody,
        example={"text_input": "Once", "parameters": {"max_tokens": 8, "temperature": 0}},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self, name: str, version: str = "") -> None:
        inference = self.inference(name, stream=False)
        if inference.is_stream:
            raise InvalidRequest("stream is true, and this route answers once: ask generate_stream", param="stream")
        answering, _ = await self.ask(name, version, inference)
        (whole,) = await collect(answering.chunks)
        self.answer(_teller(name, answering, inference)(whole))

    def inference(self, name: str, stream: bool) -> Inference:
        """``stream`` is what holds unless the body says otherwise."""
        self.check_model(name)
        body = self.body(GenerateBody)
        beside = body.model_extra or {}
        if twice := beside.keys() & (body.parameters or {}).keys():
            raise InvalidRequest(f"{min(twice)!r} stands in parameters and beside it: send it once", param=min(twice))
        text = Tensor.of_bytes(TEXT_INPUT, [body.text_input.encode()])
        return mapping.requests("generate", [text], {"stream": stream} | beside | (body.parameters or {}))


class GenerateStream(Generate):
    """Server-sent events. With ``stream`` false the whole answer is one."""

    @describes(
        "Continue a text, told as it comes.",
        {200: Generated},
        body=GenerateBody,
        example={"text_input": "Once", "parameters": {"max_tokens": 8, "stream": True}},
        events=Generated,
        media="text/event-stream",
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self, name: str, version: str = "") -> None:
        inference = self.inference(name, stream=True)
        answering, _ = await self.ask(name, version, inference)
        tell = _teller(name, answering, inference)
        events = EventStream(self)
        if not inference.is_stream:
            (whole,) = await collect(answering.chunks)
            events.send(tell(whole))
            events.finish()
            return
        has_begun = False
        async with aclosing(answering.chunks) as chunks:
            async for _, chunk in chunks:
                if chunk.error and not chunk.text and not has_begun:
                    raise chunk.error
                has_begun = True
                # A token may complete no character: nothing to tell then.
                if chunk.text or chunk.logprobs or (chunk.finish_reason and not chunk.error):
                    events.send(tell(chunk))
                if chunk.error:
                    self.fault = chunk.error
                    events.send(self.error_body(chunk.error))
                    break
                if not chunk.finish_reason:
                    await events.flush()
        events.finish()


def _teller(name: str, answering: Answering, inference: Inference) -> Callable[[Chunk], Json]:
    """What makes an answer, or a piece of one, Triton's JSON: each output by its name."""
    head = {"model_name": name, "model_version": answering.version.name if answering.version else ""}

    def tell(chunk: Chunk) -> Json:
        return head | {each.name: _value(each) for each in mapping.outputs(inference, [chunk], ModelInfo())}

    return tell


def _value(tensor: Tensor) -> Any:
    found = [each.decode() for each in tensor.elements()] if tensor.datatype == BYTES else tensor.array().tolist()
    return found[0]


ROUTES: list[tuple[str, type[Handler]]] = [
    (f"{model}/{verb}", handler)
    for verb, handler in (("infer", Infer), ("generate", Generate), ("generate_stream", GenerateStream))
    for model in (MODEL, VERSION)
]
