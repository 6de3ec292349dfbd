"""Versions on a GPU, through a real gateway."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import Caller, until

MODEL = "builtin:demo-v1"
SMALL = {"dtype": "fp32", "max_sequences": 4, "num_threads": 1}


async def ready(caller: Caller, version: str, **fields: Any) -> Any:
    await caller.load("demo", version, MODEL, wait=False, **SMALL, **fields)
    loaded = await caller.settled("demo", version, timeout_s=170)
    assert loaded["state"] == "READY", loaded["reason"]
    return loaded


async def text(caller: Caller, version: str) -> str:
    answer = await caller.complete(f"demo@{version}", prompt="class Counter:\n", max_tokens=16, temperature=0)
    assert answer.status_code == 200, answer.text
    said: str = answer.json()["choices"][0]["text"]
    return said


async def held(caller: Caller, device: str) -> list[Any]:
    devices = (await caller.get("/api/ledger")).json()["devices"]
    return [h for d in devices if d["id"] == device for h in d["held"] if h["taken_bytes"]]


@pytest.mark.timeout(400)
@pytest.mark.gpu
async def test_a_version_on_a_gpu_answers_as_on_the_cpu_and_the_books_show_its_bytes(gpu: str, caller: Caller) -> None:
    loaded = await ready(caller, "v1", device=gpu)
    assert [replica["device"] for replica in loaded["replicas"]] == [gpu]
    (holding,) = await until(lambda: held(caller, gpu))
    assert holding["owner"] == "demo@v1"
    assert holding["taken_bytes"] > 7_000_000  # the weights of the model
    plain = await ready(caller, "v2", device="cpu")
    assert [replica["device"] for replica in plain["replicas"]] == ["cpu"]
    assert await text(caller, "v1") == await text(caller, "v2")


@pytest.mark.timeout(400)
@pytest.mark.gpu
async def test_weights_in_host_memory_answer_as_those_on_the_gpu(gpu: str, caller: Caller) -> None:
    await ready(caller, "v1", device=gpu, zero="cpu")
    await ready(caller, "v2", device=gpu)
    assert await text(caller, "v1") == await text(caller, "v2")


@pytest.mark.timeout(400)
@pytest.mark.gpu
async def test_two_gpus_share_a_model(gpu: str, caller: Caller) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("torch sees one GPU here, and this takes two")
    await ready(caller, "v1", device=gpu, tp=2)
    await ready(caller, "v2", device=gpu)
    assert await text(caller, "v1") == await text(caller, "v2")
