"""Workers that people start: they join a version, serve, and are dropped when they are gone."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jupyter_dsserve.fleet.health import TICK_S
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION
from jupyter_dsserve.worker import join
from tests.engine.test_loop import toy_text
from tests.road.hands import Hands, command, parts, put_together, replicas
from tests.support import Caller, Command, held, is_running, until


async def joined(caller: Caller, gateway: Gateway, hands: Hands) -> subprocess.Popen[bytes]:
    """demo@v1 with a worker of its own and one that joined."""
    await caller.load("demo", "v1", "toy:step_s=0.005")
    process = hands.start(await command(gateway))
    found = await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 2)
    assert [(r["id"], r["pid"]) for r in found[1:]] == [("demo@v1#joined-0", process.pid)]
    return process


async def test_a_worker_joins_serves_its_share_and_leaves_on_ctrl_c_without_losing_a_request(
    caller: Caller, gateway: Gateway, hands: Hands
) -> None:
    process = await joined(caller, gateway, hands)
    version = gateway.fleet.version("demo", "v1")
    with held(*(r.pid for r in version.replicas)):
        asking = asyncio.gather(*(caller.complete(max_tokens=60) for _ in range(16)))
        await until(lambda: [r.in_flight for r in version.replicas] == [8, 8])
        process.send_signal(signal.SIGINT)
    answers = await asking
    assert {(a.status_code, a.json()["choices"][0]["text"]) for a in answers} == {(200, toy_text("hello", 60))}
    await until(lambda: process.poll() is not None)
    assert process.returncode == 0
    left = await until(lambda: replicas(caller), lambda found: len(found) == 1)
    assert left[0]["id"] == "demo@v1#0"
    history = (await caller.get("/api/history")).json()
    assert [e["kind"] for e in history if e["replica"] == "demo@v1#joined-0"] == ["ready", "replica_left"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_dies_or_is_stopped_is_dropped_within_5_s(
    caller: Caller, gateway: Gateway, hands: Hands, number: signal.Signals, looks: Counter[str]
) -> None:
    process = await joined(caller, gateway, hands)
    num_before = looks["demo@v1#joined-0"]
    process.send_signal(number)
    await until(lambda: replicas(caller), lambda found: len(found) == 1)
    assert (looks["demo@v1#joined-0"] - num_before) * TICK_S <= 5
    assert (await caller.complete()).status_code == 200
    if number is signal.SIGSTOP:  # it goes on, finds that it was dropped, and ends
        process.send_signal(signal.SIGCONT)
        await until(lambda: process.poll() is not None)


async def test_an_unload_ends_it_too(caller: Caller, gateway: Gateway, hands: Hands) -> None:
    process = await joined(caller, gateway, hands)
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    await until(lambda: process.poll() is not None)
    assert process.returncode == 0


async def test_it_ends_with_a_gateway_that_is_killed(tmp_path: Path, hands: Hands) -> None:
    with Command(tmp_path / "data") as gateway:
        async with await gateway.caller() as caller:
            await caller.load("demo", "v1", "toy:")
            told = await caller.post("/api/deployments/demo/versions/v1/join")
            process = hands.start(told.json()["command"])
            await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 2)
            gateway.signal(signal.SIGKILL)
            await until(lambda: not is_running(process.pid))


async def test_it_is_none_of_those_that_scale_counts(caller: Caller, gateway: Gateway, hands: Hands) -> None:
    await joined(caller, gateway, hands)
    answer = await caller.post("/api/deployments/demo/versions/v1/scale", json={"replicas": 2})
    assert answer.status_code == 202, answer.text
    found = await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 3)
    assert sorted(r["id"] for r in found) == ["demo@v1#0", "demo@v1#1", "demo@v1#joined-0"]
    await caller.post("/api/deployments/demo/versions/v1/scale", json={"replicas": 1})
    left = await until(lambda: replicas(caller), lambda found: len(found) == 2)
    assert "demo@v1#joined-0" in {r["id"] for r in left}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("", "guessed"), "the token is not one of demo@v1"),
        (("--version", "v9"), "version 'v9' of demo does not exist"),
        (("--join", "unix:/nowhere"), "no gateway answers at unix:/nowhere"),
    ],
)
async def test_one_that_may_not_is_told_why_and_ends(
    caller: Caller, gateway: Gateway, hands: Hands, change: tuple[str, str], said: str
) -> None:
    await caller.load("demo", "v1", "toy:")
    token, words = parts(await command(gateway))
    if change[0]:
        words[words.index(change[0]) + 1] = change[1]
    process = hands.start(put_together(token if change[0] else change[1], words))
    await until(lambda: process.poll() is not None)
    assert (process.returncode, said in hands.said) == (1, True), hands.said
    assert len(await replicas(caller)) == 1


async def test_the_token_may_come_in_a_file(caller: Caller, gateway: Gateway, hands: Hands, tmp_path: Path) -> None:
    await caller.load("demo", "v1", "toy:")
    token, words = parts(await command(gateway))
    (tmp_path / "token").write_text(f"{token}\n")
    hands.start(put_together("''", [*words, "--token-file", str(tmp_path / "token")]))
    await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 2)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("\n", "has no token in its first line")])
def test_a_file_without_a_token_is_told(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    words = ["--join", "unix:/nowhere", "--deployment", "demo", "--version", "v1"]
    with pytest.raises(SystemExit, match=f"--token-file {tmp_path}/token {said}"):
        join.launch_asked([*words, "--token-file", f"{tmp_path}/token"])


async def test_a_version_that_is_not_loaded_takes_none(caller: Caller, gateway: Gateway, hands: Hands) -> None:
    await caller.load("demo", "v1", "toy:")
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    process = hands.start(await command(gateway))
    await until(lambda: process.poll() is not None)
    assert "demo@v1 is STOPPED: load it first" in hands.said


async def test_another_protocol_is_refused_with_the_remedy(
    caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await caller.load("demo", "v1", "toy:")
    monkeypatch.setattr(join, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    token, words = parts(await command(gateway))
    monkeypatch.setattr(sys, "stdin", io.StringIO(token))
    with pytest.raises(SystemExit, match="pip install jupyter_dsserve=="):
        await asyncio.to_thread(join.launch_asked, words[2:])
    assert os.getpid() not in {r["pid"] for r in await replicas(caller)}
