"""The unchanged `openai` client against the gateway, with a toy behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from jupyter_dsserve.gateway.server import Gateway
from tests.engine.test_loop import toy_text
from tests.support import Caller, until


@pytest.fixture
async def client(gateway: Gateway, caller: Caller) -> AsyncIterator[AsyncOpenAI]:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.admin_key, max_retries=0) as client:
        yield client


async def test_it_completes_with_usage_and_names_the_version(client: AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(model="demo", prompt="hello", max_tokens=7)
    answer = raw.parse()
    assert answer.choices[0].text == toy_text("hello", 7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 7, 12)
    assert raw.headers["X-DSServe-Version"] == "v1"


async def test_token_ids_and_a_list_of_one_text_are_prompts_too(client: AsyncOpenAI) -> None:
    for prompt in (list(b"hello"), ["hello"]):
        answer = await client.completions.create(model="demo", prompt=prompt, max_tokens=7)  # type: ignore[arg-type]
        assert answer.choices[0].text == toy_text("hello", 7)


async def test_it_streams_token_by_token_with_usage_at_the_end(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="demo", prompt="hello", max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == toy_text("hello", 7)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-1].choices == []


async def test_it_chats(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        max_completion_tokens=6,
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == toy_text("system: x\nuser: hi\n", 6)
    assert answer.choices[0].finish_reason == "length"


async def test_a_chat_streams_as_deltas_that_begin_with_the_role(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=6, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == toy_text("user: hi\n", 6)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_it_lists_the_deployments_that_can_answer(client: AsyncOpenAI, caller: Caller) -> None:
    await caller.load("slow", "v1", "toy:load_s=60", wait=False)
    assert [m.id async for m in client.models.list()] == ["demo"]
    assert (await client.models.retrieve("demo")).id == "demo"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("slow")


async def test_stop_strings_are_honoured(client: AsyncOpenAI) -> None:
    whole = toy_text("hello", 30)
    answer = await client.completions.create(model="demo", prompt="hello", max_tokens=30, stop=[whole[9:12]])
    assert answer.choices[0].text == whole[: whole.index(whole[9:12])]
    assert answer.choices[0].finish_reason == "stop"


async def test_errors_are_openais(client: AsyncOpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError, match="'nobody'") as missing:
        await client.completions.create(model="nobody", prompt="hello")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="max_tokens") as bad:
        await client.completions.create(model="demo", prompt="hello", max_tokens=0)
    assert (bad.value.type, bad.value.param) == ("invalid_request_error", "max_tokens")
    with pytest.raises(openai.AuthenticationError, match="not valid"):
        await client.with_options(api_key="dsk_wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="v9"):
        await client.completions.create(model="demo@v9", prompt="hello")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_whose_caller_leaves_is_cancelled_on_the_worker(
    client: AsyncOpenAI, caller: Caller, gateway: Gateway, stream: bool
) -> None:
    asking = asyncio.create_task(
        client.completions.create(model="demo", prompt="hello", max_tokens=1_000_000, stream=stream)
    )
    version = gateway.fleet.version("demo", "v1")
    await until(lambda: version.replicas[0].heartbeat.running == 1)
    if stream:
        await (await asking).response.aclose()  # type: ignore[union-attr]
    else:
        asking.cancel()
    await until(lambda: version.replicas[0].in_flight == 0)
    await until(lambda: version.replicas[0].heartbeat.running == 0)
    assert version.window.errors == 0


async def test_a_pinned_version_answers_whatever_the_route_says(client: AsyncOpenAI, caller: Caller) -> None:
    await caller.load("demo", "v2", "toy:step_s=0.001")
    raw = await client.completions.with_raw_response.create(model="demo@v2", prompt="hello")
    assert raw.headers["X-DSServe-Version"] == "v2"


async def test_a_user_keeps_their_version(client: AsyncOpenAI, caller: Caller) -> None:
    await caller.load("demo", "v2", "toy:step_s=0.001")
    await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 50, "v2": 50}})
    seen: dict[str, set[str]] = {}
    for user in [f"user-{i}" for i in range(12)] * 2:
        raw = await client.completions.with_raw_response.create(model="demo", prompt="x", max_tokens=1, user=user)
        seen.setdefault(user, set()).add(raw.headers["X-DSServe-Version"])
    assert all(len(versions) == 1 for versions in seen.values())
    assert set.union(*seen.values()) == {"v1", "v2"}


async def test_a_request_past_its_own_time_limit_ends_with_a_504(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="time limit has passed") as refused:
        await client.completions.create(model="demo", prompt="hello", max_tokens=10_000, extra_body={"timeout_s": 0.05})
    assert refused.value.status_code == 504
