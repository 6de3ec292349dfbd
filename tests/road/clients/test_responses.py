"""The Responses API through OpenAI's own client, and to the last field and event."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from jupyter_dsserve.gateway.server import Gateway
from tests.road.clients.conftest import TIME
from tests.strict import valid, valid_as, valid_error
from tests.support import Caller

pytestmark = pytest.mark.asyncio(loop_scope="package")
ZONE: dict[str, Any] = {"type": "function", **TIME["function"], "strict": True}
TEXT = {"model": "hermes", "input": "hello", "max_output_tokens": 6, "instructions": "Be brief.", "temperature": 0}
CALL = {**TEXT, "tools": [ZONE], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


async def events(caller: Caller, body: Any) -> list[Any]:
    """Each valid, and numbered from 0."""
    answer = await caller.post("/v1/responses", json={**body, "stream": True})
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.text
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        event, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {found[-1]['type']}"
        valid_as(ResponseStreamEvent, found[-1])
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


async def test_tools_that_are_allowed_are_called_and_told_again(caller: Caller) -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]}
    other = {"type": "function", "name": "other", "parameters": {}, "strict": False}
    answer = (await caller.post("/v1/responses", json={**CALL, "tools": [other, ZONE], "tool_choice": allowed})).json()
    valid(Response, answer)
    assert answer["tool_choice"] == allowed
    assert [item["name"] for item in answer["output"]] == ["get_time"]


@pytest.mark.parametrize("more", [{}, LOGPROBS], ids=["text", "logprobs"])
async def test_a_text_whole_and_as_events_in_openais_order(caller: Caller, more: Any) -> None:
    whole = (await caller.post("/v1/responses", json={**TEXT, **more})).json()
    valid(Response, whole)
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole["usage"]["output_tokens"] == 6
    (message,) = whole["output"]
    (part,) = message["content"]
    assert len(part["logprobs"]) == (6 if more else 0)
    told = await events(caller, {**TEXT, **more})
    kinds = [one["type"].removeprefix("response.") for one in told]
    num = kinds.count("output_text.delta")
    assert num > 2
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * num,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert "".join(one["delta"] for one in told if "delta" in one) == part["text"]
    (last,) = told[-1]["response"]["output"]
    assert {**last, "id": ""} == {**message, "id": ""}
    assert len({one["item_id"] for one in told if "item_id" in one}) == 1


async def test_a_call_whole_and_as_events_and_its_result_goes_back(caller: Caller) -> None:
    whole = (await caller.post("/v1/responses", json=CALL)).json()
    valid(Response, whole)
    assert whole["status"] == "completed", whole
    (call,) = whole["output"]
    assert json.loads(call["arguments"]).keys() == {"zone"}
    told = await events(caller, CALL)
    kinds = [one["type"].removeprefix("response.") for one in told]
    num = kinds.count("function_call_arguments.delta")
    assert num > 1
    assert kinds[2:] == [
        "output_item.added",
        *["function_call_arguments.delta"] * num,
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    arguments = "".join(one["delta"] for one in told if "delta" in one)
    assert arguments == told[-1]["response"]["output"][0]["arguments"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "12:00"}
    lengths = []
    for turns in ([], [call], [call, result]):
        asked = {**TEXT, "input": [{"role": "user", "content": "What time?"}, *turns]}
        lengths.append((await caller.post("/v1/responses", json=asked)).json()["usage"]["input_tokens"])
    assert lengths[0] < lengths[1] < lengths[2]


class Answer(BaseModel):
    mood: Literal["good", "bad"]


async def test_the_package_creates_streams_and_parses(client: AsyncOpenAI, served: Gateway) -> None:
    asked: Any = {"model": "demo", "input": "How are you?", "max_output_tokens": 20}
    plain = await client.responses.create(**asked)
    assert plain.output_text
    assert plain.id.startswith("resp")
    parsed = await client.responses.parse(**asked, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)
    async with client.responses.stream(**CALL) as stream:  # type: ignore[arg-type]
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output[0].type == "function_call"
    again = [{"role": "user", "content": "?"}, *(item.to_dict() for item in plain.output)]
    assert (await client.responses.create(model="demo", input=again, max_output_tokens=2)).output  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "param", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the conversation as input"),
        ({"store": True}, "store", "not stored"),
        ({"input": [{"role": "user"}]}, "input.0", "'input.0.content' is missing"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "function_call_output"),
        ({"input": []}, "input", "[]"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "functions only"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "name and schema"),
        ({"model": "demo", "tools": [ZONE]}, "tools", "knows no functions"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_is_refused(caller: Caller, change: Any, param: str, named: str, stream: bool) -> None:
    answer = await caller.post("/v1/responses", json={**TEXT, **change, "stream": stream})
    assert answer.status_code == 400, answer.text
    error = valid_error(answer.json())
    assert error["param"] == param, error
    assert named in error["message"]


async def test_an_answer_that_breaks_off_ends_with_the_event_that_says_so(caller: Caller) -> None:
    told = await events(caller, {**TEXT, "model": "slow", "max_output_tokens": 9000, "timeout_s": 0.3})
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["error"]["code"] == "server_error"
    assert "time limit" in told[-1]["response"]["error"]["message"]


async def test_the_blocking_client_too(served: Gateway) -> None:
    def ask() -> str:
        with OpenAI(base_url=f"{served.url}/v1", api_key=served.admin_key) as client:
            return client.responses.create(model="demo", input="hi", max_output_tokens=3).output_text

    assert await asyncio.to_thread(ask)
