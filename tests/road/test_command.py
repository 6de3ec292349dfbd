"""`jupyter dsserve` in a process of its own: start, restart, every way to end, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from jupyter_dsserve.command import SECTIONS
from jupyter_dsserve.data_dir import DataDir
from jupyter_dsserve.gateway.app import DSServeApp
from jupyter_dsserve.protocol.errors import Conflict
from tests.engine.test_loop import toy_text
from tests.support import Command, is_running, until, worker_pids

FAST = "demo=toy:step_s=0.001"
STREAM = {"model": "demo", "prompt": "hello", "max_tokens": 5, "stream": True}


async def test_one_line_serves_with_stdin_closed(data_dir: Path) -> None:
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            answer = await caller.complete()
            assert answer.json()["choices"][0]["text"] == toy_text("hello", 5)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
async def test_modules_of_the_folder_it_is_started_in_are_not_its_own(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the notebooks ran in a worker')")
    monkeypatch.chdir(tmp_path)
    with Command(data_dir, "--load", "demo=toy:") as command:
        async with await command.caller() as caller:
            assert (await caller.settled("demo", "v1"))["state"] == "READY"


async def test_the_admin_key_is_its_owners_alone_and_stays_the_same(data_dir: Path) -> None:
    first = DataDir(data_dir)
    key = first.admin_key()
    assert key.startswith("dsk_")
    assert (data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    id = first.id()
    first.release()
    again = DataDir(data_dir)
    assert (again.admin_key(), again.id()) == (key, id)
    (data_dir / "gateway.id").write_text("../..\n")
    with pytest.raises(Conflict, match=r"gateway\.id holds no 16"):
        again.id()


def _lay_key(data_dir: Path, key: str) -> None:
    data_dir.mkdir()
    (data_dir / "admin.key").write_text(f"{key}\n")


async def test_an_admin_key_that_lies_there_is_used(data_dir: Path) -> None:
    _lay_key(data_dir, "dsk_mine")
    with Command(data_dir) as command:
        async with await command.caller() as caller:
            assert caller.headers["Authorization"] == "Bearer dsk_mine"
            assert (await caller.get("/api/status")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_running_requests_end_and_leaves_no_process(data_dir: Path, number: signal.Signals) -> None:
    with Command(data_dir, "--load", "demo=toy:step_s=0.02") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            workers = worker_pids(command.pid)
            assert workers
            asking = asyncio.create_task(caller.complete(max_tokens=150))
            await until(lambda: caller.version("demo", "v1"), lambda v: v["replicas"][0]["in_flight"] == 1)
            command.signal(number)
            assert (await asking).json()["choices"][0]["text"] == toy_text("hello", 150)
        await until(lambda: command.process.poll() == 0)
        assert not any(map(is_running, workers))


async def test_a_second_signal_ends_at_once(data_dir: Path) -> None:
    runtime = data_dir.parent / "runtime"
    env = {"JUPYTER_RUNTIME_DIR": str(runtime)}
    with Command(data_dir, "--load", "demo=toy:step_s=0.02", "--drain", "600", env=env) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            workers = worker_pids(command.pid)
            assert workers
            asking = asyncio.create_task(caller.complete(max_tokens=100_000))
            await until(lambda: caller.version("demo", "v1"), lambda v: v["replicas"][0]["in_flight"] == 1)
            command.signal(signal.SIGINT)
            # Two signals that wait to be taken are one.
            await until(lambda: "stopping: running requests have 600 s to end" in command.said())
            await asyncio.sleep(0.3)
            assert command.process.poll() is None
            command.signal(signal.SIGINT)
            await until(lambda: command.process.poll() == 0)
            await until(lambda: not any(map(is_running, workers)))
            assert "ended while it was answering" in (await asking).text
        assert "Traceback" not in command.output()
    assert os.listdir(runtime) == []


async def test_with_a_notice_it_says_that_it_is_not_ready_and_answers_until_it_stops(data_dir: Path) -> None:
    with Command(data_dir, "--load", FAST, "--notice", "600", "--grpc-port", "0") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            assert "Connection" not in (await caller.complete()).headers
            command.signal(signal.SIGTERM)
            await until(lambda: caller.get("/health/ready"), lambda answer: answer.status_code == 503)
            assert (await caller.get("/v2/health/ready")).status_code == 503
            holder = json.loads((data_dir / "gateway.lock").read_text())
            async with grpc.aio.insecure_channel(holder["grpc"]) as channel:
                health = await HealthStub(channel).Check(HealthCheckRequest())
                assert health.status == HealthCheckResponse.NOT_SERVING
            answer = await caller.complete()
            assert answer.json()["choices"][0]["text"] == toy_text("hello", 5)
            assert answer.headers["Connection"] == "close"
            async with caller.stream("POST", "/v1/completions", json=STREAM) as stream:
                assert stream.headers["Connection"] == "close"
                assert (await stream.aread()).endswith(b"[DONE]\n\n")
            command.signal(signal.SIGTERM)
        assert "not ready any more" in command.output()
        assert command.process.returncode == 0


async def test_killed_it_leaves_no_worker_and_everything_comes_back_with_it(data_dir: Path) -> None:
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            await caller.load("demo", "v2", "toy:step_s=0.002", note="second")
            await caller.load("demo", "v3", "toy:step_s=0.003")
            await caller.post("/api/deployments/demo/versions/v3/unload")
            await caller.settled("demo", "v3", "STOPPED")
            await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 90, "v2": 10}})
            workers = worker_pids(command.pid)
            assert len(workers) == 2
            command.signal(signal.SIGKILL)
        await until(lambda: not any(map(is_running, workers)))
    with Command(data_dir) as again:
        async with await again.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            await caller.settled("demo", "v2", "READY")
            demo = (await caller.get("/api/deployments/demo")).json()
            assert demo["weights"] == {"v1": 90, "v2": 10}
            assert [(v["version"], v["state"], v["note"]) for v in demo["versions"]] == [
                ("v1", "READY", ""),
                ("v2", "READY", "second"),
                ("v3", "STOPPED", ""),
            ]
            assert (await caller.complete()).status_code == 200


async def test_a_stop_in_good_order_brings_everything_back_too(data_dir: Path) -> None:
    for options in (("--load", FAST), ()):
        with Command(data_dir, *options) as command:
            async with await command.caller() as caller:
                await caller.settled("demo", "v1", "READY")
                assert (await caller.complete()).status_code == 200
            command.signal(signal.SIGTERM)
            command.output()


async def test_load_of_a_known_name_with_the_same_model_only_makes_sure_it_is_loaded(data_dir: Path) -> None:
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            await caller.post("/api/deployments/demo/versions/v1/unload")
            await caller.settled("demo", "v1", "STOPPED")
        command.signal(signal.SIGTERM)
        command.output()
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            assert len((await caller.get("/api/deployments/demo")).json()["versions"]) == 1
        command.signal(signal.SIGTERM)
        command.output()
    with Command(data_dir, "--load", "demo=toy:step_s=0.9") as command:
        said = command.output()
        assert command.process.returncode == 1
        assert "toy:step_s=0.9" in said
        assert "toy:step_s=0.001" in said


async def test_the_memory_budget_and_the_settings_of_admission_are_told_on_the_command_line(data_dir: Path) -> None:
    options = ["--memory-budget", "10MB", "--DSServeApp.admission", "share_high=0.5"]
    with Command(data_dir, *options) as command:
        async with await command.caller() as caller:
            (memory,) = (await caller.get("/api/ledger")).json()["devices"][:1]
            assert (memory["id"], memory["capacity_bytes"]) == ("cpu", 10_000_000)
            body = {"name": "demo", "version": "v1", "model": "toy:bytes=5000001"}
            refused = await caller.post("/api/deployments", json=body)
            assert "may take 50% of a device" in refused.json()["error"]["message"]


async def test_a_second_gateway_on_the_same_data_directory_says_who_holds_it(data_dir: Path) -> None:
    with Command(data_dir) as first:
        async with await first.caller() as caller:
            with Command(data_dir) as second:
                said = second.output()
            assert second.process.returncode == 1
            assert str(first.pid) in said
            assert str(caller.base_url).rstrip("/") in said
            assert "Traceback" not in said


def test_the_data_directory_is_free_again_once_it_is_released(data_dir: Path) -> None:
    held = DataDir(data_dir)
    held.announce("http://here")
    with pytest.raises(Conflict, match="http://here"):
        DataDir(data_dir)
    held.release()
    DataDir(data_dir).release()


async def test_a_port_that_is_taken_is_named_with_the_remedy(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Command(data_dir, "--port", str(port)) as command:
            said = command.output()
    assert command.process.returncode == 1
    assert f"port {port}" in said
    assert "--port" in said
    assert "Traceback" not in said


async def test_another_model_under_a_known_name_is_said_in_a_line_and_leaves_no_worker(data_dir: Path) -> None:
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
        command.signal(signal.SIGTERM)
        command.output()
    with Command(data_dir, "--load", "demo=toy:step_s=0.002") as command:
        said = command.output()
        assert command.process.returncode == 1
    [line] = [line for line in said.splitlines() if "CRITICAL" in line]
    assert "--load demo=toy:step_s=0.002: demo is known already with another model (v1 is toy:step_s=0.001)" in line
    assert "Traceback" not in said
    with Command(data_dir, "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            assert len(worker_pids(command.pid)) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--load", "demo"], "NAME=MODEL"),
        (["--load", "demo=/no/such/model"], "'/no/such/model' does not exist"),
        (["--ip", "0.0.0.0"], "--insecure"),
        (["--ip", "203.0.113.7", "--insecure"], "203.0.113.7"),
        (["--prot", "1"], "did you mean --port"),
        (["--DSServeApp.prot=1"], "did you mean --DSServeApp.port"),
        (["--port", "many"], "many"),
        (["--memory-budget", "much"], "write one such as 4GiB"),
        (["--DSServeApp.admission", "max_wait=1"], "did you mean max_wait_s"),
    ],
)
async def test_options_that_cannot_be_are_said_in_a_line(data_dir: Path, options: list[str], named: str) -> None:
    with Command(data_dir, *options) as command:
        said = command.output()
    assert command.process.returncode == 1
    assert named in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("own.py", "c.DSServeApp.prot = 1", "no setting DSServeApp.prot: did you mean port?"),
        (
            "own.py",
            "c.DSServApp.port = 1",
            "sets DSServApp, which is no section of ours: did you mean DSServeApp?",
        ),
        (
            "own.json",
            '{"Gateway": {"port": 1}}',
            "own.json sets Gateway, which is no section of ours; there are",
        ),
        ("own.py", "c.port = 1", "own.py sets port, which is no section of ours"),
        ("own.py", "c.DSServeApp.port = ", "own.py cannot be used: SyntaxError"),
        ("own.json", "{", "own.json cannot be used: JSONDecodeError"),
        ("own.conf", "c.DSServeApp.port = 0", "own.conf: there is no such *.py or *.json file"),
        ("other.py", "", "own.py: there is no such"),
    ],
)
def test_a_config_file_that_does_not_hold_ends_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, named: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit):
        DSServeApp().initialize(["--config", str(tmp_path / name.replace("other", "own"))])
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said


def test_a_config_file_may_be_for_several_of_our_programs_and_for_their_bases(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "c.DSServeApp.port = 7\nc.KeyApp.rate = 2.0\nc.DSServeExtension.port = 8\nc.Application.log_level = 'ERROR'"
    )
    app = DSServeApp()
    app.initialize(["--config", str(tmp_path / "own.py"), "--drain", "3"])
    assert (app.port, app.drain_s, app.log_level) == (7, 3.0, 40)


def test_every_command_has_its_section() -> None:
    commands = {place.rpartition(".")[2] for place, _ in DSServeApp.subcommands.values()}
    assert {*commands, "DSServeApp", "DSServeExtension"} == SECTIONS


async def test_signs_that_mean_something_in_a_url_may_stand_in_the_data_directory(tmp_path: Path) -> None:
    with Command(tmp_path / "what?x=1#y%40 é", "--load", FAST) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
        command.signal(signal.SIGTERM)
        command.output()
    assert (tmp_path / "what?x=1#y%40 é" / "fleet.db").exists()


@pytest.mark.parametrize("spoil", ["file", "database", "key"])
def test_a_data_directory_that_cannot_be_used_is_said_in_a_line(tmp_path: Path, spoil: str) -> None:
    data_dir, runtime = tmp_path / "data", tmp_path / "runtime"
    runtime.mkdir()
    if spoil == "file":
        data_dir.write_text("")
    else:
        data_dir.mkdir()
        (data_dir / {"database": "fleet.db", "key": "admin.key"}[spoil]).write_text(
            "" if spoil == "key" else "x" * 5000
        )
    with Command(data_dir, env={"JUPYTER_RUNTIME_DIR": str(runtime)}) as command:
        said = command.output()
    assert command.process.returncode == 1
    assert str(data_dir) in said
    assert "Traceback" not in said
    assert os.listdir(runtime) == []


@pytest.mark.parametrize(("module", "advice"), [("worker", "a gateway starts workers"), ("gateway", "jupyter dsserve")])
def test_a_process_that_programs_start_says_so_when_a_person_does(module: str, advice: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"jupyter_dsserve.{module}"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert advice in done.stderr
    assert "Traceback" not in done.stderr


def test_no_socket_directory_is_left_behind(data_dir: Path) -> None:
    runtime = data_dir.parent / "runtime"
    with Command(data_dir, env={"JUPYTER_RUNTIME_DIR": str(runtime)}) as command:
        asyncio.run(_wait(command))
        assert os.listdir(runtime)
        command.signal(signal.SIGTERM)
        command.output()
    assert os.listdir(runtime) == []


async def _wait(command: Command) -> None:
    async with await command.caller():
        pass
