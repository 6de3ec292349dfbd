"""``/v1/responses`` as OpenAI's clients expect it, without a store: items in, items out, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

from jupyter_dsserve.fleet.road import Numbered
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import Priority, new_id
from jupyter_dsserve.gateway.choices import Json, chat_logprobs
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.openai import OpenAIHandler
from jupyter_dsserve.gateway.responses_bodies import ResponseBody
from jupyter_dsserve.gateway.sse import EventStream
from jupyter_dsserve.gateway.tool_calls import Piece
from jupyter_dsserve.gateway.tools import Reader, check_tools, readers
from jupyter_dsserve.protocol.errors import DSServeError, TooManyRequests
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Usage


class Responses(OpenAIHandler):
    @describes(
        "The next answer of a conversation, as items.",
        {200: answers.ResponseAnswer},
        events=dict[str, Any],
        body=ResponseBody,
        example={"model": "demo", "input": "hello", "max_output_tokens": 16},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(ResponseBody)
        request = body.request()
        answering = await start(self, body.model, [request], body.user, check=check_tools(request.tools))
        told = Told(request.id, body, readers(answering, request.tools)())
        if body.stream:
            await _stream(self, answering.chunks, told)
            return
        (whole,) = await collect(answering.chunks)
        for _ in told.take(whole):
            pass
        self.answer(told.response(told.status))


async def _stream(handler: OpenAIHandler, numbered: Numbered, told: Told) -> None:
    """An error before the first chunk is an ordinary one, later it is the event ``response.failed``."""
    number = 0
    events = EventStream(handler)

    def send(event: Json) -> None:
        nonlocal number
        events.send({**event, "sequence_number": number}, event["type"])
        number += 1

    has_begun = False
    async with aclosing(numbered):
        async for _, chunk in numbered:
            if not has_begun:
                if chunk.error and not chunk.text:
                    raise chunk.error
                for kind in ("response.created", "response.in_progress"):
                    send({"type": kind, "response": told.response("in_progress")})
                has_begun = True
            for event in told.take(chunk):
                send(event)
            if chunk.error:
                handler.fault = chunk.error
            if chunk.finish_reason:
                break
            await events.flush()
    send({"type": f"response.{told.status}", "response": told.response(told.status)})
    events.finish()


class Told:
    """What an answer has told so far: the items that are over, the one that is open, and the usage.

    ``status`` is OpenAI's, once the last chunk was taken. A message is an item, and so is each call of a function.
    """

    def __init__(self, id: str, body: ResponseBody, reader: Reader, clock: Callable[[], float] = time.time) -> None:
        self.status = "in_progress"
        self._id = id
        self._body = body
        self._reader = reader
        self._clock = clock
        self._created_at = int(clock())
        self._output: list[Json] = []
        self._open: Json | None = None
        self._text = ""  # of the open item: what is said, or the arguments
        self._logprobs: list[Json] = []  # of the open message
        self._usage: Usage | None = None
        self._error: DSServeError | None = None

    def take(self, chunk: Chunk) -> Iterator[Json]:
        """The events that ``chunk`` tells of, in OpenAI's order, without their numbers."""
        logprobs = (chat_logprobs(chunk) or {}).get("content", [])
        for piece in self._reader.read(chunk):
            if piece.call >= 0:
                yield from self._take_call(piece)
            else:
                yield from self._say(piece.text, logprobs)
                logprobs = []
        if chunk.finish_reason is None:
            return
        self._usage, self._error = chunk.usage, chunk.error
        self.status = "failed" if chunk.error else "completed"
        if chunk.finish_reason is FinishReason.LENGTH:
            self.status = "incomplete"
        if not self._open and not self._output:
            yield from self._say("", logprobs)
        yield from self._close("completed" if self.status == "completed" else "incomplete")

    def response(self, status: str) -> Json:
        body = self._body
        now = int(self._clock()) if status == "completed" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": now,
            "status": status,
            "background": False,
            "error": {"code": _code(self._error), "message": self._error.message} if self._error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": body.model,
            "output": list(self._output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": body.format.told(), "verbosity": "medium"},
            "tool_choice": self._choice(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": _usage(self._usage) if self._usage else None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def _choice(self) -> Any:
        choice = self._body.tool_choice
        return choice if isinstance(choice, str) else choice.model_dump() if choice else "auto"

    # ---- items

    def _say(self, text: str, logprobs: list[Json]) -> Iterator[Json]:
        if self._open is None or self._open["type"] != "message":
            yield from self._begin({"id": new_id("msg"), "type": "message", "role": "assistant", "content": []})
            self._logprobs = []
            yield self._event("content_part.added", content_index=0, part=_part("", []))
            self._text = ""
        self._text += text
        self._logprobs += logprobs
        if text:
            yield self._event("output_text.delta", content_index=0, delta=text, logprobs=_briefly(logprobs))

    def _take_call(self, piece: Piece) -> Iterator[Json]:
        if piece.name:
            call = {"id": new_id("fc"), "type": "function_call", "call_id": self._reader.new_id(), "name": piece.name}
            yield from self._begin({**call, "arguments": ""})
            self._text = ""
        else:
            self._text += piece.arguments
            yield self._event("function_call_arguments.delta", delta=piece.arguments)

    def _begin(self, item: Json) -> Iterator[Json]:
        yield from self._close("completed")
        self._open = {**item, "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": len(self._output), "item": self._open}

    def _close(self, status: str) -> Iterator[Json]:
        if self._open is None:
            return
        if self._open["type"] == "message":
            part = _part(self._text, self._logprobs)
            told = _briefly(self._logprobs)
            yield self._event("output_text.done", content_index=0, text=self._text, logprobs=told)
            yield self._event("content_part.done", content_index=0, part=part)
            item = {**self._open, "status": status, "content": [part]}
        else:
            yield self._event("function_call_arguments.done", arguments=self._text)
            item = {**self._open, "status": status, "arguments": self._text}
        yield {"type": "response.output_item.done", "output_index": len(self._output), "item": item}
        self._output.append(item)
        self._open = None

    def _event(self, kind: str, **more: Any) -> Json:
        assert self._open
        place = {"item_id": self._open["id"], "output_index": len(self._output)}
        return {"type": f"response.{kind}", **place, **more}


def _part(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _briefly(logprobs: list[Json]) -> list[Json]:
    """As events have them: without the bytes."""
    return [
        {
            "token": one["token"],
            "logprob": one["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in one["top_logprobs"]],
        }
        for one in logprobs
    ]


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _code(error: DSServeError) -> str:
    """Of OpenAI's few."""
    if isinstance(error, TooManyRequests):
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"


ROUTES: list[tuple[str, type[Handler]]] = [(r"/v1/responses", Responses)]
