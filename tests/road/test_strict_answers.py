"""Whatever OpenAI's routes answer is OpenAI's own to the last field: whole, streamed, and refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.strict import valid, valid_error
from tests.support import Caller

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TEXT = {"prompt": "hello", "max_tokens": 3}
KINDS: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("completions", TEXT, Completion, Completion),
    ("completions", {**TEXT, "logprobs": 2, "echo": True, "n": 2}, Completion, Completion),
    ("chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
    ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1, "n": 2}, ChatCompletion, ChatCompletionChunk),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """A toy that answers, one that embeds, one that always fails, and none behind ``stood``, but a text."""
    gateway = Gateway(GatewayConfig(tmp_path_factory.mktemp("data"), port=0, drain_s=5))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await asyncio.gather(
            caller.load("demo", "v1", "toy:step_s=0.001"),
            caller.load("embed", "v1", "toy:step_s=0.001", task="embed"),
            caller.load("broken", "v1", "toy:fail_rate=1"),
            caller.load("stood", "v1", "toy:fail_rate=1"),
        )
        await caller.put("/api/deployments/stood/policy", json={"fallback_answer": "later"})
        yield caller
    await gateway.stop()


async def events(caller: Caller, path: str, body: Any) -> list[Any]:
    answer = await caller.post(path, json={**body, "stream": True})
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.text
    *data, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(one) for one in data]


@pytest.mark.parametrize("model", ["demo", "stood"])
@pytest.mark.parametrize(("path", "body", "kind", "piece"), KINDS)
async def test_whole_and_streamed(served: Caller, model: str, path: str, body: Any, kind: Any, piece: Any) -> None:
    answer = await served.post(f"/v1/{path}", json={"model": model, **body})
    whole = answer.json()
    valid(kind, whole)
    assert (whole["system_fingerprint"] is None) == (model == "stood")
    for include_usage in (False, True):
        asked = {"model": model, **body, "stream_options": {"include_usage": include_usage}}
        told = await events(served, f"/v1/{path}", asked)
        # Of a streamed completion OpenAI's own type says that the reason is always there; OpenAI sends null.
        reasons = [choice["finish_reason"] for one in told for choice in one["choices"]]
        assert {None, "length" if model == "demo" else "stop"} >= set(reasons)
        for one in told:
            if piece is Completion:
                for choice in one["choices"]:
                    choice["finish_reason"] = choice["finish_reason"] or "length"
            valid(piece, one)
        assert all(("usage" in one) == include_usage for one in told)
        assert [bool(one.get("usage")) for one in told] == [False] * (len(told) - 1) + [include_usage]
        assert {one["id"] for one in told} == {told[0]["id"]}


async def test_the_others(served: Caller) -> None:
    for encoding in ("float", "base64"):
        answer = await served.post("/v1/embeddings", json={"model": "embed", "input": "x", "encoding_format": encoding})
        found = answer.json()
        if encoding == "base64":  # the package decodes it before it is one of its types
            assert isinstance(found["data"][0].pop("embedding"), str)
            found["data"][0]["embedding"] = []
        valid(CreateEmbeddingResponse, found)
    models = (await served.get("/v1/models")).json()
    assert set(models) == {"object", "data"}
    assert [valid(Model, one).id for one in models["data"]] == ["broken", "demo", "embed", "stood"]
    assert valid(Model, (await served.get("/v1/models/demo@v1")).json()).created > 1_700_000_000


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("completions", {**TEXT, "model": "nobody"}, 404),
        ("completions", {**TEXT, "model": "demo", "suffix": "x"}, 400),
        ("completions", {**TEXT, "model": "broken"}, 500),
        ("chat/completions", {**CHAT, "model": "embed"}, 400),
        ("embeddings", {"model": "embed", "input": "x", "dimensions": 99}, 400),
        ("nothing", {}, 404),
    ],
)
async def test_errors(served: Caller, path: str, body: Any, status: int) -> None:
    answer = await served.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    assert valid_error(answer.json())["message"]


async def test_an_image_is_refused_in_words(served: Caller) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    body = {"model": "demo", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]}
    answer = await served.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = valid_error(answer.json())
    assert "models here read text" in error["message"], error
    assert error["param"] == "messages.0.content.1.type"


async def test_the_check_finds_what_is_too_much_too_little_and_of_another_kind(served: Caller) -> None:
    whole = (await served.post("/v1/chat/completions", json={"model": "demo", **CHAT})).json()
    choice = whole["choices"][0]
    for broken, named in [
        ({**whole, "degraded": "v1"}, "ChatCompletion.degraded is unknown"),
        ({key: value for key, value in whole.items() if key != "service_tier"}, "service_tier is missing"),
        ({**whole, "created": 1.5}, "ChatCompletion.created"),
        ({**whole, "choices": [{**choice, "message": {"role": "assistant"}}]}, "choices[0].message.content is missing"),
        ({**whole, "usage": {**whole["usage"], "cost": 1}}, "ChatCompletion.usage.cost is unknown"),
    ]:
        with pytest.raises(AssertionError) as found:
            valid(ChatCompletion, broken)
        assert named in str(found.value)
