"""``/v1``: completions, chat and models as OpenAI's clients expect them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tornado.web import HTTPError

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.road import Numbered
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import Priority
from jupyter_dsserve.gateway.choices import ChatChoices, Json, text_choice, text_choices
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.openai_bodies import ChatBody, CompletionBody, Requests
from jupyter_dsserve.gateway.sse import EventStream
from jupyter_dsserve.gateway.tools import check_tools, readers
from jupyter_dsserve.protocol.errors import DSServeError, NotFound, TooManyRequests, Unauthorized
from jupyter_dsserve.protocol.records import Scope
from jupyter_dsserve.protocol.request import Chunk, Usage
from jupyter_dsserve.protocol.spec import WorkerSpec


class OpenAIHandler(Handler):
    """Errors in OpenAI's shape."""

    scope: Scope = "infer"
    error_type = answers.OpenAIFaultAnswer

    def error_body(self, error: DSServeError) -> Json:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        if isinstance(error, TooManyRequests):
            kind = "requests"
        # OpenAI knows models only: an unknown deployment or version is an unknown model.
        param = "model" if isinstance(error, NotFound) and error.param else error.param
        return {"error": {"message": error.message, "type": kind, "param": param, "code": _code(error)}}


class Completions(OpenAIHandler):
    @describes(
        "Go on with a text, or with several.",
        {200: answers.Completion},
        events=answers.Completion,
        body=CompletionBody,
        example={"model": "demo", "prompt": "def f(", "max_tokens": 16},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(CompletionBody)
        requests = body.requests()
        answering = await start(self, body.model, requests.all, body.user)
        around = {"model": body.model, "system_fingerprint": fingerprint(answering)}
        call = _Call(requests, "text_completion", around)
        if body.stream:
            await _stream(self, answering.chunks, call, text_choices, body.include_usage)
        else:
            await _answer_whole(self, answering.chunks, call, text_choice)


class ChatCompletions(OpenAIHandler):
    @describes(
        "The next message of a chat.",
        {200: answers.ChatCompletion},
        events=answers.ChatChunk,
        body=ChatBody,
        example={"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(ChatBody)
        requests = body.requests()
        tools = requests.all[0].tools
        answering = await start(self, body.model, requests.all, body.user, check=check_tools(tools))
        choices = ChatChoices(readers(answering, tools))
        around = {"model": body.model, "service_tier": "default", "system_fingerprint": fingerprint(answering)}
        if body.stream:
            call = _Call(requests, "chat.completion.chunk", around)
            await _stream(self, answering.chunks, call, choices.deltas, body.include_usage, opening=choices.opening)
        else:
            await _answer_whole(self, answering.chunks, _Call(requests, "chat.completion", around), choices.whole)


class Models(OpenAIHandler):
    """The deployments that can answer."""

    @describes("The models there are.", {200: answers.OpenAIModels})
    def get(self) -> None:
        names = [d.name for d in self.fleet.status() if self.fleet.deployment(d.name).ready and self.may_ask(d.name)]
        models = [_model(name, self.fleet.deployment(name).versions.values()) for name in names]
        self.answer({"object": "list", "data": models})


class OneModel(OpenAIHandler):
    """A deployment that can answer, or a pinned version."""

    @describes("One model.", {200: answers.OpenAIModel}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.check_model(name)
        deployment, _, version = name.partition("@")
        known = self.fleet.deployment(deployment)
        ready = known.ready
        if version not in ready if version else not ready:
            raise NotFound(f"model {name!r} has no READY version: load one", param="model")
        self.answer(_model(name, [known.versions[version]] if version else known.versions.values()))


class UnknownOpenAIPath(OpenAIHandler):
    def prepare(self) -> None:
        super().prepare()
        self.refuse(HTTPError(404))


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: what it asked, and what surrounds each piece of its answer."""

    requests: Requests
    object: str
    shared: Mapping[str, Any]
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: list[Json]) -> Json:
        head = {"id": self.requests.id, "object": self.object, "created": self.created}
        return {**head, **self.shared, "choices": choices}

    def usage(self, usages: Mapping[int, Usage]) -> Json:
        """Of all choices together; a prompt counts once, however many choices it has."""
        prompts = sum(u.prompt_tokens for index, u in usages.items() if index % self.requests.num_choices == 0)
        completions = sum(u.completion_tokens for u in usages.values())
        # Choices of one prompt find it in the cache after the first: what counts is what the first did not compute.
        cached = sum(u.cached_tokens for index, u in usages.items() if index % self.requests.num_choices == 0)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completions,
            "total_tokens": prompts + completions,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


async def _answer_whole(
    handler: OpenAIHandler, numbered: Numbered, call: _Call, choice: Callable[[int, Chunk], Json]
) -> None:
    wholes = dict(enumerate(await collect(numbered)))
    usage = call.usage({index: whole.usage for index, whole in wholes.items() if whole.usage})
    choices = [choice(index, whole) for index, whole in wholes.items()]
    handler.answer(call.around(choices) | {"usage": usage})


async def _stream(
    handler: OpenAIHandler,
    numbered: Numbered,
    call: _Call,
    choices: Callable[[int, Chunk], list[Json]],
    include_usage: bool,
    opening: Callable[[int], Json] | None = None,
) -> None:
    """Server-sent chunks, then ``[DONE]``. An error before the first chunk is an ordinary one, later it is an event.

    An error in one choice ends them all. With ``include_usage`` each chunk has a ``usage``, null but for the last.
    """
    usages: dict[int, Usage] = {}
    no_usage = {"usage": None} if include_usage else {}
    events = EventStream(handler)
    has_begun = False
    async with aclosing(numbered):
        async for index, chunk in numbered:
            if not has_begun:
                if chunk.error and not chunk.text:
                    raise chunk.error
                if opening:
                    for each in range(len(call.requests.all)):
                        events.send(call.around([opening(each)]) | no_usage)
                has_begun = True
            for choice in choices(index, chunk):
                events.send(call.around([choice]) | no_usage)
            if chunk.error:
                handler.fault = chunk.error
                events.send(handler.error_body(chunk.error))
                break
            if chunk.usage:
                usages[index] = chunk.usage
            if not chunk.finish_reason:
                await events.flush()
    if include_usage and len(usages) == len(call.requests.all):
        events.send(call.around([]) | {"usage": call.usage(usages)})
    events.send_raw(b"data: [DONE]\n\n")
    events.finish()


def fingerprint(answering: Answering) -> str | None:
    """The same for what runs with the same settings; None if the answer is the policy's own text."""
    return _fingerprint(answering.version.spec) if answering.version else None


@lru_cache(maxsize=1000)  # every answer needs it
def _fingerprint(spec: WorkerSpec) -> str:
    return f"fp_{spec.digest[:10]}"


def _model(name: str, versions: Iterable[Version]) -> Json:
    created = int(min(version.created_at for version in versions))
    return {"id": name, "object": "model", "created": created, "owned_by": "jupyter_dsserve"}


def _code(error: DSServeError) -> str | None:
    if isinstance(error, Unauthorized):
        return "invalid_api_key"
    if isinstance(error, TooManyRequests):
        return "rate_limit_exceeded"
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
