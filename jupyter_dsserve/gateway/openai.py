"""``/v1``: completions, chat and models as OpenAI's clients expect them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from tornado.web import HTTPError

from jupyter_dsserve.gateway.bodies import ChatBody, CompletionBody
from jupyter_dsserve.gateway.generate import collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import DSServeError, NotFound, Unauthorized
from jupyter_dsserve.protocol.request import Chunk, Usage

Json = dict[str, Any]


class OpenAIHandler(Handler):
    """Errors in OpenAI's shape."""

    def error_body(self, error: DSServeError) -> Json:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        # OpenAI knows models only: an unknown deployment or version is an unknown model.
        param = "model" if isinstance(error, NotFound) and error.param else error.param
        return {"error": {"message": error.message, "type": kind, "param": param, "code": _code(error)}}


class Completions(OpenAIHandler):
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(CompletionBody)
        request = body.request()
        frame = _Frame(request.id, "text_completion", body.model)
        chunks = start(self, body.model, request, body.user or "")
        if body.stream:
            await _stream(self, chunks, frame, _text_choice, body.include_usage)
        else:
            await _answer_whole(self, chunks, frame, _text_choice)


class ChatCompletions(OpenAIHandler):
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(ChatBody)
        request = body.request()
        frame = _Frame(request.id, "chat.completion.chunk" if body.stream else "chat.completion", body.model)
        chunks = start(self, body.model, request, body.user or "")
        if body.stream:
            await _stream(self, chunks, frame, _delta_choice, body.include_usage, opening=_ROLE)
        else:
            await _answer_whole(self, chunks, frame, _message_choice)


class Models(OpenAIHandler):
    """The deployments that can answer."""

    def get(self) -> None:
        models = [_model(d.name) for d in self.fleet.status() if self.fleet.deployment(d.name).ready]
        self.answer({"object": "list", "data": models})


class OneModel(OpenAIHandler):
    """A deployment that can answer, or a pinned version."""

    def get(self, name: str) -> None:
        deployment, _, version = name.partition("@")
        ready = self.fleet.deployment(deployment).ready
        if version not in ready if version else not ready:
            raise NotFound(f"model {name!r} has no READY version: load one", param="model")
        self.answer(_model(name))


class UnknownOpenAIPath(OpenAIHandler):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What surrounds each piece of one answer."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: list[Json], usage: Usage | None) -> Json:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": _usage(usage),
        }


Choice = Callable[[Chunk], Json]

_ROLE: Json = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def _text_choice(chunk: Chunk) -> Json:
    return {"index": 0, "text": chunk.text, "logprobs": None, "finish_reason": chunk.finish_reason}


def _message_choice(chunk: Chunk) -> Json:
    message = {"role": "assistant", "content": chunk.text, "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": chunk.finish_reason}


def _delta_choice(chunk: Chunk) -> Json:
    delta = {"content": chunk.text} if chunk.text else {}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": chunk.finish_reason}


async def _answer_whole(
    handler: OpenAIHandler, chunks: AsyncGenerator[Chunk, None], frame: _Frame, choice: Choice
) -> None:
    whole = await collect(chunks)
    handler.answer(frame.around([choice(whole)], whole.usage))


async def _stream(
    handler: OpenAIHandler,
    chunks: AsyncGenerator[Chunk, None],
    frame: _Frame,
    choice: Choice,
    include_usage: bool,
    opening: Json | None = None,
) -> None:
    """Server-sent chunks, then ``[DONE]``. An error before the first chunk is an ordinary one, later it is an event."""
    async with aclosing(chunks):
        chunk = await anext(chunks)
        if chunk.error and not chunk.text:
            raise chunk.error
        _begin_stream(handler)
        if opening:
            _send(handler, frame.around([opening], None))
        while True:
            if chunk.text or (chunk.finish_reason and not chunk.error):  # a token may complete no character
                whole = replace(chunk, finish_reason=None) if chunk.error else chunk
                _send(handler, frame.around([choice(whole)], None))
            if chunk.error:
                _send(handler, handler.error_body(chunk.error))
            if chunk.finish_reason:
                break
            await handler.flush()
            chunk = await anext(chunks)
    if include_usage and chunk.usage:
        _send(handler, frame.around([], chunk.usage))
    handler.finish("data: [DONE]\n\n")


def _begin_stream(handler: Handler) -> None:
    handler.set_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.set_header("Cache-Control", "no-cache")
    # Each token is a small packet of its own: it must not wait for the acknowledgement of the one before.
    connection: Any = handler.request.connection
    connection.stream.set_nodelay(True)


def _send(handler: Handler, data: Json) -> None:
    handler.write(f"data: {json.dumps(data, separators=(',', ':'))}\n\n")


def _usage(usage: Usage | None) -> Json | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "jupyter_dsserve"}


def _code(error: DSServeError) -> str | None:
    if isinstance(error, Unauthorized):
        return "invalid_api_key"
    if isinstance(error, NotFound):
        return "model_not_found" if error.param else "unknown_url"
    return None


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v1/completions", Completions),
    (r"/v1/chat/completions", ChatCompletions),
    (r"/v1/models", Models),
    (r"/v1/models/([^/]+)", OneModel),
    (r"/v1/.*", UnknownOpenAIPath),
]
