"""Answers against the types of the `openai` package, more strictly than the package looks at them itself.

Its models take any field and miss none. Here an unknown field, a missing one, and one that OpenAI always sends although
its type lets it be absent are found, at any depth, each named by its path.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from openai import BaseModel
from openai.types import Completion, CompletionUsage, CreateEmbeddingResponse, Model
from openai.types import completion_choice as text_choice
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, chat_completion_chunk
from openai.types.chat import chat_completion as whole_chat
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from openai.types.responses import Response, ResponseErrorEvent, ResponseFunctionToolCall, ResponseOutputText

# What OpenAI sends in each such object, besides what its types require.
ALWAYS: Mapping[type[BaseModel], set[str]] = {
    Completion: {"system_fingerprint"},
    text_choice.CompletionChoice: {"logprobs"},
    ChatCompletion: {"usage", "service_tier", "system_fingerprint"},
    whole_chat.Choice: {"logprobs"},
    ChatCompletionMessage: {"content", "refusal", "annotations"},
    ChatCompletionChunk: {"service_tier", "system_fingerprint"},
    chat_completion_chunk.Choice: {"logprobs", "finish_reason"},
    CompletionUsage: {"completion_tokens_details", "prompt_tokens_details"},
    CompletionTokensDetails: {
        "reasoning_tokens",
        "audio_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    },
    PromptTokensDetails: {"cached_tokens", "audio_tokens"},
    CreateEmbeddingResponse: set(),
    Model: set(),
    Response: {
        "background",
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "previous_response_id",
        "prompt_cache_key",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "status",
        "temperature",
        "text",
        "top_logprobs",
        "top_p",
        "truncation",
        "usage",
        "user",
    },
    ResponseErrorEvent: {"code", "param"},
    ResponseFunctionToolCall: {"id", "status"},
    ResponseOutputText: {"logprobs"},
}
# OpenAI sends null for the first token of an echoed prompt, which its own types do not know of.
MAY_BE_NULL = {"token_logprobs", "top_logprobs"}
_ERROR = {"message": str, "type": str, "param": str | None, "code": str | None}

T = TypeVar("T", bound=BaseModel)


def valid(kind: type[T], value: Any) -> T:
    """``value`` as ``kind``. Asserts that it is one to the last field."""
    found = list(_faults(kind, value, kind.__name__))
    assert not found, "\n".join(found)
    return kind.construct(**value)


def valid_as(kind: Any, value: Any) -> None:
    """As `valid`, for a union of models."""
    found = list(_faults(kind, value, "answer"))
    assert not found, "\n".join(found)


def valid_error(value: Any) -> Mapping[str, Any]:
    """The error in a body of OpenAI's shape."""
    assert set(value) == {"error"}, value
    error: Mapping[str, Any] = value["error"]
    assert set(error) == set(_ERROR), error
    for name, kind in _ERROR.items():
        assert isinstance(error[name], kind), f"{name} is {error[name]!r}"
    return error


def _faults(kind: Any, value: Any, at: str) -> Iterator[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _faults(inner[0], value, at)
    elif origin in (Union, types.UnionType):
        each = [list(_faults(one, value, at)) for one in inner]
        if [] not in each:  # of several kinds the one that fits best says what is wrong
            yield from min((e for e in each if not e[-1].startswith(f"kind of {at}:")), key=len, default=each[0])
    elif origin is Literal:
        if value not in inner:
            yield f"kind of {at}: {value!r} is none of {inner}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"kind of {at}: {value!r} is no list"
            return
        may_be_null = at.rpartition(".")[2] in MAY_BE_NULL
        for number, one in enumerate(value):
            if one is not None or not may_be_null:
                yield from _faults(inner[0], one, f"{at}[{number}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"kind of {at}: {value!r} is no object"
            return
        for name, one in value.items():
            yield from _faults(inner[1], one, f"{at}[{name!r}]")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _faults_of_model(kind, value, at)
    elif kind is type(None):
        if value is not None:
            yield f"kind of {at}: {value!r} is not null"
    elif kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            yield f"kind of {at}: {value!r} is no number"
    elif kind not in (object, Any) and type(value) is not kind:
        yield f"kind of {at}: {value!r} is no {kind}"


def _faults_of_model(kind: type[BaseModel], value: Any, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"kind of {at}: {value!r} is no object"
        return
    known = {field.alias or name: field for name, field in kind.model_fields.items()}
    needed = {name for name, field in known.items() if field.is_required()} | ALWAYS.get(kind, set())
    for name in sorted(needed - value.keys()):
        yield f"{at}.{name} is missing"
    for name in sorted(value.keys() - known.keys()):
        yield f"{at}.{name} is unknown: {value[name]!r}"
    for name in known.keys() & value.keys():
        is_of_kind = list(_faults(known[name].annotation, value[name], f"{at}.{name}"))
        # In a union the model whose "type" it is not is no candidate at all.
        if is_of_kind and get_origin(known[name].annotation) is Literal:
            yield f"kind of {at}: its {name} is {value[name]!r}"
            return
        yield from is_of_kind
