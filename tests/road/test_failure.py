"""Workers that die, hang or lie; the other version never notices."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import grpc.aio
import pytest

from jupyter_dsserve.fleet import supervisor
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub
from tests.engine.test_loop import toy_text
from tests.support import Caller, is_running, until


async def pid_of(caller: Caller, version: str) -> int:
    return int((await caller.version("demo", version))["replicas"][0]["pid"])


async def test_a_worker_killed_mid_stream_ends_its_stream_with_an_error_and_comes_back(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    await caller.load("demo", "v2", "toy:step_s=0.02")
    pid = await pid_of(caller, "v1")
    other = asyncio.create_task(_events(caller, "demo@v2", 60))
    events = []
    async for event in caller.stream_complete("demo@v1", max_tokens=1000):
        events.append(event)
        if len(events) == 5:
            os.kill(pid, signal.SIGKILL)
    assert "demo@v1#0" in events[-2]["error"]["message"]
    assert events[-2]["error"]["type"] == "server_error"
    assert events[-1] == "[DONE]"
    back = await caller.settled("demo", "v1", "READY")
    assert back["replicas"][0]["pid"] != pid
    assert (await caller.complete("demo@v1")).status_code == 200
    assert "".join(e["choices"][0]["text"] for e in (await other)[:-1]) == toy_text("hello", 60)
    kinds = [e["kind"] for e in (await caller.get("/api/history")).json() if e["version"] == "v1"]
    assert kinds == ["registered", "loading", "ready", "replica_lost", "loading", "ready"]


async def _events(caller: Caller, model: str, max_tokens: int) -> list[dict[str, object]]:
    return [e async for e in caller.stream_complete(model, max_tokens=max_tokens)]


async def test_while_a_worker_is_away_its_traffic_goes_to_the_other_ready_version(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0,load_s=4")
    await caller.load("demo", "v2", "toy:step_s=0")
    await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 90, "v2": 10}})
    os.kill(await pid_of(caller, "v1"), signal.SIGKILL)
    await caller.settled("demo", "v1", "QUEUED", "LOADING")
    answers = [await caller.complete(max_tokens=1) for _ in range(10)]
    assert {(a.status_code, a.headers["X-DSServe-Version"]) for a in answers} == {(200, "v2")}
    await caller.settled("demo", "v1", "READY")
    assert (await caller.get("/api/deployments/demo/route")).json()["weights"] == {"v1": 90, "v2": 10}


async def test_a_worker_that_hangs_is_noticed_ended_and_replaced(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:")
    pid = await pid_of(caller, "v1")
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: not is_running(pid))
    replaced = await until(
        lambda: caller.version("demo", "v1"),
        lambda version: [r for r in version["replicas"] if r["state"] == "READY" and r["pid"] != pid],
    )
    assert replaced["state"] == "READY"
    assert any("silent" in e["reason"] for e in (await caller.get("/api/history")).json())


async def test_a_first_load_that_dies_is_failed_with_its_reason_and_can_be_tried_again(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:load_s=30", wait=False)
    await caller.settled("demo", "v1", "LOADING")
    os.kill(await pid_of(caller, "v1"), signal.SIGKILL)
    failed = await caller.settled("demo", "v1")
    assert (failed["state"], failed["reason"]) == ("FAILED", "the worker ended with signal 9")
    assert (await caller.post("/api/deployments/demo/versions/v1/load")).status_code == 202
    assert (await caller.version("demo", "v1"))["state"] in ("QUEUED", "LOADING")


async def test_a_version_serves_on_with_the_replicas_that_are_left_until_it_is_loaded_again(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 0)
    await caller.load("demo", "v1", "toy:", replicas=2)
    both = await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    os.kill(both["replicas"][0]["pid"], signal.SIGKILL)
    left = await until(lambda: caller.version("demo", "v1"), lambda v: len(v["replicas"]) == 1)
    assert left["state"] == "READY"
    await caller.post("/api/deployments/demo/versions/v1/load")
    both = await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    for replica in both["replicas"]:
        os.kill(replica["pid"], signal.SIGKILL)
    # Each is seen to be dead by itself.
    await until(lambda: caller.version("demo", "v1"), lambda v: v["state"] == "FAILED" and v["replicas"] == [])
    await caller.post("/api/deployments/demo/versions/v1/load")
    await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )


async def test_a_worker_told_to_end_loses_no_request(caller: Caller) -> None:
    """As an operator, or a service manager that stops the whole group, does it."""
    await caller.load("demo", "v1", "toy:step_s=0.005", replicas=2)
    both = await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    limit, answers = asyncio.Semaphore(16), []

    async def ask() -> None:
        async with limit:
            answers.append(await caller.complete(max_tokens=20))

    asking = asyncio.gather(*(ask() for _ in range(200)))
    await until(lambda: len(answers) > 40)
    os.kill(both["replicas"][0]["pid"], signal.SIGTERM)
    await asking
    assert {(a.status_code, a.json()["choices"][0]["text"]) for a in answers} == {(200, toy_text("hello", 20))}
    again = await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    assert both["replicas"][0]["pid"] not in {r["pid"] for r in again["replicas"]}


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("a\x00b", "does not exist here"),
        ("/no/such/python", "the interpreter '/no/such/python' does not exist here: give the path of a Python"),
        ("/dev/null", "the interpreter '/dev/null' cannot be run"),
        ("/tmp", "the interpreter '/tmp' cannot be run"),
    ],
)
async def test_an_interpreter_that_cannot_be_run_is_refused(caller: Caller, python: str, said: str) -> None:
    body = {"name": "demo", "version": "v1", "model": "toy:", "python": python}
    answer = await caller.post("/api/deployments", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "python")
    assert said in answer.json()["error"]["message"]
    assert (await caller.get("/api/deployments")).json() == []


async def test_what_is_no_python_is_failed_at_once_with_its_reason(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:", python="/bin/sh", wait=False)
    failed = await caller.settled("demo", "v1")
    assert failed["state"] == "FAILED"
    assert "is /bin/sh a Python with jupyter_dsserve installed?" in failed["reason"]


async def test_an_interpreter_that_has_gone_since_fails_the_version(caller: Caller, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    await caller.load("demo", "v1", "toy:", python=str(python))
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    python.unlink()
    await caller.post("/api/deployments/demo/versions/v1/load")
    failed = await caller.settled("demo", "v1", "FAILED")
    assert f"the interpreter '{python}' cannot be run" in failed["reason"]


async def test_a_log_that_cannot_be_written_fails_the_version_and_says_so(caller: Caller, data_dir: Path) -> None:
    shutil.rmtree(data_dir / "logs")
    await caller.load("demo", "v1", "toy:", wait=False)
    failed = await caller.settled("demo", "v1")
    assert failed["state"] == "FAILED"
    assert "logs" in failed["reason"]


async def test_an_interpreter_that_never_dials_is_given_up(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DIAL_S", 0.5)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    await caller.load("demo", "v1", "toy:", python=str(python), wait=False)
    failed = await caller.settled("demo", "v1")
    assert failed["state"] == "FAILED"
    assert "did not dial in" in failed["reason"]


async def test_a_load_can_be_given_up_and_leaves_no_process(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:load_s=30", wait=False)
    await caller.settled("demo", "v1", "LOADING")
    pid = await pid_of(caller, "v1")
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    assert not is_running(pid)


async def test_an_answer_that_fails_before_its_first_token_is_a_plain_500(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:fail_rate=1")
    for stream in (False, True):
        answer = await caller.complete(stream=stream)
        assert answer.status_code == 500
        assert "fail_rate" in answer.json()["error"]["message"]


async def test_an_interpreter_without_the_package_is_said_to_be_so(caller: Caller, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named jupyter_dsserve' >&2\nexit 1\n")
    python.chmod(0o755)
    await caller.load("demo", "v1", "toy:", python=str(python), wait=False)
    failed = await caller.settled("demo", "v1")
    assert failed["state"] == "FAILED"
    assert "No module named jupyter_dsserve" in failed["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": "guessed"}, "no replica"),
        ({"replica": "demo@v9#0"}, "no replica"),
        ({"protocol_version": PROTOCOL_VERSION + 1}, "pip install"),
        ({"spec_digest": "other"}, "spec"),
    ],
)
async def test_a_worker_that_does_not_fit_is_refused_with_the_remedy(
    caller: Caller, gateway: Gateway, change: dict[str, object], said: str
) -> None:
    await caller.load("demo", "v1", "toy:load_s=30", wait=False)
    await caller.settled("demo", "v1", "LOADING")
    replica = gateway.fleet.version("demo", "v1").replicas[0]
    right = {
        "replica": replica.id,
        "token": replica.token,
        "spec_digest": replica.spec_digest,
        "protocol_version": PROTOCOL_VERSION,
    }
    async with grpc.aio.insecure_channel(gateway.fleet._link.address) as channel:
        stream = LinkStub(channel).Connect()
        await stream.write(pb.FromWorker(hello=pb.Hello(**{**right, **change})))  # type: ignore[arg-type]
        answer = await stream.read()
    assert said in answer.refuse.reason


async def test_the_workers_socket_is_reachable_by_its_owner_only(gateway: Gateway) -> None:
    folder = os.path.dirname(gateway.fleet._link.address.removeprefix("unix:"))
    assert os.stat(folder).st_mode & 0o777 == 0o700


async def test_a_slow_reader_loses_nothing(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0")
    body = {"model": "demo", "prompt": "hello", "max_tokens": 3000, "stream": True}
    text = ""
    async with caller.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if len(text) % 500 == 3:
                await asyncio.sleep(0.05)
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert text == toy_text("hello", 3000)


async def test_a_worker_that_keeps_crashing_is_given_up_with_its_last_words(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 2)
    monkeypatch.setattr(supervisor, "backoff_s", lambda _num: 0.05)
    await caller.load("demo", "v1", "toy:")
    killed: set[int] = set()

    async def crashed() -> str:
        version = await caller.version("demo", "v1")
        for replica in version["replicas"]:
            if replica["state"] == "READY" and replica["pid"] not in killed:
                killed.add(replica["pid"])
                os.kill(replica["pid"], signal.SIGABRT)
        return str(version["state"])

    await until(crashed, lambda state: state == "FAILED")
    reason = (await caller.version("demo", "v1"))["reason"]
    assert reason.startswith("3 times in a row; the last time the worker ended with signal 6; its last words: ")
    assert "ready on cpu" in reason
