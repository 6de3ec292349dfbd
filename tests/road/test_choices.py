"""Logprobs and several choices over the unchanged `openai` client; every answer is one of its own types."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import Logprobs

from jupyter_dsserve.gateway.server import Gateway
from tests.engine.test_loop import toy_text
from tests.support import Caller, until


@pytest.fixture
async def client(gateway: Gateway, caller: Caller) -> AsyncIterator[AsyncOpenAI]:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.admin_key, max_retries=0) as client:
        yield client


SLOW = "toy:step_s=0.1"  # what comes while nobody reads goes together, and then there is one piece
CHAT: Any = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


async def test_completions_have_openais_logprobs_whole_and_streamed(caller: Caller, client: AsyncOpenAI) -> None:
    ask = {"prompt": "hello", "max_tokens": 7, "logprobs": 2, "stop": "zzz"}
    whole = Completion.model_validate((await caller.complete(**ask)).json()).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.tokens == list(toy_text("hello", 7))
    assert whole.logprobs.token_logprobs == [0.0] * 7
    assert whole.logprobs.top_logprobs == [{letter: 0.0} for letter in toy_text("hello", 7)]
    assert whole.logprobs.text_offset == list(range(7))
    await caller.load("slow", "v1", SLOW)
    events = [event["choices"][0] async for event in caller.stream_complete("slow", **ask) if event != "[DONE]"]
    pieces = [Logprobs.model_validate(event["logprobs"]) for event in events if event["logprobs"]]
    assert len(pieces) > 1
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for piece in pieces for one in getattr(piece, name)] == getattr(whole.logprobs, name)


async def test_chats_have_openais_logprobs_whole_and_streamed(caller: Caller, client: AsyncOpenAI) -> None:
    ask = {**CHAT, "max_tokens": 6, "logprobs": True, "top_logprobs": 1}
    raw = (await caller.post("/v1/chat/completions", json=ask)).json()
    whole = ChatCompletion.model_validate(raw).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    letters = toy_text("user: hi\n", 6)
    assert [(one.token, one.logprob, one.bytes) for one in whole.content] == [(c, 0.0, [ord(c)]) for c in letters]
    assert [[top.token for top in one.top_logprobs] for one in whole.content] == [[c] for c in letters]
    stream = await client.chat.completions.create(**ask, stream=True)
    chunks = [ChatCompletionChunk.model_validate(chunk.model_dump()) async for chunk in stream]
    pieces = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert [one for piece in pieces for one in piece or []] == whole.content


async def test_who_asks_for_no_logprobs_gets_none(client: AsyncOpenAI) -> None:
    assert (await client.chat.completions.create(**CHAT, max_tokens=3)).choices[0].logprobs is None
    assert (await client.completions.create(model="demo", prompt="hi", max_tokens=3)).choices[0].logprobs is None
    chosen = await client.completions.create(model="demo", prompt="hi", max_tokens=3, logprobs=0)
    assert chosen.choices[0].logprobs is not None, "0 asks for the tokens' own"


async def test_an_echo_begins_with_the_prompt_and_its_first_token_has_no_logprob(client: AsyncOpenAI) -> None:
    ask: Any = {"model": "demo", "prompt": "hello", "max_tokens": 3, "echo": True, "logprobs": 1}
    (choice,) = (await client.completions.create(**ask)).choices
    assert choice.text == "hello" + toy_text("hello", 3)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.text_offset == list(range(8))
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    assert (choice.logprobs.token_logprobs[0], choice.logprobs.top_logprobs[0]) == (None, None)
    assert choice.logprobs.token_logprobs[1] == pytest.approx(-math.log(256))
    stream = await client.completions.create(**ask, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == choice.text
    scored = await client.completions.create(**ask | {"max_tokens": 0, "prompt": ["ab", "c"]})
    assert [c.text for c in scored.choices] == ["ab", "c"]
    assert scored.usage is not None
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (3, 0)


async def test_n_choices_come_with_their_index_and_the_prompt_counted_once(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, max_tokens=6, n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == [toy_text("user: hi\n", 6)] * 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 18)


@pytest.mark.parametrize("prompts", [["hello", "bye"], [list(b"hello"), list(b"bye")]], ids=["texts", "ids"])
async def test_several_prompts_of_one_call_have_n_choices_each_in_their_order(
    client: AsyncOpenAI, prompts: Any
) -> None:
    answer = await client.completions.create(model="demo", prompt=prompts, max_tokens=7, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == [toy_text(p, 7) for p in ("hello", "hello", "bye", "bye")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5 + 3, 28)


async def test_choices_stream_side_by_side_each_with_its_own_end(client: AsyncOpenAI, caller: Caller) -> None:
    await caller.load("slow", "v1", SLOW)
    stream = await client.completions.create(
        model="slow",
        prompt=["hello", "bye"],
        max_tokens=9,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, str] = {}
    order: list[int] = []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        assert choice.index not in ends, "nothing comes after a choice's end"
        texts[choice.index] += choice.text
        order.append(choice.index)
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {i: toy_text(p, 9) for i, p in enumerate(("hello", "hello", "bye", "bye"))}
    assert ends == dict.fromkeys(range(4), "length")
    assert order.index(3) < len(order) - 1 - order[::-1].index(0), "they take turns"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (8, 36)


async def test_each_choice_of_a_streamed_chat_begins_with_the_role(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**CHAT, max_tokens=4, n=2, stream=True)
    first: dict[int, Any] = {}
    async for chunk in stream:
        first.setdefault(chunk.choices[0].index, chunk.choices[0].delta.role)
    assert first == {0: "assistant", 1: "assistant"}


async def test_all_choices_come_from_one_version(client: AsyncOpenAI, caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v2", "toy:step_s=0.001")
    await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 50, "v2": 50}})
    for _ in range(6):
        before = {v: gateway.fleet.version("demo", v).window.requests for v in ("v1", "v2")}
        raw = await client.completions.with_raw_response.create(model="demo", prompt="x", max_tokens=1, n=8)
        asked = {v: gateway.fleet.version("demo", v).window.requests - count for v, count in before.items()}
        assert asked == {"v1": 0, "v2": 0} | {raw.headers["X-DSServe-Version"]: 8}


@pytest.mark.parametrize("stream", [True, False])
async def test_all_choices_are_cancelled_together(client: AsyncOpenAI, gateway: Gateway, stream: bool) -> None:
    asking = asyncio.create_task(
        client.completions.create(model="demo", prompt="hello", max_tokens=1_000_000, n=5, stream=stream)
    )
    replica = gateway.fleet.version("demo", "v1").replicas[0]
    await until(lambda: replica.heartbeat.running == 5)
    if stream:
        await (await asking).response.aclose()  # type: ignore[union-attr]
    else:
        asking.cancel()
    await until(lambda: replica.in_flight == 0)
    await until(lambda: replica.heartbeat.running == 0)


async def test_a_prompt_that_is_refused_ends_the_call_and_the_other_choices(
    client: AsyncOpenAI, gateway: Gateway
) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        await client.completions.create(model="demo", prompt=["hello", "", "bye"], max_tokens=1_000_000)
    replica = gateway.fleet.version("demo", "v1").replicas[0]
    await until(lambda: replica.in_flight == 0 and replica.heartbeat.running == 0)


async def test_a_failure_of_one_choice_in_the_middle_of_a_stream_is_told(
    client: AsyncOpenAI, caller: Caller, gateway: Gateway
) -> None:
    """The worker goes while two choices stream."""
    stream = await client.completions.create(model="demo", prompt="x", max_tokens=1_000_000, n=2, stream=True)
    await anext(stream)
    gateway.fleet.version("demo", "v1").replicas[0].lost()
    with pytest.raises(openai.APIError, match="ended while it was answering"):
        _ = [chunk async for chunk in stream]
