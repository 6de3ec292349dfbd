"""The gateway's life under Jupyter servers: one of a user, back after a crash, never left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from pathlib import Path

import httpx
import pytest

from jupyter_dsserve.extension.app import ACTIVITY_S
from jupyter_dsserve.extension.keeper import Keeper
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.engine.test_loop import toy_text
from tests.support import Caller, Command, Json, JupyterServer, is_running, until

TOY = "toy:step_s=0.001"


async def state(caller: Caller) -> Json:
    return (await caller.get("/gateway")).json()


async def successor(caller: Caller, before: Json) -> Json:
    """The gateway that comes after the one that was lost. A busy machine starts one in seconds, and it may take two."""
    return await until(
        lambda: state(caller), lambda s: s["state"] == "RUNNING" and s["pid"] != before["pid"], timeout_s=60
    )


async def test_a_gateway_that_crashed_comes_back_at_its_address_with_what_ran(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", TOY)
            await caller.load("demo", "v2", TOY)
            await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 70, "v2": 30}})
            before = await state(caller)
            os.kill(before["pid"], signal.SIGKILL)
            # Nobody asks for it meanwhile: it comes back because it was there.
            after = await successor(caller, before)
            assert after["url"] == before["url"]
            for version in ("v1", "v2"):
                await caller.settled("demo", version, "READY")
            assert (await caller.get("/api/deployments/demo")).json()["weights"] == {"v1": 70, "v2": 30}


async def test_it_comes_back_with_what_ran_although_its_port_was_taken_meanwhile(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", TOY)
            before = await state(caller)
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.process.send_signal(signal.SIGSTOP)  # or the next gateway may be faster than the thief
                os.kill(before["pid"], signal.SIGKILL)
                await until(lambda: _is_bound(thief, int(before["url"].rpartition(":")[2])))
                server.process.send_signal(signal.SIGCONT)
                after = await successor(caller, before)
            assert after["url"] != before["url"]
            await caller.settled("demo", "v1", "READY")


def _is_bound(thief: socket.socket, port: int) -> bool:
    try:
        thief.bind(("127.0.0.1", port))
    except OSError:
        return False
    thief.listen()
    return True


async def test_a_gateway_that_is_told_to_end_stays_ended_until_it_is_used(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", TOY)
            os.kill((await state(caller))["pid"], signal.SIGTERM)
            await until(lambda: state(caller), lambda s: s["state"] == "OFF")
            assert server.processes() == []
            assert (await caller.version("demo", "v1"))["state"] == "STOPPED"


async def test_whatever_the_gateway_writes_is_read_to_its_end(home: Path) -> None:
    """Through a pipe: if nobody read on, the gateway would stand still at its next words, and so would its end."""
    keeper = Keeper(GatewayConfig(home), 1.0, logging.getLogger("test"))
    pipe, last_words = asyncio.StreamReader(), deque[str](maxlen=5)
    pipe.feed_data(b"x" * 200_000 + b"\xff\nlast words\n")
    pipe.feed_eof()
    await asyncio.wait_for(keeper._listen(pipe, last_words), 5)
    assert last_words[-1] == "last words"
    assert all(len(line) <= 1000 for line in last_words)


async def test_a_lock_file_with_rubbish_in_it_is_no_hindrance(home: Path) -> None:
    (home / "data/dsserve").mkdir(parents=True)
    (home / "data/dsserve/gateway.lock").write_text("{rubbish")
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            assert (await state(caller))["state"] == "OFF"
            assert (await caller.get("/v1/models")).status_code == 200


async def test_a_new_server_knows_what_was_registered_and_loads_nothing_by_itself(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", TOY)
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            assert (await state(caller))["state"] == "OFF"
            assert (await caller.get("/api/deployments/demo/versions/v1")).json()["state"] == "STOPPED"
            await caller.load("demo", "v1", TOY)  # the same again is no conflict
            assert (await caller.complete()).json()["choices"][0]["text"] == toy_text("hello", 5)
    with JupyterServer(home, "--DSServeExtension.autostart=True") as server:
        async with server.caller() as caller:
            await until(lambda: state(caller), lambda s: s["state"] == "RUNNING")
            await caller.settled("demo", "v1", "READY")


async def test_a_crash_after_a_quiet_start_brings_back_only_what_was_loaded_since(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("old", "v1", TOY)
    with JupyterServer(home) as server:
        async with server.caller() as caller:
            await caller.load("new", "v1", TOY)
            before = await state(caller)
            os.kill(before["pid"], signal.SIGKILL)
            await successor(caller, before)
            await caller.settled("new", "v1", "READY")
            assert (await caller.version("old", "v1"))["state"] == "STOPPED"


async def test_a_second_server_of_the_user_shows_the_firsts_and_takes_over_with_an_empty_one(home: Path) -> None:
    with JupyterServer(home) as second:
        with JupyterServer(home) as first:
            async with first.caller() as one, second.caller() as two:
                await one.load("demo", "v1", TOY)
                assert [d["name"] for d in (await two.get("/api/deployments")).json()] == ["demo"]
                assert (await two.complete()).json()["choices"][0]["text"] == toy_text("hello", 5)
                assert ((await state(one))["is_attached"], (await state(two))["is_attached"]) == (False, True)
                assert second.processes() == []
        async with second.caller() as two:
            assert (await state(two))["state"] == "OFF"
            assert (await two.version("demo", "v1"))["state"] == "STOPPED"
            assert (await state(two))["is_attached"] is False
            assert len(second.processes()) == 1


async def test_whoever_starts_it_after_a_crash_brings_back_what_ran(home: Path) -> None:
    """The owner waits a moment before it does; a second server whose use comes first does it too."""
    with JupyterServer(home) as first, JupyterServer(home) as second:
        async with first.caller() as one, second.caller() as two:
            await one.load("demo", "v1", TOY)
            assert (await two.complete()).status_code == 200
            pid = (await state(one))["pid"]
            os.kill(pid, signal.SIGKILL)
            found = await two.get("/v1/models")
            assert found.status_code == 200, found.text
            await two.settled("demo", "v1", "READY")
            answered = await one.complete()
            assert answered.status_code == 200, answered.text
            # Both may have started one; the slower finds the directory held, and goes.
            await until(lambda: len(first.processes()) + len(second.processes()) == 2)


async def test_a_running_jupyter_dsserve_on_the_directory_is_used(home: Path) -> None:
    with Command(home / "data/dsserve", "--load", f"demo={TOY}") as command:
        async with await command.caller() as direct:
            await direct.settled("demo", "v1", "READY")
            with JupyterServer(home) as server:
                async with server.caller() as caller:
                    assert (await state(caller))["is_attached"]
                    assert (await caller.complete()).status_code == 200
            assert (await direct.complete()).status_code == 200, "it was stopped with a server that did not start it"
        command.signal(signal.SIGTERM)
        command.output()


async def _shut_down_by_its_route(server: JupyterServer) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        await client.post(f"{server.url}/api/shutdown", headers={"Authorization": f"token {server.token}"})


@pytest.mark.parametrize("way", ["SIGTERM", "route", "SIGINT twice", "SIGKILL"])
async def test_however_the_server_ends_no_process_is_left_after_five_seconds(home: Path, way: str) -> None:
    # Of the five seconds the request is to get one, not three: a busy machine needs the rest.
    with JupyterServer(home, "--DSServeExtension.stop_s=1") as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", "toy:step_s=0.05")
            stream = caller.stream_complete(max_tokens=100_000)
            await anext(stream)  # a request that does not end by itself
            left = server.processes()
            assert len(left) == 2
            if way == "route":
                await _shut_down_by_its_route(server)
            elif way == "SIGINT twice":
                server.process.send_signal(signal.SIGINT)
                await until(lambda: "Interrupted" in server.log_path.read_text())
                server.process.send_signal(signal.SIGINT)
            else:
                server.process.send_signal(signal.Signals[way])
            await until(lambda: not any(map(is_running, left)), timeout_s=5)
            await stream.aclose()
        await until(lambda: server.process.poll() is not None)


async def test_running_requests_end_before_the_server_does(home: Path) -> None:
    with JupyterServer(home, "--DSServeExtension.stop_s=30") as server:
        async with server.caller() as caller, httpx.AsyncClient(trust_env=False, timeout=60) as direct:
            await caller.load("demo", "v1", "toy:step_s=0.02")
            where = (await caller.post("/gateway")).json()
            body = {"model": "demo", "prompt": "hello", "max_tokens": 50, "stream": True}
            headers = {"Authorization": f"Bearer {where['key']}"}
            async with direct.stream("POST", f"{where['url']}/v1/completions", json=body, headers=headers) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                server.process.send_signal(signal.SIGTERM)
                rest = [line async for line in lines]
            assert rest[-2:] == ["data: [DONE]", ""]
            assert '"finish_reason":"length"' in rest[-4], "it was ended before it was done"


async def test_serving_counts_as_activity_and_looking_does_not(home: Path) -> None:
    """So that a culler leaves a server alone that serves, also when callers go straight to the gateway."""
    with JupyterServer(home) as server:
        headers = {"Authorization": f"token {server.token}"}
        async with (
            server.caller() as caller,
            httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as jupyter,
        ):

            async def last_activity() -> str:
                return str((await jupyter.get(f"{server.url}/api/status")).json()["last_activity"])

            await caller.load("demo", "v1", TOY)
            where = (await caller.post("/gateway")).json()
            loaded = await until(last_activity, timeout_s=1)
            await caller.get("/api/deployments")
            assert await last_activity() == loaded
            async with Caller(where["url"], where["key"]) as straight:
                await straight.complete()
                asked = await until(last_activity, lambda at: at > loaded, timeout_s=ACTIVITY_S + 15)
                # One long answer is activity all the while, though no new one comes.
                long = asyncio.create_task(straight.complete(max_tokens=1_000_000))
                for _ in range(2):
                    seen = asked
                    asked = await until(last_activity, lambda at, seen=seen: at > seen, timeout_s=ACTIVITY_S + 15)
                long.cancel()
