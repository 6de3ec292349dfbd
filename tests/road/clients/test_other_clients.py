"""LangChain and LiteLLM, as people use them: their packages unchanged, our address and key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import pytest
from pydantic import BaseModel, Field

from jupyter_dsserve.gateway.server import Gateway
from tests.road.clients.conftest import TIME

pytestmark = pytest.mark.asyncio(loop_scope="package")
T = TypeVar("T")


class Mood(BaseModel):
    """How it is."""

    mood: Literal["good", "bad"] = Field(description="one of two")


async def off_loop(ask: Callable[[], T]) -> T:
    """The server runs on this loop: a blocking client must not hold it."""
    return await asyncio.to_thread(ask)


def chat_openai(served: Gateway, model: str, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=model, base_url=f"{served.url}/v1", api_key=served.admin_key, max_tokens=60, **more)


async def test_langchain_invokes_and_streams(served: Gateway) -> None:
    model = chat_openai(served, "demo", temperature=0, stream_usage=True)
    answer = await off_loop(lambda: model.invoke([("system", "Be brief."), ("human", "hello")]))
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    pieces = [piece async for piece in model.astream([("system", "Be brief."), ("human", "hello")])]
    assert "".join(piece.content for piece in pieces) == answer.content
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0


async def test_langchain_binds_functions_and_gives_their_results_back(served: Gateway) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    model = chat_openai(served, "hermes")
    bound = model.bind_tools([TIME], tool_choice="required", parallel_tool_calls=False)
    asked = HumanMessage("What time is it?")
    answer = await bound.ainvoke([asked])
    (call,) = answer.tool_calls
    assert call["name"] == "get_time"
    assert call["args"]["zone"] in ("UTC", "CET")
    result = ToolMessage("12:00", tool_call_id=call["id"])
    said = await model.bind_tools([TIME]).ainvoke([asked, answer, result])
    assert said.content or said.tool_calls
    whole: Any = None
    async for piece in bound.astream([asked]):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["name"] == "get_time"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_langchain_gives_structured_output(served: Gateway, method: str) -> None:
    model = chat_openai(served, "hermes").with_structured_output(Mood, method=method)
    assert isinstance(await model.ainvoke("How are you?"), Mood)


async def test_langchain_asks_the_responses_api(served: Gateway) -> None:
    model = chat_openai(served, "demo", use_responses_api=True)
    answer = await model.ainvoke("hello")
    assert answer.text
    assert "".join([piece.text async for piece in model.astream("hello")])


async def test_langchain_embeds(served: Gateway) -> None:
    from langchain_openai import OpenAIEmbeddings

    # Its token ids are those of OpenAI's tokenizer, which is no model's here: texts go as texts.
    embeddings = OpenAIEmbeddings(
        model="embed", base_url=f"{served.url}/v1", api_key=served.admin_key, check_embedding_ctx_length=False
    )
    first, other = await off_loop(lambda: embeddings.embed_documents(["hello", "bye"]))
    assert len(first) == len(other) == 8
    assert first != other
    assert await embeddings.aembed_query("hello") == first


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would be downloaded
    import litellm

    litellm.telemetry = False
    return litellm


async def test_litellm_completes_streams_calls_and_embeds(served: Gateway, litellm: Any) -> None:
    where = {"api_base": f"{served.url}/v1", "api_key": served.admin_key}
    ask = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, **where}
    answer = await off_loop(lambda: litellm.completion(model="openai/demo", max_tokens=8, **ask))
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.completion_tokens == 8
    stream = await litellm.acompletion(model="openai/demo", max_tokens=8, stream=True, **ask)
    assert "".join([piece.choices[0].delta.content or "" async for piece in stream]) == text
    tools = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False}
    called = await litellm.acompletion(model="openai/hermes", max_tokens=60, **tools, **ask)
    assert called.choices[0].message.tool_calls[0].function.name == "get_time"
    found = await litellm.aembedding(model="openai/embed", input=["hello", "bye"], **where)
    assert [len(one["embedding"]) for one in found.data] == [8, 8]
