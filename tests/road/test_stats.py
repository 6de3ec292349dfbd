"""``/api/stats``: what versions did, minute by minute, also after a restart."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.stats import moment, seconds_of
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.support import Caller, until


async def test_what_a_version_did_is_told_and_outlives_the_gateway(data_dir: Path) -> None:
    gateway = Gateway(GatewayConfig(data_dir, port=0, drain_s=1))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", "toy:step_s=0.001")
        for _ in range(3):
            assert (await caller.complete()).status_code == 200

        async def seen() -> tuple[int, int]:
            told = (await caller.get("/api/stats?deployment=demo&version=v1")).json()
            points = [point for each in told["series"] for point in each["points"]]
            return sum(p["requests"] for p in points), max((p["replicas"] for p in points), default=0)

        await until(seen, lambda found: found == (3, 1))  # it is looked at once a second
        # The minute that runs began before that, and is told all the same. Of one that has just begun nothing is known.
        await until(lambda: caller.get(f"/api/stats?from={time.time() - 0.5}"), lambda told: told.json()["series"])
        for wrong in (
            "from=20260131",
            "from=2026",
            "from=yesterday",
            "from=-5",
            "step=61",
            "step=60&from=0",
            "from=2026-01-02&to=2026-01-01",
        ):
            assert (await caller.get(f"/api/stats?{wrong}")).status_code == 400, wrong
        assert (await caller.get("/api/stats?deployment=other")).json()["series"] == []
    await gateway.stop()
    gateway = Gateway(GatewayConfig(data_dir, port=0, drain_s=1, restore=False))
    await gateway.start()
    client = AsyncClient(gateway.url, gateway.admin_key)
    told = await client.stats("demo", since="1h")
    await client.aclose()
    await gateway.stop()
    (series,) = told.series
    assert sum(point.requests for point in series.points) == 3
    assert sum(point.tokens for point in series.points) == 15
    busy = next(point for point in series.points if point.requests)
    assert busy.p50_s is not None
    assert 0 < busy.p50_s < 5
    assert max(point.replicas for point in series.points) == 1
    assert "demo@v1" in str(told)


def test_moments() -> None:
    now = time.time()
    assert moment("24h", now) == now - 86_400
    assert moment(5, now) == 5.0
    assert moment("2026-01-31T09:00:00Z", now) == moment("2026-01-31T10:00+01:00", now) == 1769850000.0
    assert moment("2026-01-31", now) == datetime(2026, 1, 31).astimezone().timestamp(), "of this machine"
    assert seconds_of("15m", "step") == 900
    with pytest.raises(InvalidRequest, match="step is '15'"):
        seconds_of("15", "step")
    with pytest.raises(InvalidRequest, match="'yesterday'"):
        moment("yesterday", now)
