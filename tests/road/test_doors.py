"""Pages from elsewhere, and too many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.support import Caller, held, until

HERE, ELSEWHERE = "https://app.example", "https://evil.example"


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Caller]:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, cors_origins=(HERE,), max_calls=2))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        yield caller
    await gateway.stop()


def allowed(answer: httpx.Response) -> str | None:
    return answer.headers.get("Access-Control-Allow-Origin")


async def test_no_page_from_elsewhere_may_read_anything_unless_the_settings_say_so(caller: Caller) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("OPTIONS", "/v1/completions")):
        answer = await caller.request(method, path, headers={"Origin": HERE})
        assert allowed(answer) is None
        assert method != "OPTIONS" or answer.status_code == 405


async def test_a_page_that_is_named_may_ask_and_read_errors_too_and_others_may_not(guarded: Caller) -> None:
    await guarded.load("demo", "v1", "toy:step_s=0")
    body = {"model": "demo", "prompt": "x", "max_tokens": 5}
    for model, key, status in (("demo", {}, 200), ("demo", {"Authorization": "Bearer wrong"}, 401), ("no", {}, 404)):
        mine = await guarded.post("/v1/completions", json=body | {"model": model}, headers=key | {"Origin": HERE})
        assert (mine.status_code, allowed(mine), mine.headers["Vary"]) == (status, HERE, "Origin")
        other = await guarded.post("/v1/completions", json=body | {"model": model}, headers=key | {"Origin": ELSEWHERE})
        assert (other.status_code, allowed(other)) == (status, None)


async def test_a_browsers_question_before_it_sends_the_key_needs_none(guarded: Caller) -> None:
    async with Caller(str(guarded.base_url), "none") as browser:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        answer = await browser.options("/v1/completions", headers={"Origin": HERE, **asked})
        assert (answer.status_code, allowed(answer), answer.content) == (204, HERE, b"")
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        assert (await browser.options("/v1/completions", headers={"Origin": ELSEWHERE, **asked})).status_code == 405


async def test_beyond_max_calls_the_next_is_refused_until_one_has_ended(guarded: Caller) -> None:
    await guarded.load("demo", "v1", "toy:step_s=0.01")
    with held((await guarded.version("demo", "v1"))["replicas"][0]["pid"]):
        running = [asyncio.create_task(guarded.complete(max_tokens=40)) for _ in range(2)]
        await until(lambda: guarded.get("/api/status"), lambda answer: answer.json()["in_flight"] == 2)
        refused = await guarded.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "2 calls run on this gateway already" in refused.text
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
    for _ in range(3):
        assert (await guarded.complete()).status_code == 200
