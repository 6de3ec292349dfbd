"""Functions that a model calls: enforced where the caller wants a call, in the template's own format."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.road.clients.conftest import TIME, WEATHER
from tests.strict import valid
from tests.support import Caller

pytestmark = pytest.mark.asyncio(loop_scope="package")
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How is it?"}],
    "tools": [WEATHER, TIME],
    "max_tokens": 120,
    "seed": 5,
    "parallel_tool_calls": False,
}
TOOLS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
NAMED = {"type": "function", "function": {"name": "get_time"}}


def allowed(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def check(name: str, arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), TOOLS[name])


@pytest.mark.parametrize("model", ["hermes", "mistral", "demo"])
@pytest.mark.parametrize(
    "choice", ["required", NAMED, allowed("required", NAMED)], ids=["required", "named", "allowed"]
)
async def test_a_call_that_must_come_comes_and_is_valid(caller: Caller, model: str, choice: Any) -> None:
    asked = {**ASK, "model": model, "tool_choice": choice, "n": 3}
    answer = (await caller.post("/v1/chat/completions", json=asked)).json()
    choices = valid(ChatCompletion, answer).choices
    ids = set()
    for one in choices:
        assert one.finish_reason == "tool_calls"
        assert one.message.content is None
        (call,) = one.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name in (TOOLS if choice == "required" else ["get_time"])
        check(call.function.name, call.function.arguments)
        assert call.id.isalnum() and len(call.id) == 9 if model == "mistral" else call.id.startswith("call_")
        ids.add(call.id)
    assert len(ids) == 3


@pytest.mark.parametrize("model", ["hermes", "mistral"])
async def test_calls_stream_as_openai_sends_them(caller: Caller, model: str) -> None:
    asked = {**ASK, "model": model, "tool_choice": "required", "stream": True, "logprobs": True}
    answer = await caller.post("/v1/chat/completions", json=asked)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    for chunk in chunks:
        valid(ChatCompletionChunk, chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    told = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert told[0].keys() == {"index", "id", "type", "function"}
    assert told[0]["function"]["arguments"] == ""
    assert len(told) > 4, "arguments come piece by piece"
    for call in told[1:]:
        assert call.keys() == {"index", "function"}
        assert call["function"].keys() == {"arguments"}
    check(told[0]["function"]["name"], "".join(call["function"]["arguments"] for call in told))
    assert not any(delta.get("content") for delta in deltas)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]
    assert deltas[-1] == {}
    tokens = [one["token"] for c in chunks if (p := c["choices"][0]["logprobs"]) for one in p["content"]]
    assert "".join(tokens).startswith('<tool_call>\n{"name": "' if model == "hermes" else '[TOOL_CALLS][{"name": "')


async def test_several_calls_in_one_answer(client: AsyncOpenAI) -> None:
    """The model must go on after each: the end token is made unlikely."""
    asked = {**ASK, "parallel_tool_calls": True, "tools": [TIME], "tool_choice": "required"}
    bias = {"logit_bias": {"0": -100, "5": -100}}
    stream = await client.chat.completions.create(**asked, **bias, model="hermes", stream=True)  # type: ignore[call-overload]
    found: dict[int, str] = defaultdict(str)
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            found[call.index] += call.function.arguments
    assert len(found) > 2
    for arguments in list(found.values())[:-1]:  # the last is cut by max_tokens
        check("get_time", arguments)


async def test_a_call_and_its_result_go_back_through_the_template(client: AsyncOpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'}}
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What time?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12:00"}]},
    ]
    lengths = []
    for messages, tools in [(turns, [WEATHER, TIME]), (turns, openai.omit), (turns[:2], openai.omit)]:
        answer = await client.chat.completions.create(model="hermes", messages=messages, tools=tools, max_tokens=3)
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content is not None
        assert answer.usage
        lengths.append(answer.usage.prompt_tokens)
    assert lengths[0] > lengths[1] + 40 > lengths[2] + 60, lengths
    none = await client.chat.completions.create(
        model="hermes",
        messages=turns,
        tools=[WEATHER, TIME],
        tool_choice="none",
        max_tokens=3,  # type: ignore[list-item]
    )
    assert none.usage
    assert none.usage.prompt_tokens == lengths[1]


async def test_of_tools_that_may_be_called_the_model_is_told_and_of_all_where_one_must_be(client: AsyncOpenAI) -> None:
    lengths = []
    for tools, choice in [
        ([WEATHER, TIME], allowed("auto", NAMED)),
        ([TIME], "auto"),
        ([WEATHER, TIME], allowed("required", NAMED)),
        ([WEATHER, TIME], "auto"),
    ]:
        asked: Any = {**ASK, "tools": tools, "tool_choice": choice, "max_tokens": 2}
        answer = await client.chat.completions.create(model="hermes", **asked)
        assert answer.usage
        lengths.append(answer.usage.prompt_tokens)
    assert lengths[0] == lengths[1] < lengths[2] == lengths[3]


async def test_an_answer_is_a_call_or_has_the_form_that_is_asked_for(client: AsyncOpenAI) -> None:
    schema = {"name": "n", "schema": {"enum": [1, 2]}}
    asked = {**ASK, "model": "hermes", "response_format": {"type": "json_schema", "json_schema": schema}}
    kinds = set()
    for seed in range(12):
        answer = await client.chat.completions.create(**{**asked, "seed": seed, "temperature": 2.0})  # type: ignore[call-overload]
        message = answer.choices[0].message
        if message.tool_calls:
            check(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)
        else:
            assert json.loads(message.content) in (1, 2)
        kinds.add(bool(message.tool_calls))
    assert False in kinds


@pytest.mark.parametrize(
    ("model", "change", "param", "named"),
    [
        ("demo", {}, "tools", "knows no functions"),
        ("hermes", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "get_weather"),
        (
            "hermes",
            {"tool_choice": allowed("auto", NAMED | {"function": {"name": "f"}})},
            "tool_choice",
            "get_weather",
        ),
        ("hermes", {"tool_choice": allowed("none", NAMED)}, "tool_choice.allowed_tools.mode", "'auto' or 'required'"),
        ("hermes", {"tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "at least 1"),
        ("hermes", {"tool_choice": {"type": "custom"}}, "tool_choice.type", "functions only"),
        ("hermes", {"tool_choice": "some"}, "tool_choice", "'none', 'auto' or 'required'"),
        ("hermes", {"tools": [], "tool_choice": allowed("auto", NAMED)}, "tool_choice", "no tools"),
        ("hermes", {"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        ("hermes", {"tools": [TIME, TIME]}, "tools", "two functions of one name"),
        ("hermes", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", "functions only"),
        (
            "hermes",
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
            "one of them",
        ),
        ("hermes", {"structured_outputs": {"regex": "a"}}, "structured_outputs", "not with a regex"),
        ("hermes", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "tool_call_id"),
        (
            "hermes",
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}],
            },
            "tools",
            "cannot be used",
        ),
    ],
)
async def test_what_cannot_be_is_refused(caller: Caller, model: str, change: Any, param: str, named: str) -> None:
    answer = await caller.post("/v1/chat/completions", json={**ASK, "model": model, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert named in answer.json()["error"]["message"]


class Zone(BaseModel):
    """The time somewhere."""

    is_utc: bool


async def test_the_package_parses_arguments_into_its_callers_types(client: AsyncOpenAI) -> None:
    """And builds whole calls of the streamed pieces."""
    answer = await client.chat.completions.parse(
        model="hermes",
        messages=[{"role": "user", "content": "?"}],
        tools=[pydantic_function_tool(Zone)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
    )
    assert answer.choices[0].message.tool_calls
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Zone)
    async with client.chat.completions.stream(**ASK, model="hermes", tool_choice="required") as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (call,) = whole.choices[0].message.tool_calls or []
    check(call.function.name, call.function.arguments)
