"""What a large tensor costs on its way in: as JSON, raw after the JSON, and in shared memory, in one run.

    python -m tests.bench.bench_tensors [--rounds 7] [--out tests/bench/results/tensors.json]

An ONNX program adds up 4 MB of FP32 and gives one number, so that what differs is the way to the gateway and through
it. The ways take turns; figures are medians of the rounds. The client is Triton's own. The ratio is what to look at:
the machine may do other things meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.http as triton
from onnx import TensorProto, helper
from tritonclient.utils import shared_memory

from tests.support import Command

SIZE = 1 << 20  # numbers of four bytes


def save_sum(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def measure(url: str, key: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of a call, by way: from the array to the number."""
    client = triton.InferenceServerClient(url, network_timeout=120)
    headers = {"Authorization": f"Bearer {key}"}
    x = np.random.default_rng(0).standard_normal((1, SIZE), np.float32)
    name = f"dsserve-bench-{uuid.uuid4().hex}"
    held = shared_memory.create_shared_memory_region("x", name, x.nbytes)
    client.register_system_shared_memory("x", name, x.nbytes, headers=headers)

    def tensor(fill: Callable[[Any], None]) -> Any:
        given = triton.InferInput("x", [1, SIZE], "FP32")
        fill(given)
        return given

    def in_region(given: Any) -> None:
        shared_memory.set_shared_memory_region(held, [x])
        given.set_shared_memory("x", x.nbytes)

    ways: dict[str, Callable[[Any], None]] = {
        "json": lambda given: given.set_data_from_numpy(x, binary_data=False),
        "raw": lambda given: given.set_data_from_numpy(x),
        "shared memory": in_region,
    }
    seen: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for _ in range(rounds + 1):
            for way, fill in ways.items():
                begun = time.perf_counter()
                found = client.infer("sum", [tensor(fill)], headers=dict(headers)).as_numpy("y")  # it adds to them
                seen[way].append(1000 * (time.perf_counter() - begun))
                assert np.isclose(found[0, 0], x.sum(), rtol=1e-2), (found, x.sum())
    finally:
        client.unregister_system_shared_memory("x", headers=headers)
        shared_memory.destroy_shared_memory_region(held)
        client.close()
    return {way: statistics.median(times[1:]) for way, times in seen.items()}  # the first is a warm-up


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = save_sum(Path(folder) / "sum.onnx")
        with Command(Path(folder) / "data", "--DSServeApp.max_body_bytes=67108864") as command:
            async with await command.caller() as caller:
                await caller.load("sum", "v1", str(model), task="tensor", num_threads=1, wait=False)
                assert (await caller.settled("sum", "v1"))["state"] == "READY"
                url = str(caller.base_url).removeprefix("http://").rstrip("/")
                found = await asyncio.to_thread(measure, url, command.key, asked.rounds)
            command.process.terminate()
            command.output()
    ratios = {way: round(found["json"] / time, 1) for way, time in found.items()}
    said = {"megabytes": 4 * SIZE / 2**20, "rounds": asked.rounds, "median_ms": found, "times_faster_than_json": ratios}
    print(json.dumps(said, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
