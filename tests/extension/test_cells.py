"""Cells of a notebook beside requests: a kernel of the same Jupyter server answers while 64 streams run through it."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest
from yarl import URL

from tests.support import Json, JupyterServer, until

NUM_STREAMS = 64


@asynccontextmanager
async def kernel(server: JupyterServer) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The channels of a new kernel, by the websocket that a notebook has."""
    url = URL(f"{server.url}/api/kernels", encoded=True)
    headers = {"Authorization": f"token {server.token}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        async with client.post(url, json={"name": "python3"}) as answer:
            id = (await answer.json())["id"]
        async with client.ws_connect(url / id / "channels") as channels:
            yield channels
        await client.delete(url / id)


async def run_cell(channels: aiohttp.ClientWebSocketResponse, code: str) -> float:
    """Seconds until its answer is here, and the kernel idle again: what a person waits."""
    id = uuid.uuid4().hex
    header = {"msg_id": id, "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    begun, missing = time.perf_counter(), {"execute_result", "execute_reply", "idle"}
    await channels.send_json(message | {"buffers": []})
    while missing:
        heard: Json = json.loads((await channels.receive(timeout=60)).data)
        if heard["parent_header"].get("msg_id") == id:
            missing -= {heard["msg_type"], heard["content"].get("execution_state")}
    return time.perf_counter() - begun


@contextmanager
def streams(server: JupyterServer) -> Iterator[None]:
    """So many callers who ask again when they are answered, in a process of their own."""
    where = ["demo", "--url", f"{server.url}/dsserve/v1", "--key", server.token]
    load = ["--concurrency", str(NUM_STREAMS), "--seconds", "600", "--output-tokens", "128", "--ignore-eos"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_dsserve.gateway.app", "bench", *where, *load],
        env=server.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["builtin:demo-v1", "toy:step_s=0.05"])
async def test_a_cell_is_answered_soon_beside_64_streams(server: JupyterServer, model: str) -> None:
    async with server.caller() as caller, kernel(server) as channels:
        await caller.load("demo", "v1", model)

        async def num_running() -> int:
            return sum(int(r["in_flight"]) for r in (await caller.version("demo", "v1"))["replicas"])

        await run_cell(channels, "1 + 1")
        idle, busy = [], []
        for _ in range(3):  # in turn: what else the machine does meets both
            idle += [await run_cell(channels, "1 + 1") for _ in range(20)]
            with streams(server):
                await until(num_running, lambda num: num >= NUM_STREAMS, timeout_s=120)
                await asyncio.sleep(2)
                busy += [await run_cell(channels, "1 + 1") for _ in range(20)]
                assert await num_running() >= NUM_STREAMS - 8, "they ended meanwhile"
            await until(num_running, lambda num: num == 0)
        await caller.delete("/api/deployments/demo")
        allowed_s = 1.5 * statistics.median(idle) + 0.05
        assert statistics.median(busy) <= allowed_s, f"idle {sorted(idle)}, busy {sorted(busy)}"
