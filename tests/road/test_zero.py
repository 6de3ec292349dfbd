"""A model whose weights stay on the disk: it answers as it does from memory, and takes less of that than they would."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.models import make_model
from tests.support import Caller, Peak, until

M = {"dtype": "fp32", "device": "cpu", "max_sequences": 4, "max_context": 512, "num_threads": 1}


@pytest.mark.long  # the first time DeepSpeed builds its async_io, for minutes
@pytest.mark.timeout(900)
async def test_a_model_of_120_m_parameters_on_the_disk_takes_less_memory_than_its_weights_and_answers_the_same(
    caller: Caller, tmp_path: Path
) -> None:
    model, disk = make_model("M", tmp_path / "m"), tmp_path / "disk"
    num_bytes = (model / "model.safetensors").stat().st_size
    await caller.load("big", "v1", str(model), **M)
    expected = await complete(caller, "v1")
    await caller.post("/api/deployments/big/versions/v1/unload")
    with Peak() as peak:
        await caller.load("big", "v2", str(model), wait=False, zero="nvme", nvme_dir=str(disk), **M)
        await until(lambda: caller.version("big", "v2"), lambda v: v["replicas"] and peak.of(v["replicas"][0]["pid"]))
        loaded = await caller.settled("big", "v2", timeout_s=800)
        assert loaded["state"] == "READY", loaded["reason"]
        assert loaded["info"]["note"].startswith("agrees with plain transformers on 100.0% of ")
        assert await complete(caller, "v2") == expected
    assert num_bytes / 2 < peak.num_bytes < num_bytes
    assert len(os.listdir(disk)) == 1
    await caller.post("/api/deployments/big/versions/v2/unload")
    await until(lambda: not os.listdir(disk))


async def complete(caller: Caller, version: str) -> str:
    answer = await caller.complete(f"big@{version}", prompt="Once there was", max_tokens=8, temperature=0)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text
