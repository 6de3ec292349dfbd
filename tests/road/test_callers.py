"""Callers that misbehave: they vanish, read nothing, send slowly, or are very many."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_dsserve.gateway.connections import MAX_HEADER_BYTES, MAX_HEADERS, Listening, Taken, looked
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.records import Event
from tests.bench.bench_idle import Readers, measure
from tests.support import Caller, Command, until

ENDLESS = {"model": "demo", "prompt": "hello", "max_tokens": 500_000, "stream": True}
# Opens so many streams, reads one piece of each, says so, and reads on.
CLIENT = """
import http.client, json, sys, time
address, key, num, body = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4]
calls = [http.client.HTTPConnection(address) for _ in range(num)]
for call in calls:
    call.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
answers = [call.getresponse() for call in calls]
assert all(answer.status == 200 and answer.readline() for answer in answers)
print("begun", flush=True)
while True:
    for answer in answers:
        answer.readline()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    options = ("--load", "demo=toy:step_s=0.005", "--DSServeApp.stall_s=1", "--no-access-log")
    with Command(tmp_path_factory.mktemp("callers"), *options) as command:
        yield command


@pytest.fixture
async def caller(command: Command) -> AsyncIterator[Caller]:
    async with await command.caller() as caller:
        await caller.settled("demo", "v1")
        yield caller


async def metric(caller: Caller, name: str) -> float:
    text = (await caller.get("/metrics")).text
    return float(re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)[0])


def address(caller: Caller) -> tuple[str, int]:
    return str(caller.base_url.host), caller.base_url.port or 0


async def asked(at: tuple[str, int], key: str, body: Any, **options: Any) -> asyncio.StreamWriter:
    """A request for completions whose answer is not read."""
    reader, writer = await asyncio.open_connection(*at, **options)
    reader._transport.pause_reading()  # type: ignore[attr-defined]  # else asyncio reads ahead
    sent = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(sent)}\r\n"
    writer.write(head.encode() + b"\r\n" + sent)
    return writer


@pytest.mark.parametrize("num", [1, 64])
async def test_what_killed_clients_were_being_told_ends_at_once(num: int, command: Command, caller: Caller) -> None:
    address = f"{caller.base_url.host}:{caller.base_url.port}"
    arguments = [sys.executable, "-c", CLIENT, address, command.key, str(num), json.dumps(ENDLESS)]
    client = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"begun\n"
        assert await metric(caller, "dsserve_in_flight") == num
    finally:
        client.kill()
    # Left alone they would run for an hour.
    await until(lambda: metric(caller, "dsserve_in_flight"), lambda running: running == 0)
    await client.wait()
    await until(lambda: metric(caller, "dsserve_batch_sequences"), lambda running: running == 0)


async def test_a_reader_that_reads_nothing_is_cut_and_holds_little_memory_until_then(
    command: Command, caller: Caller
) -> None:
    process = psutil.Process(command.pid)
    assert (await caller.complete(n=64, max_tokens=50)).status_code == 200
    before, cut = process.memory_info().rss, await metric(caller, 'dsserve_connections_cut_total{reason="stalled"}')
    writer = await asked(address(caller), command.key, ENDLESS | {"n": 64}, limit=1)
    try:
        await until(lambda: metric(caller, "dsserve_in_flight"), lambda running: running == 64)
        most = 0

        async def running() -> float:
            nonlocal most
            most = max(most, process.memory_info().rss - before)
            return await metric(caller, "dsserve_in_flight")

        reading = asyncio.create_task(caller.complete(max_tokens=300))
        await until(running, lambda running: running == 0, 40)
        assert (await reading).json()["usage"]["completion_tokens"] == 300
        assert await metric(caller, 'dsserve_connections_cut_total{reason="stalled"}') == cut + 1
    finally:
        writer.close()
    assert most < 16 << 20, most


def test_what_counts_as_taking_nothing() -> None:
    assert looked(Taken(5, 1.0), 5, False, 9.0) is None
    assert looked(None, 5, True, 2.0) == Taken(5, 2.0)
    assert looked(Taken(5, 2.0), 5, True, 9.0) == Taken(5, 2.0)
    assert looked(Taken(5, 2.0), 6, True, 9.0) == Taken(6, 9.0)


@asynccontextmanager
async def started(path: Path, **settings: Any) -> AsyncIterator[Gateway]:
    gateway = Gateway(GatewayConfig(path, port=0, **settings))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("head", [HEAD, b"GET /health/l"])
async def test_a_sender_that_trickles_is_cut(head: bytes, tmp_path: Path) -> None:
    async with started(tmp_path, idle_s=0.5, body_s=0.5) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
        begun, sent = time.monotonic(), 0
        writer.write(head)
        ended = asyncio.create_task(reader.read())
        while not ended.done() and sent < 90:
            writer.write(b"x")
            sent += 1
            await asyncio.wait([ended], timeout=0.1)
        assert ended.done()
        took_s = time.monotonic() - begun
        writer.close()
        assert 0.4 < took_s < 8, took_s


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({f"X-{number}": "x" for number in range(MAX_HEADERS + 1)}, str(MAX_HEADERS)),
        ({"X-Long": "x" * MAX_HEADER_BYTES}, str(MAX_HEADER_BYTES)),
    ],
)
async def test_too_many_or_too_large_headers_get_a_431_that_names_the_limit(
    headers: dict[str, str], word: str, caller: Caller
) -> None:
    for method, path in (("POST", "/v1/completions"), ("GET", "/health/live")):
        answer = await caller.request(method, path, headers=headers, json={})
        assert (answer.status_code, word in answer.json()["error"]["message"]) == (431, True)
    assert (await caller.complete()).status_code == 200


async def test_a_prompt_beyond_the_context_is_refused_by_its_length(caller: Caller) -> None:
    answer = await caller.complete(prompt="x" * (1 << 20))
    assert (answer.status_code, "1048576" in answer.text) == (400, True)


async def test_beyond_the_most_connections_a_new_one_is_told_503_until_one_has_gone(tmp_path: Path) -> None:
    async with started(tmp_path, max_connections=2) as gateway:
        held = [await asyncio.open_connection("127.0.0.1", port_of(gateway)) for _ in range(2)]
        async with Caller(gateway.url, gateway.admin_key) as caller:
            refused = await caller.get("/health/live")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "too many connections" in refused.text
            for _, writer in held:
                writer.close()

            async def status() -> int:
                return (await caller.get("/health/live")).status_code

            await until(status, lambda status: status == 200)


async def test_while_no_file_is_left_new_connections_wait_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path) as gateway, Caller(gateway.url, gateway.admin_key) as caller:
        num_tried = 0

        def none_left(_self: Listening) -> None:
            nonlocal num_tried
            num_tried += 1
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(Listening, "_accept", none_left, raising=False)
            asking = asyncio.create_task(caller.get("/health/live"))
            await until(lambda: num_tried > 0)
            await asyncio.sleep(0.3)
            assert num_tried <= 2
        assert (await asking).status_code == 200


async def test_a_listener_that_does_not_read_holds_a_bounded_part_of_what_happens_and_is_cut(tmp_path: Path) -> None:
    async with started(tmp_path, stall_s=0) as gateway, Caller(gateway.url, gateway.admin_key) as caller:
        reads = caller.stream("GET", "/api/events")
        lines = (await reads.__aenter__()).aiter_lines()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway), limit=1024)
        ask = f"GET /api/events HTTP/1.1\r\nAuthorization: Bearer {gateway.admin_key}\r\nHost: x\r\n\r\n"
        writer.write(ask.encode())
        await reader.readuntil(b"\r\n")
        feed = gateway.context.feed
        await until(lambda: feed.num_listeners == 2)
        item = Event(1 << 40, 0.0, "test", "", "", "", "x" * 10_000)
        num_told = num_read = 0
        while feed.num_listeners == 2 and num_told < 5000:
            gateway.fleet.events.publish(item)
            num_told += 1
            while num_read < num_told:
                num_read += (await anext(lines)).startswith("data:")
        writer.close()
        assert 1000 < num_told < 3000
        await reads.__aexit__(None, None, None)


async def test_an_idle_listener_takes_little_memory(command: Command, caller: Caller) -> None:
    process, readers = psutil.Process(command.pid), Readers(str(caller.base_url), command.key)
    before = process.memory_info().rss
    await readers.connect(100)
    try:
        await asyncio.sleep(1.2)  # each has been told of every version once
        assert await metric(caller, "dsserve_connections") >= 100
        each = (process.memory_info().rss - before) / 100
    finally:
        await readers.close()
    assert each < 100_000, each
    await until(lambda: metric(caller, "dsserve_connections"), lambda num: num < 10)


@pytest.mark.long
async def test_a_thousand_idle_listeners_take_little_memory_and_slow_nobody_down() -> None:
    found = await measure(1000, rounds=5, seconds=4)
    assert found.bytes_each * 1000 < 100e6, found
    assert found.p99_ratio <= 1.5, found
