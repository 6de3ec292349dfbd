"""`Client` and `AsyncClient` against a real gateway: every verb, and the errors as they are meant."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jupyter_dsserve import AsyncClient, Client
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.options import shown
from jupyter_dsserve.notebook.verbs import Verbs
from jupyter_dsserve.notebook.verbs.talk import Send, error_in
from jupyter_dsserve.notebook.verbs.versions import only_version, version_for
from jupyter_dsserve.notebook.views import Answer, Version
from jupyter_dsserve.protocol.errors import (
    Conflict,
    DSServeError,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthorized,
    Unavailable,
)
from jupyter_dsserve.protocol.records import GatewayAddress, GatewayState, VersionState, VersionStats
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine.test_loop import toy_text
from tests.support import JupyterServer, until

TOY = "toy:step_s=0.001"


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(gateway.url, gateway.admin_key)
    yield client
    await client.aclose()


def in_thread(gateway: Gateway, work: Callable[[Client], Any]) -> Any:
    """The blocking client, away from the loop that the gateway runs on."""

    def with_client() -> Any:
        client = Client(gateway.url, gateway.admin_key)
        try:
            return work(client)
        finally:
            client.close()

    return asyncio.to_thread(with_client)


async def test_a_pool_that_is_used_up_is_named_and_works_again_when_one_is_free(gateway: Gateway) -> None:
    client = AsyncClient(gateway.url, gateway.admin_key, max_connections=2, acquire_timeout_s=0.2)
    try:
        await client.load("demo", "toy:step_s=0.02")
        asking = [asyncio.create_task(client.generate("demo", "hello", max_tokens=150)) for _ in range(2)]
        await until(lambda: gateway.fleet.in_flight == 2)
        with pytest.raises(Unavailable, match=r"acquire_timeout_s of 0\.2 s: all 2 of its pool are in use"):
            await client.generate("demo", "hello")
        assert {(await each).text for each in asking} == {toy_text("hello", 150)}
        assert (await client.generate("demo", "hello", max_tokens=5)).text == toy_text("hello", 5)
    finally:
        await client.aclose()


async def test_a_blocking_pool_of_one_lets_threads_take_turns(gateway: Gateway) -> None:
    def ask(client: Client) -> list[str]:
        with ThreadPoolExecutor(4) as threads:
            return [a.text for a in threads.map(lambda _: client.generate("demo", "hello", max_tokens=5), range(8))]

    def with_client() -> list[str]:
        client = Client(gateway.url, gateway.admin_key, max_connections=1)
        try:
            client.load("demo", TOY)
            return ask(client)
        finally:
            client.close()

    assert await asyncio.to_thread(with_client) == [toy_text("hello", 5)] * 8


async def test_a_model_is_loaded_with_its_progress_and_asked(client: AsyncClient) -> None:
    seen: list[Version] = []
    loaded = await client.load("demo", "toy:load_s=3", note="first", on_progress=seen.append)
    assert (loaded.id, loaded.state, loaded.note) == ("demo@v1", VersionState.READY, "first")
    assert any(0 < v.progress < 1 for v in seen)
    answer = await client.generate("demo", "hello", max_tokens=7)
    assert (answer.text, answer.version, answer.completion_tokens) == (toy_text("hello", 7), "v1", 7)
    chat = await client.generate("demo@v1", [{"role": "user", "content": "hi"}], max_tokens=6)
    assert chat.text == toy_text("user: hi\n", 6)


async def test_versions_are_named_by_themselves_and_the_same_model_is_not_loaded_twice(client: AsyncClient) -> None:
    assert (await client.load("demo", TOY)).version == "v1"
    assert (await client.load("demo", "toy:")).version == "v2"
    assert (await client.load("demo", TOY)).version == "v1"
    assert [v.version for v in (await client.deployment("demo")).versions] == ["v1", "v2"]
    await client.load("demo", "toy:step_s=0.002", "special", num_threads=1)
    assert (await client.load("demo", "toy:step_s=0.002")).version == "special", "options that are not named stay"
    with pytest.raises(Conflict, match="num_threads is 1, not 2"):
        await client.load("demo", "toy:step_s=0.002", num_threads=2)


async def test_a_load_that_fails_says_why(client: AsyncClient) -> None:
    with pytest.raises(Unavailable, match=r"demo@bad is FAILED: .*/bin/false"):
        await client.load("demo", TOY, "bad", python="/bin/false")


async def test_traffic_is_routed_activated_unloaded_and_loaded_again(client: AsyncClient) -> None:
    await client.load("demo", TOY)
    await client.load("demo", "toy:")
    routed = await client.route("demo", {"v1": 90, "v2": 10})
    assert routed.weights == {"v1": 90, "v2": 10}
    with pytest.raises(Conflict, match="revision"):
        await client.route("demo", {"v1": 50, "v2": 50}, revision=routed.revision - 1)
    assert (await client.route("demo")).weights == {"v1": 90, "v2": 10}
    after = await client.activate("demo", "v2")
    assert after.weights == {"v2": 100}
    unloaded = await client.unload("demo")
    assert {v.state for v in unloaded.versions} == {VersionState.STOPPED}
    with pytest.raises(InvalidRequest, match="demo@v1, demo@v2"):
        await client.load("demo")
    assert (await client.load("demo", version="v2")).is_ready
    assert "ready on cpu" in "\n".join((await client.logs("demo", "v2"))["demo@v2#0"])
    events = await client.history()
    assert "activated" in [event.kind for event in events]
    assert list(await client.history(since=events[-2].id)) == list(events)[-1:]
    assert list(await client.history(since=events[-1].at)) == [event for event in events if event.at >= events[-1].at]
    assert not list(await client.history(since=time.time() + 1000))
    assert list(await client.history(until=events[2].at, before=events[2].id)) == list(events)[:2]
    await client.delete("demo", "v1")
    await until(lambda: client.status(), lambda s: [v.version for v in s.deployments[0].versions] == ["v2"])


async def test_an_activation_whose_load_fails_is_an_error_and_the_old_one_serves(client: AsyncClient) -> None:
    await client.load("demo", TOY)
    with pytest.raises(Unavailable, match="FAILED"):
        await client.load("demo", TOY, "bad", python="/bin/false")
    with pytest.raises(Unavailable, match="demo@bad is FAILED"):
        await client.activate("demo", "bad")
    assert (await client.generate("demo", "x", max_tokens=1)).version == "v1"


async def test_it_streams_and_leaving_the_loop_cancels_the_request(client: AsyncClient, gateway: Gateway) -> None:
    await client.load("demo", TOY)
    stream = client.stream("demo", "hello", max_tokens=7)
    assert "".join([piece async for piece in stream]) == toy_text("hello", 7)
    assert stream.answer is not None
    assert stream.answer.completion_tokens == 7
    assert stream.answer.first_token_s is not None

    def first_three(blocking: Client) -> str:
        return "".join(itertools.islice(blocking.stream("demo", "hello", max_tokens=100_000), 3))

    assert toy_text("hello", 100).startswith(await in_thread(gateway, first_three))
    await until(lambda: gateway.fleet.version("demo", "v1").replicas[0].in_flight == 0)


async def test_the_blocking_client_does_the_same(gateway: Gateway) -> None:
    def session(client: Client) -> Answer:
        client.load("demo", TOY)
        assert client.status().deployments[0].versions[0].is_ready
        return client.generate("demo", "hello", max_tokens=7)

    assert (await in_thread(gateway, session)).text == toy_text("hello", 7)


async def test_events_come_with_the_numbers_of_each_second(client: AsyncClient) -> None:
    await client.load("demo", TOY)
    async for record in client.events():
        if isinstance(record, VersionStats):
            assert (record.deployment, record.version, record.state) == ("demo", "v1", VersionState.READY)
            break


async def test_errors_keep_their_class_and_words(client: AsyncClient, gateway: Gateway) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        await client.generate("nobody", "x")
    with pytest.raises(NotFound, match="'nobody'"):
        await client.deployment("nobody")
    with pytest.raises(InvalidRequest, match="max_tokens"):
        await client.generate("demo", "x", max_tokens=0)
    stranger = AsyncClient(gateway.url, "dsk_wrong")
    with pytest.raises(Unauthorized, match="not valid here"):
        await stranger.status()
    nobody = AsyncClient("http://127.0.0.1:1", "x")
    with pytest.raises(Unavailable, match=r"nothing answers at http://127\.0\.0\.1:1"):
        await nobody.deployment("demo")
    await stranger.aclose()
    await nobody.aclose()


async def test_what_answers_with_a_redirect_is_an_error_also_to_a_stream() -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlogin")
        writer.close()

    listener = await asyncio.start_server(redirect, "127.0.0.1", 0)
    client = AsyncClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", "key")
    with pytest.raises(DSServeError, match="HTTP 302: login"):
        await client.deployment("demo")
    with pytest.raises(DSServeError, match="HTTP 302: login"):
        await anext(aiter(client.stream("demo", "x")))
    await client.aclose()
    listener.close()


def test_a_key_is_shown_nowhere_and_may_have_the_line_break_of_its_file() -> None:
    address = GatewayAddress("http://here", "dsk_secret")
    assert "dsk_secret" not in repr(address)
    first = next(Verbs("http://here", "dsk_secret\n").deployment("demo"))
    assert isinstance(first, Send)
    assert first.request.headers["Authorization"] == "Bearer dsk_secret"


async def test_a_key_is_made_asks_and_is_revoked_and_its_repr_has_it_not(client: AsyncClient, gateway: Gateway) -> None:
    await client.load("demo", TOY)
    made = await client.key("app", deployments=["demo"], rate=100, concurrency=2, priority=3)
    assert made.key.startswith("dsk_")
    assert made.key not in repr(made)
    assert (made.record.deployments, made.record.rate, made.record.priority) == (("demo",), 100, 3)
    app = AsyncClient(gateway.url, made.key)
    try:
        assert (await app.generate("demo", "hello", max_tokens=5)).text == toy_text("hello", 5)
        with pytest.raises(Forbidden, match="only asks models"):
            await app.status()
        assert await client.keys() == [made.record]
        assert await client.revoke(made.id) == []
        with pytest.raises(Unauthorized, match="revoked"):
            await app.generate("demo", "hello")
    finally:
        await app.aclose()


async def test_a_load_goes_on_when_the_gateway_crashes_meanwhile(tmp_path: Path) -> None:
    with JupyterServer(tmp_path / "home") as server:
        async with server.caller() as caller:
            hub = {"JUPYTERHUB_SERVICE_URL": f"{server.url}/", "JUPYTERHUB_API_TOKEN": server.token}
            with pytest.MonkeyPatch.context() as patch:
                for name, value in hub.items():
                    patch.setenv(name, value)
                client = AsyncClient()
                seen: list[Version] = []  # by the client: killed before it is answered, the load would be lost
                loading = asyncio.create_task(client.load("demo", "toy:load_s=2", on_progress=seen.append))
                await until(lambda: any(v.state is VersionState.LOADING for v in seen))
                os.kill((await caller.get("/gateway")).json()["pid"], signal.SIGKILL)
                assert (await loading).is_ready
                assert (await client.generate("demo", "x", max_tokens=1)).version == "v1"
                await client.aclose()


def test_a_directory_or_file_is_sent_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway has another working directory than the kernel."""
    (tmp_path / "model").mkdir()
    (tmp_path / "m.onnx").touch()
    monkeypatch.chdir(tmp_path)
    here = [(name, str(tmp_path / name)) for name in ("model", "m.onnx")]
    for model, sent in (*here, ("org/name", "org/name"), ("org/m.gguf", "org/m.gguf")):
        first = next(Verbs("http://here", "key").load("demo", model, "v1"))
        assert isinstance(first, Send)
        assert json.loads(first.request.content)["model"] == sent


async def test_the_kernels_interpreter_runs_the_worker(client: AsyncClient) -> None:
    assert (await client.load("demo", TOY, python="kernel")).spec.python == sys.executable


async def test_the_status_of_a_named_gateway_is_that_it_runs(client: AsyncClient, gateway: Gateway) -> None:
    status = await client.status()
    assert (status.gateway.state, status.gateway.url) == (GatewayState.RUNNING, gateway.url)
    assert status.deployments == []


def test_both_clients_have_the_same_verbs_with_the_same_signatures() -> None:
    verbs = [name for name, _ in inspect.getmembers(Verbs, inspect.isgeneratorfunction) if name[0] != "_"]
    verbs.remove("send")
    assert len(verbs) > 10
    for name in verbs:
        ours = shown(inspect.signature(getattr(Verbs, name)))
        for kind in (Client, AsyncClient):
            assert inspect.signature(getattr(kind, name)).parameters == ours.parameters
    assert str(inspect.signature(Client.status).return_annotation) == "Status"


def _version(name: str, model: str) -> Version:
    return Version("demo", name, VersionState.READY, 1, "", "", 0, [], WorkerSpec(model), "", 0)


def test_the_next_version_is_the_next_number() -> None:
    assert version_for([], "m") == "v1"
    known = [_version("v1", "a"), _version("v9", "b"), _version("best", "c")]
    assert version_for(known, "new") == "v10"
    assert version_for(known, "c") == "best"
    assert only_version("demo", known[:1]) == "v1"
    with pytest.raises(InvalidRequest, match="name the model"):
        only_version("demo", [])


@pytest.mark.parametrize(
    ("status", "content", "kind", "said"),
    [
        (409, b'{"error": {"type": "Conflict", "message": "no"}}', Conflict, "no"),
        (404, b'{"error": {"type": "invalid_request_error", "message": "no", "param": "model"}}', NotFound, "no"),
        (503, b'{"message": "starting", "reason": null}', Unavailable, "starting"),
        (502, b"<html>proxy</html>", Exception, "HTTP 502: <html>proxy"),
    ],
)
def test_errors_are_read_in_every_shape(status: int, content: bytes, kind: type[Exception], said: str) -> None:
    found = error_in(status, content)
    assert isinstance(found, kind)
    assert said in found.message


async def test_a_load_test_is_asked_of_either_client(client: AsyncClient, gateway: Gateway) -> None:
    await client.load("demo", TOY)
    report = await client.bench("demo", concurrency=2, requests=10, output_tokens=5)
    assert report.points[0].answered == 10
    (point,) = (await in_thread(gateway, lambda c: c.bench("demo@v1", rate="50", requests=10, output_tokens=5))).points
    assert point.answered == 10
    with pytest.raises(InvalidRequest, match="did you mean seconds"):
        await client.bench("demo", second=1)


async def test_a_validation_that_is_cancelled_ends(client: AsyncClient) -> None:
    await client.load("demo", TOY)

    def is_pressed() -> bool:
        return any(thread.name == "dsserve-bench" for thread in threading.enumerate())

    running = asyncio.create_task(client.validate("demo@v1", "demo@v1", seconds=60))
    await until(is_pressed)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not is_pressed())
    await asyncio.sleep(0.3)
    assert not is_pressed(), "no round comes after"
