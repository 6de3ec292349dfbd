"""Through the Jupyter server at /dsserve: everything the gateway answers, as it answers it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import aiohttp
import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from tornado.web import HTTPError
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.run import Bench
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.data_dir import DataDir
from jupyter_dsserve.extension.handlers import ForwardHandler
from jupyter_dsserve.protocol.records import GatewayAddress, GatewayState, GatewayStatus
from tests.engine.test_loop import toy_text
from tests.extension.deny import KNOWN
from tests.support import Caller, Json, JupyterServer, until


@pytest.fixture
def client(server: JupyterServer, through: Caller) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/dsserve/v1", api_key=server.token, max_retries=0)


async def collected(stream: AsyncIterator[Json]) -> list[Json]:
    return [item async for item in stream]


async def running(caller: Caller, name: str = "demo") -> int:
    """Requests on the workers of its v1."""
    return sum(int(r["in_flight"]) for r in (await caller.version(name, "v1"))["replicas"])


async def test_the_openai_client_completes_with_jupyters_token(client: AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(model="demo", prompt="hello", max_tokens=7)
    assert raw.parse().choices[0].text == toy_text("hello", 7)
    assert raw.headers["X-DSServe-Version"] == "v1"
    assert [m.id async for m in client.models.list()] == ["demo"]


async def test_the_responses_api_streams_through_jupyter_too(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="demo", input="hello", max_output_tokens=5, stream=True)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")
    assert kinds.count("response.output_text.delta") > 1


async def test_the_page_of_the_routes_is_there_and_may_style_itself(server: JupyterServer, through: Caller) -> None:
    led = await through.get("/", headers={"Accept": "text/html"})
    assert (led.status_code, led.headers["Location"]) == (303, "docs")
    page = await through.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    [policy] = page.headers.get_list("Content-Security-Policy")
    assert "style-src 'sha256-" in policy
    assert "post_v1_chat_completions" in page.text


async def test_without_its_slash_the_root_leads_to_where_it_is(server: JupyterServer, through: Caller) -> None:
    for method in ("GET", "HEAD"):
        answer = await through.request(method, f"{server.url}/dsserve?a=1")
        assert answer.status_code == 307
        assert f"{server.url}/dsserve/?a=1".endswith(answer.headers["Location"])
        assert answer.headers["Location"] == "/user/a%40b/dsserve/?a=1"


async def test_a_load_test_goes_through_jupyter_below_any_base_url(server: JupyterServer, through: Caller) -> None:
    plan = Plan.read(concurrency=2, requests=4, output_tokens=5)
    report = await Bench(Target.at(f"{server.url}/dsserve", server.token), plan).run()
    assert (report.points[0].answered, report.points[0].errors) == (4, {})


async def test_raw_tensors_go_there_and_back_and_shared_memory_does_not(server: JupyterServer, through: Caller) -> None:
    prompt = InferInput("text_input", [1], "BYTES").set_data_from_numpy(np.array([b"hello"], object))
    told = {"max_tokens": 7, "exclude_input_in_output": True}

    def work() -> None:
        headers = {"Authorization": f"token {server.token}"}
        with InferenceServerClient(f"{server.url.removeprefix('http://')}/dsserve") as client:
            found = client.infer("demo", [prompt], parameters=told, headers=dict(headers))  # the client adds to them
            assert found.as_numpy("text_output").tolist() == [toy_text("hello", 7).encode()]
            with pytest.raises(InferenceServerException, match="straight at its port"):
                client.register_system_shared_memory("r", "any", 8, headers=headers)

    await asyncio.to_thread(work)


async def test_it_streams_token_by_token(client: AsyncOpenAI, through: Caller) -> None:
    await through.load("slow", "v1", "toy:step_s=0.05")
    stream = await client.completions.create(model="slow", prompt="hello", max_tokens=100_000, stream=True)
    pieces = aiter(stream)
    seen = [(await anext(pieces)).choices[0].text for _ in range(10)]
    assert [len(text) for text in seen].count(1) >= 5, (
        "what somebody was too slow for comes in one piece, and only that"
    )
    text = "".join(seen)
    assert text == toy_text("hello", len(text))
    assert await running(through, "slow") == 1, "they came when all was answered, instead of one after the other"
    await stream.response.aclose()


@pytest.mark.parametrize("stream", [True, False])
async def test_it_is_cancelled_on_the_worker_when_the_client_leaves(
    client: AsyncOpenAI, through: Caller, stream: bool
) -> None:
    asking = asyncio.create_task(
        client.completions.create(model="demo", prompt="hello", max_tokens=1_000_000, stream=stream)
    )
    await until(lambda: running(through), lambda n: n == 1)
    if stream:
        await (await asking).response.aclose()  # type: ignore[union-attr]
    else:
        asking.cancel()
    await until(lambda: running(through), lambda n: n == 0)


async def test_it_is_cancelled_too_when_the_client_leaves_while_jupyter_asks_who_it_is(home: Path) -> None:
    options = ("--ServerApp.identity_provider_class=tests.extension.deny.SlowIdentity",)
    with JupyterServer(home, *options, f"--SlowIdentity.token={JupyterServer.token}") as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", "toy:step_s=0.02")
            before = (await caller.get("/api/status")).json()["num_requests"]
            with pytest.raises(httpx.ReadTimeout):
                await caller.post("/v1/completions", json={"model": "demo", "prompt": "x"}, timeout=0.3)
            (home / KNOWN).touch()
            assert (await caller.complete()).status_code == 200  # behind it, by the same way
            after = (await caller.get("/api/status")).json()
            assert after["num_requests"] == before + 1, "the one whose caller had left was asked all the same"
            assert after["in_flight"] == 0


async def test_the_gateways_errors_come_through_as_they_are(through: Caller, client: AsyncOpenAI) -> None:
    missing = await through.complete("nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    late = await through.put("/api/deployments/demo/route", json={"weights": {"v1": 100}, "revision": 99})
    assert late.status_code == 409
    assert late.json()["error"]["type"] == "Conflict"
    assert (await through.put("/v1/completions")).status_code == 405
    assert (await through.post("/v1/completions", content=b"x" * 20_000_000)).status_code == 413


async def test_every_verb_arrives_with_its_body_and_its_query(through: Caller) -> None:
    await through.load("other", "v1", "toy:")
    await through.load("other", "v2", "toy:")
    route = await through.put("/api/deployments/other/route", json={"weights": {"v1": 40, "v2": 60}})
    assert route.json()["weights"] == {"v1": 40, "v2": 60}
    logs = (await through.get("/api/deployments/other/versions/v1/logs", params={"lines": "1"})).json()
    assert logs
    assert all(len(lines) <= 1 for lines in logs.values())
    assert (await through.head("/health/live")).status_code == 200
    assert (await through.delete("/api/deployments/other")).status_code == 202
    slash = await through.get("/api/deployments/a%2Fb%20c")
    assert "'a/b c'" in slash.json()["error"]["message"]


async def test_what_opens_jupyter_does_not_reach_the_gateway(server: JupyterServer, through: Caller) -> None:
    """Seen by a gateway that says what it was sent: ours, at its lock file's address."""
    heard: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\nVary: one\r\nVary: two\r\n"
        writer.write(head + b"Connection: close\r\n\r\n{}")
        writer.close()

    # The test is the gateway of a second user: it holds the lock of the data directory.
    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    with JupyterServer(server.home.parent / "second-user") as other:
        held = DataDir(other.data_dir)
        key = held.admin_key()
        held.announce(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        async with httpx.AsyncClient(trust_env=False, timeout=60) as browser:
            url = f"{other.url}/dsserve/v1/models"
            answer = await browser.get(
                url, params={"token": other.token, "kept": "1 2"}, headers={"Cookie": "c=secret", "X-XSRFToken": "x"}
            )
        held.release()
    listener.close()
    assert answer.status_code == 200
    assert answer.headers.get_list("Vary") == ["one", "two"]
    assert "Set-Cookie" not in answer.headers or "a=b" not in answer.headers["Set-Cookie"]
    # The server listens to the events of what it takes for a gateway too.
    assert any(each.startswith("GET /v1/models?kept=1+2 HTTP/1.1") for each in heard)
    assert all(f"Authorization: Bearer {key}" in each for each in heard)
    assert not any(word in each for word in (other.token, "secret", "XSRF", "Cookie") for each in heard)


async def test_calls_wait_while_the_gateway_starts_and_looking_does_not_start_it(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            for path in (
                "/health",
                "/health/ready",
                "/api/status",
                "/api/events",
                "/metrics",
                "/api/deployments/a%2Fb/versions/v1/logs?lines=9",
            ):
                answer = await caller.get(path)
                assert answer.status_code == 503
                assert "OFF" in answer.json()["message"]
                assert answer.json()["error"]["type"] == "server_error", "OpenAI's clients look there"
                assert answer.headers["Retry-After"] == "2"
            assert (await caller.get("/gateway")).json()["state"] == "OFF"
            answers = await asyncio.gather(*(caller.get("/v1/models") for _ in range(5)))
            assert [a.status_code for a in answers] == [200] * 5
            assert len(server.processes()) == 1


@pytest.mark.parametrize(
    ("path", "method", "is_stranger"),
    [("/dsserve/api/status", "GET", False), ("/dsserve/v1/models", "GET", True), ("/dsserve/v1/x", "POST", True)],
)
async def test_looking_at_a_gateway_that_ends_meanwhile_does_not_start_another(
    path: str, method: str, is_stranger: bool
) -> None:
    """It drains: its address still stands in the lock file, but nobody listens there; then the lock is free."""

    keeper = Mock(address=AsyncMock(side_effect=AssertionError("it was started")))
    keeper.running.side_effect = chain([GatewayAddress("http://127.0.0.1:1", "key")], repeat(None))
    keeper.status.return_value = GatewayStatus(GatewayState.OFF)

    async def refused(*_: object) -> None:
        raise aiohttp.ClientConnectorError(Mock(), OSError("refused"))

    extension = SimpleNamespace(keeper=keeper, start_wait_s=5.0, forwarder=SimpleNamespace(send=refused))
    request = SimpleNamespace(path=path, method=method)
    handler: Any = SimpleNamespace(
        request=request, base_url="/", extension=extension, is_stranger=is_stranger, address=keeper.address
    )
    with pytest.raises(HTTPError) as fault:
        await ForwardHandler._ask(handler)
    assert fault.value.status_code == 503
    assert "OFF" in str(fault.value.log_message)


async def test_calls_say_that_it_is_still_starting_when_their_time_is_over(home: Path) -> None:
    with JupyterServer(home, "--DSServeExtension.start_wait_s=0.1") as server:
        async with server.caller() as caller:
            answer = await caller.get("/v1/models")
            assert answer.status_code == 503
            assert "still starting after 0.1 s" in answer.json()["message"]
            await until(lambda: caller.get("/gateway"), lambda a: a.json()["state"] == "RUNNING")
            assert (await caller.get("/v1/models")).status_code == 200


@pytest.mark.parametrize(("section", "is_told"), [("DSServeExtention", True), ("ServerExtensionApp", False)])
def test_a_misspelt_section_of_the_servers_settings_is_told(home: Path, section: str, is_told: bool) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config/jupyter_server_config.py").write_text(f"c.{section}.autostart = True\n")
    with JupyterServer(home) as server:
        assert server.url
        said = server.log_path.read_text()
    assert (f"the settings of {section} hold for nothing here: did you mean DSServeExtension?" in said) is is_told


async def test_a_gateway_that_cannot_start_says_why(home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data/dsserve").write_text("in the way")
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            answer = await caller.get("/v1/models")
            assert answer.status_code == 503
            assert "dsserve cannot be used" in answer.json()["message"]
            status = (await caller.get("/gateway")).json()
            assert status["state"] == "FAILED"
            assert "dsserve cannot be used" in status["reason"]
            os.unlink(home / "data/dsserve")
            assert (await caller.get("/v1/models")).status_code == 200


async def test_an_answer_that_the_gateway_could_not_finish_is_cut_off(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", "toy:step_s=0.02")
            pid = (await caller.get("/gateway")).json()["pid"]
            stream = caller.stream_complete(max_tokens=100_000)
            await anext(stream)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                await collected(stream)


async def test_events_come_through(through: Caller) -> None:
    seen: list[Json] = []
    async with through.stream("GET", "/api/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                break
    assert seen[0]["deployment"]
