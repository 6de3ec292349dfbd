"""Embeddings and classes through the whole road: the unchanged `openai` client, the kernel's client, and plain HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI
from sentence_transformers import SentenceTransformer

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.engine.toy import VECTOR_SIZE, toy_token
from jupyter_dsserve.fleet import replica as replica_module
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine.tiny_encoders import MINILM, TEXTS, save_encoder
from tests.support import Caller, until


@pytest.fixture
async def client(gateway: Gateway, caller: Caller) -> AsyncIterator[AsyncOpenAI]:
    await caller.load("emb", "v1", "toy:step_s=0.001", task="embed")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.admin_key, max_retries=0) as client:
        yield client


def vector(text: str) -> list[float]:
    return [toy_token(text.encode(), index) / 256 for index in range(VECTOR_SIZE)]


class TestEmbeddings:
    async def test_a_text_a_list_and_token_ids_are_embedded_with_usage(self, client: AsyncOpenAI) -> None:
        asked: list[Any] = ["hello", ["hello"], list(b"hello"), [list(b"hello")]]
        for given in asked:
            answer = await client.embeddings.create(model="emb", input=given)
            assert answer.data[0].embedding == vector("hello")
            assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (5, 5, "emb")

    async def test_a_long_list_comes_back_in_order_and_in_shared_batches(
        self, client: AsyncOpenAI, gateway: Gateway
    ) -> None:
        texts = [f"text {i:03}" for i in range(200)]
        answer = await client.embeddings.create(model="emb", input=texts)
        assert [item.index for item in answer.data] == list(range(200))
        assert [item.embedding for item in answer.data] == [vector(text) for text in texts]
        replica = gateway.fleet.version("emb", "v1").replicas[0]
        await until(lambda: replica.heartbeat.num_steps > 0)
        assert replica.heartbeat.num_steps <= 200 * 8 / 128 + 2

    async def test_float_and_base64_say_the_same(self, caller: Caller, client: AsyncOpenAI) -> None:
        said = []
        for encoding in ("float", "base64"):
            body = {"model": "emb", "input": "hello", "encoding_format": encoding}
            said.append((await caller.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"])
        plain, packed = said
        assert plain == vector("hello")
        assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == plain

    async def test_fewer_dimensions_are_the_first_ones_at_length_one(self, client: AsyncOpenAI) -> None:
        answer = await client.embeddings.create(model="emb", input="hello", dimensions=3)
        first = np.array(vector("hello")[:3])
        assert np.allclose(answer.data[0].embedding, first / np.linalg.norm(first))
        with pytest.raises(openai.BadRequestError, match="dimensions is 9, but this model's vectors have 8"):
            await client.embeddings.create(model="emb", input="hello", dimensions=9)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input": []}, "input"),
            ({"input": [[]]}, "input"),
            ({"input": 5}, "input"),
            ({"input": ["a", 5]}, "input"),
            ({"input": [-1]}, "input"),
            ({"input": ["a"] * 2049}, "input"),
            ({}, "input"),
            ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
            ({"input": "a", "dimensions": 0}, "dimensions"),
            ({"input": "a", "truncate": True}, "truncate"),
        ],
    )
    async def test_what_is_wrong_is_named(
        self, fields: dict[str, Any], param: str, caller: Caller, client: AsyncOpenAI
    ) -> None:
        answer = await caller.post("/v1/embeddings", json={"model": "emb", **fields})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].partition(".")[0] == param, answer.text

    async def test_a_caller_who_leaves_takes_the_waiting_texts_along(
        self, caller: Caller, client: AsyncOpenAI, gateway: Gateway
    ) -> None:
        await caller.load("slow", "v1", "toy:step_s=0.2", task="embed", max_step_tokens=8)
        asking = asyncio.create_task(client.embeddings.create(model="slow", input=["textbook"] * 300))
        replica = gateway.fleet.version("slow", "v1").replicas[0]
        await until(lambda: replica.heartbeat.waiting > 200)
        asking.cancel()
        await until(lambda: replica.heartbeat.waiting == 0)
        assert replica.in_flight == 0

    async def test_one_that_would_come_too_late_is_ended(
        self, caller: Caller, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replica_module, "_LATE_S", 60.0)  # else the gateway says it where the worker is held up
        await caller.load("slow", "v1", "toy:step_s=0.2", task="embed", max_step_tokens=8)
        with pytest.raises(openai.APIStatusError, match=r"time limit has passed with \d+ of its 30 parts") as late:
            await client.embeddings.create(model="slow", input=["textbook"] * 30, extra_body={"timeout_s": 0.5})
        assert late.value.status_code == 504


class TestTasks:
    async def test_each_route_serves_its_own_task_and_names_the_other(
        self, caller: Caller, client: AsyncOpenAI
    ) -> None:
        await caller.load("demo", "v1", "toy:")
        for refused, words in (
            (await caller.complete("emb"), "emb@v1 has the task 'embed', and this route is for 'generate'"),
            (await caller.post("/predict", json={"model": "emb", "input_text": "x"}), "ask it at /v1/embeddings"),
            (await caller.post("/v1/embeddings", json={"model": "demo", "input": "x"}), "has the task 'generate'"),
            (await caller.post("/v1/classify", json={"model": "emb", "input": "x"}), "this route is for 'classify'"),
        ):
            assert refused.status_code == 400, refused.text
            assert words in refused.json()["error"]["message"]

    async def test_a_runner_that_does_not_do_the_task_is_refused(self, caller: Caller) -> None:
        body = {"name": "x", "version": "v1", "model": "toy:", "task": "classify"}
        answer = await caller.post("/api/deployments", json=body)
        assert answer.status_code == 400
        assert "runner 'toy' does not do the task 'classify'" in answer.text


async def test_a_real_encoder_and_a_classifier_serve_beside_one_another(
    gateway: Gateway, caller: Caller, tmp_path: Path
) -> None:
    """all-MiniLM-L6-v2, and a tiny classifier of random weights."""
    labels = {0: "bad", 1: "good"}
    tiny = save_encoder("BertForSequenceClassification", tmp_path, id2label=labels)
    await caller.load("minilm", "v1", MINILM, task="embed", num_threads=1, wait=False)
    await caller.load("tiny", "v1", str(tiny), task="classify", num_threads=1, wait=False)
    for name in ("minilm", "tiny"):
        loaded = await caller.settled(name, "v1", timeout_s=150)
        assert loaded["state"] == "READY", loaded["reason"]
    assert "mean pooling, normalised" in (await caller.version("minilm", "v1"))["info"]["note"]
    ours = AsyncClient(gateway.url, gateway.admin_key)
    try:
        vectors = await ours.embed("minilm", TEXTS)
        theirs = SentenceTransformer(MINILM, device="cpu").encode(list(TEXTS))
        assert (vectors * theirs).sum(axis=1).min() > 0.9999
        assert np.allclose(await ours.embed("minilm", TEXTS[0]), theirs[0], atol=1e-4)
        assert (await ours.embed("minilm", ["a", "b"], dimensions=16)).shape == (2, 16)
        (first, second) = await ours.classify("tiny", ["yes", "no"])
        assert first.label == max(first.scores, key=first.scores.__getitem__)
        assert set(first.scores) == {"bad", "good"}
        assert sum(second.scores.values()) == pytest.approx(1)
        with pytest.raises(InvalidRequest, match="300 token ids is longer than this model's 256"):
            await ours.embed("minilm", [[5] * 300])
    finally:
        await ours.aclose()
    said = (await caller.post("/v1/classify", json={"model": "tiny", "input": "yes"})).json()
    assert said["data"][0]["num_classes"] == 2
    scored = await caller.post("/v1/score", json={"model": "tiny", "text_1": "yes", "text_2": "no"})
    assert scored.status_code == 400
    assert "this model has 2 labels" in scored.json()["error"]["message"]
    assert said["data"][0]["label"] in said["labels"] == ["bad", "good"]
    text = {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["yes"]}
    probs, label = (await caller.post("/v2/models/tiny/infer", json={"inputs": [text]})).json()["outputs"]
    assert (probs["name"], probs["shape"]) == ("probs", [1, 2])
    assert probs["data"] == pytest.approx(said["data"][0]["probs"], abs=1e-5)
    assert (label["name"], label["data"]) == ("label", [said["data"][0]["label"]])
    config = (await caller.get("/v2/models/tiny/config")).json()
    assert [(t["data_type"], t["dims"]) for t in config["output"]] == [("TYPE_FP32", [-1, 2]), ("TYPE_STRING", [-1])]
    log = (await caller.get("/api/deployments/minilm/versions/v1/logs")).text
    assert "mean pooling, normalised" in log
