"""A version over two ranks, through the whole road: it answers as one rank does, and falls and rises as one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.tiny_models import random_prompts, save_architecture
from tests.support import Caller, is_running, until

TINY = {"dtype": "fp32", "device": "cpu", "max_sequences": 4, "num_threads": 1}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_architecture("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.timeout(400)
async def test_two_ranks_answer_as_one_and_if_one_is_killed_both_end_and_the_replica_comes_back(
    caller: Caller, llama: str
) -> None:
    before = buffers()
    await caller.load("demo", "v1", llama, **TINY)
    await caller.load("demo", "v2", llama, tp=2, wait=False, **TINY)
    two = await caller.settled("demo", "v2", timeout_s=180)  # the first time an operation is built
    assert two["state"] == "READY", two["reason"]
    assert two["info"]["note"].startswith("agrees with plain transformers on 100.0% of ")
    for prompt in random_prompts((3, 60)):
        one, other = [await complete(caller, version, prompt) for version in ("v1", "v2")]
        assert one == other
        assert len(set(one)) > 8

    rank_0 = two["replicas"][0]["pid"]
    [rank_1] = psutil.Process(rank_0).children()
    os.kill(rank_1.pid, signal.SIGSTOP)  # rank 0 waits for it inside a layer
    asking = asyncio.create_task(caller.complete("demo@v2"))
    await until(lambda: caller.version("demo", "v2"), lambda v: v["replicas"][0]["in_flight"] == 1)
    os.kill(rank_1.pid, signal.SIGKILL)
    lost = await asking
    assert lost.status_code == 503
    assert "demo@v2#0" in lost.json()["error"]["message"]
    await until(lambda: not is_running(rank_0))
    back = await caller.settled("demo", "v2", "READY", timeout_s=180)
    assert back["replicas"][0]["pid"] != rank_0
    assert await complete(caller, "v2", [1, 2]) == await complete(caller, "v1", [1, 2])
    reasons = [
        event["reason"] for event in (await caller.get("/api/history")).json() if event["kind"] == "replica_lost"
    ]
    assert "rank 1 of 2" in reasons[0]

    ranks = [back["replicas"][0]["pid"], *(p.pid for p in psutil.Process(back["replicas"][0]["pid"]).children())]
    assert len(ranks) == 2
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await until(lambda: not any(map(is_running, ranks)))
    assert buffers() <= before


def buffers() -> set[str]:
    """Where ranks add up: files in memory, which stay until they are removed."""
    return {name for name in os.listdir("/dev/shm") if "deepspeed_allreduce_buffer" in name}


async def complete(caller: Caller, version: str, prompt: list[int]) -> str:
    answer = await caller.complete(f"demo@{version}", prompt=prompt, max_tokens=40, temperature=0, ignore_eos=True)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def test_what_cannot_be_split_is_refused_by_name_before_anything_is_started(
    caller: Caller, llama: str, tmp_path: Path
) -> None:
    phi3 = str(save_architecture("phi3", tmp_path / "phi3"))
    for model, tp, word in ((phi3, 2, "phi3"), (llama, 4, "2 heads"), ("toy:", 2, "toy")):
        fields: dict[str, Any] = {"name": "demo", "version": "v1", "model": model, "tp": tp}
        answer = await caller.post("/api/deployments", json=fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tp"
        assert word in answer.json()["error"]["message"]
    assert (await caller.get("/api/deployments")).json() == []
