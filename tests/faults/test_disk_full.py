"""A disk without room: traffic goes on, what was not written is told, and written once there is room."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import psutil

from tests.support import Caller, Command, until

FAST = "toy:step_s=0.001"


def allow_files_of(pid: int, num_bytes: int) -> None:
    """As on a full disk: no file of the process may grow beyond that."""
    psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


async def kinds(caller: Caller) -> list[str]:
    return [event["kind"] for event in (await caller.get("/api/history")).json()]


async def test_a_gateway_with_a_full_disk_serves_on_and_loses_nothing(data_dir: Path) -> None:
    with Command(data_dir) as command:
        async with await command.caller() as caller:
            await caller.load("demo", "v1", FAST)
            await caller.load("demo", "v2", FAST)
            allow_files_of(command.pid, 0)
            started = time.monotonic()
            swapped = await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
            assert swapped.status_code == 200
            refused = await caller.post("/api/deployments", json={"name": "demo", "version": "v3", "model": FAST})
            assert refused.status_code == 503
            assert "version demo@v3 was not written to the registry" in refused.text
            assert (await caller.complete()).headers["X-DSServe-Version"] == "v2"
            said = [e["reason"] for e in (await caller.get("/api/history")).json() if e["kind"] == "registry_failed"]
            assert time.monotonic() - started < 10, "something hung"
            for what in ("the route of demo", "version demo@v1"):
                assert any(reason.startswith(f"{what} was not written") for reason in said), said
            allow_files_of(command.pid, resource.RLIM_INFINITY)
            await until(lambda: kinds(caller), lambda found: "registry_written" in found)
            await caller.load("demo", "v3", FAST)
            command.signal(signal.SIGKILL)
    with Command(data_dir) as command:
        async with await command.caller() as caller:
            demo = (await caller.get("/api/deployments/demo")).json()
            assert demo["weights"] == {"v2": 100}
            assert {v["version"]: v["state"] for v in demo["versions"]}["v1"] == "STOPPED"
            assert {"activated", "registry_failed", "registry_written"} <= set(await kinds(caller))
