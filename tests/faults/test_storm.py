"""One fault after the other for minutes, drawn at random, under load. `make test-long` runs it."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time

import pytest

from jupyter_dsserve.gateway.server import Gateway
from tests.faults.load import Load
from tests.support import Caller, Json, until

SECONDS = 180.0
CLIENTS = 16
MODEL = "toy:step_s=0.005"
# What a caller may be told while workers die, hang and are replaced, and while more is asked than the line holds.
EXPECTED = re.compile(r"ended while it was answering|line|no replica|is READY|is full|stopped answering|was stopped")


class Storm:
    """The faults by name, each of which returns when it has been done, not when it is over."""

    def __init__(self, caller: Caller, gateway: Gateway, draw: random.Random) -> None:
        self.caller = caller
        self.gateway = gateway
        self.draw = draw
        self.served = "v1"

    async def kill(self) -> None:
        os.kill(await self._worker(), signal.SIGKILL)

    async def hang(self) -> None:
        os.kill(await self._worker(), signal.SIGSTOP)

    async def stumble(self) -> None:
        pid = await self._worker()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(pid, signal.SIGCONT)

    async def garbage(self) -> None:
        path = self.gateway.fleet._link.address.removeprefix("unix:")
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(self.draw.randbytes(self.draw.randint(1, 10_000)))
        writer.close()

    async def flood(self) -> None:
        """Ten times what the line holds, at once."""
        answers = await asyncio.gather(*(self.caller.complete(max_tokens=4) for _ in range(300)))
        codes = {answer.status_code for answer in answers}
        assert 200 in codes
        assert codes <= {200, 429, 503}, codes

    async def swap(self) -> None:
        """To the other version; refused while that one still drains from the swap before."""
        other = "v2" if self.served == "v1" else "v1"
        answer = await self.caller.post("/api/deployments/demo/activate", json={"version": other})
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.status_code == 409:
            assert "DRAINING" in answer.text or "activating" in answer.text
        else:
            self.served = other

    async def over(self) -> None:
        """Wait until all is well again."""

        def is_well(version: Json) -> bool:
            return [r["state"] for r in version["replicas"]] == ["READY"] * 2

        await until(lambda: self.caller.version("demo", self.served), is_well, timeout_s=60)

    async def _worker(self) -> int:
        replicas = (await self.caller.version("demo", self.served))["replicas"]
        return int(self.draw.choice([r["pid"] for r in replicas if r["state"] == "READY"]))


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 300)
async def test_in_a_storm_of_faults_every_request_is_answered_once_or_told_why(
    caller: Caller, gateway: Gateway
) -> None:
    draw = random.Random(11)
    storm = Storm(caller, gateway, draw)
    for version in ("v1", "v2"):
        await caller.load("demo", version, MODEL, replicas=2)
    await caller.put("/api/deployments/demo/policy", json={"max_in_flight": 16, "max_queue": 30})
    faults = [storm.kill, storm.hang, storm.stumble, storm.garbage, storm.flood, storm.swap]
    until_s = time.monotonic() + SECONDS
    num_faults = 0
    async with Load(caller).running(CLIENTS) as load:
        while time.monotonic() < until_s:
            await draw.choice(faults)()
            num_faults += 1
            await load.answered(20, timeout_s=60)
            await storm.over()
    load.check()
    assert load.counts["cut"] == 0
    assert [why for why in load.told() if not EXPECTED.search(why)] == []
    assert load.counts["answered"] > 20 * num_faults
    assert gateway.fleet.in_flight == 0
    print(f"{num_faults} faults: {dict(load.counts)}, told: {dict(load.told())}")  # noqa: T201
