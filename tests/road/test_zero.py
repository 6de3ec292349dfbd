"""A model whose weights stay on the disk: it answers as it does from memory, and takes less of that than they would."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import TracebackType

import pytest

from tests.bench.models import make_model
from tests.support import Caller, until

M = {"dtype": "fp32", "device": "cpu", "max_sequences": 4, "max_context": 512, "num_threads": 1}


class Peak:
    """The most anonymous and shared memory of a process while the block runs, looked at every 3 ms."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._pid = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def of(self, pid: int) -> bool:
        self._pid = pid
        return pid > 0

    def _look(self) -> None:
        while not self._ended.wait(0.003):
            if self._pid:
                found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text())
                self.num_bytes = max(self.num_bytes, 1024 * sum(map(int, found)))


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
