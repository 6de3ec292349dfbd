"""Workers that people start outlive their stream: they keep the model, and join anew when there is a way again."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio

from jupyter_dsserve.fleet import health, listener
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.spec import WorkerLaunch, WorkerSpec
from jupyter_dsserve.worker import join
from jupyter_dsserve.worker.app import WorkerApp
from jupyter_dsserve.worker.dial import Dial
from jupyter_dsserve.worker.join import Joiner, MayNotJoin
from tests.road.hands import ASKING, Hands, Network, command, parts, put_together
from tests.support import Caller, Command, free_port, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = VersionState.READY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Where workers may ask often whether it is there, and silent ones are given up soon."""
    config = GatewayConfig(tmp_path_factory.mktemp("data"), port=0, drain_s=5, join_address="127.0.0.1:0")
    gateway = Gateway(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listener, "_MIN_PING_S", 1)
        patched.setattr(health, "MAX_SILENT_S", 4.0)
        await gateway.start()
        yield gateway
        await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", "toy:step_s=0.005")
        yield caller
        await caller.delete("/api/deployments/demo")
        await until(lambda: not gateway.fleet.status())


async def joined_over(network: Network, gateway: Gateway, hands: Hands, *options: str) -> None:
    token, words = parts(await command(gateway))
    words[words.index("--join") + 1] = network.address
    hands.start(put_together(token, ["-c", ASKING, *words[2:], *options]))
    version = gateway.fleet.version("demo", "v1")
    await until(lambda: [r.state for r in version.replicas] == [READY] * 2)


async def test_one_whose_network_comes_back_serves_again_without_loading(
    caller: Caller, gateway: Gateway, hands: Hands
) -> None:
    version = gateway.fleet.version("demo", "v1")
    async with Network(gateway.fleet.joins.address) as network:
        await joined_over(network, gateway, hands)
        [process] = hands.processes
        gone = version.replicas[1]
        begun = [asyncio.create_task(caller.complete(max_tokens=100_000)) for _ in range(2)]
        await until(lambda: [inbox.has_begun for inbox in gone._in_flight.values()] == [True])
        network.is_dead = True
        await until(lambda: gone not in version.replicas)
        done, _ = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        assert "was lost while it was answering" in done.pop().result().text
        await until(lambda: "asks for 300 s to join again" in hands.said)
        network.revive()
        await until(lambda: [r.state for r in version.replicas] == [READY] * 2)
        [back] = version.replicas[1:]
        assert (back.pid, process.poll()) == (process.pid, None)
        assert back.id != gone.id
        # What it computed for those who have been told is not computed any more.
        await until(lambda: back.heartbeat.num_steps > 0 and back.heartbeat.running == 0)
        assert {(await caller.complete()).status_code for _ in range(4)} == {200}
        assert len(re.findall(r": ready on ", hands.said)) == 1
        for task in begun:
            task.cancel()


async def test_one_whose_version_is_deleted_meanwhile_says_so_and_ends(
    caller: Caller, gateway: Gateway, hands: Hands
) -> None:
    async with Network(gateway.fleet.joins.address) as network:
        await joined_over(network, gateway, hands)
        [process] = hands.processes
        network.is_dead = True
        await until(lambda: "to join again" in hands.said)
        await caller.delete("/api/deployments/demo/versions/v1")
        await until(lambda: not gateway.fleet.status())
        await caller.load("demo", "v1", "toy:step_s=0.005")  # just the same, but another
        network.revive()
        await until(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert "the worker ends: this worker may not join: the token opens nothing here" in hands.said
    assert len(gateway.fleet.version("demo", "v1").replicas) == 1


async def test_ctrl_c_and_the_end_of_its_time_end_one_that_waits(
    caller: Caller, gateway: Gateway, hands: Hands
) -> None:
    async with Network(gateway.fleet.joins.address) as network:
        await joined_over(network, gateway, hands)
        version = gateway.fleet.version("demo", "v1")
        network.is_dead = True
        await until(lambda: "to join again" in hands.said and len(version.replicas) == 1)
        hands.processes[0].send_signal(signal.SIGINT)
        await until(lambda: hands.processes[0].poll() is not None)
        assert hands.processes[0].returncode == 0
        network.revive()
    async with Network(gateway.fleet.joins.address) as network:
        await joined_over(network, gateway, hands, "--rejoin-s", "0.5")
        network._server.close()
        network.revive()
        await until(lambda: hands.processes[1].poll() is not None)
        assert hands.processes[1].returncode == 1
    assert "it was asked for 0.5 s (--rejoin-s)" in hands.said


async def test_one_that_still_loads_ends_with_an_unload(caller: Caller, gateway: Gateway, hands: Hands) -> None:
    await caller.load("slow", "v1", "toy:load_s=1")
    version = gateway.fleet.version("slow", "v1")
    token, words = parts(gateway.fleet.join("slow", "v1").command)
    process = hands.start(put_together(token, words))
    await until(lambda: len(version.replicas) == 2 and version.replicas[1].has_dialled)
    await caller.post("/api/deployments/slow/versions/v1/unload")
    await until(lambda: process.poll() is not None)
    assert (process.returncode, "to join again" in hands.said) == (0, False)
    await caller.delete("/api/deployments/slow")


@pytest.mark.parametrize("is_far", [True, False])
async def test_one_joins_a_gateway_that_was_killed_and_started_anew(tmp_path: Path, hands: Hands, is_far: bool) -> None:
    address = ["--join-address", f"127.0.0.1:{free_port()}"] if is_far else []
    options = [] if is_far else ["--rejoin-s", "60"]
    with Command(tmp_path / "data", *address) as gateway:
        async with await gateway.caller() as caller:
            await caller.load("demo", "v1", "toy:")
            told = (await caller.post("/api/deployments/demo/versions/v1/join")).json()["command"]
            token, words = parts(told)
            process = hands.start(put_together(token, [*words, *options]))
            await until(lambda: ready(caller), lambda pids: process.pid in pids)
            gateway.signal(signal.SIGKILL)
            await until(lambda: "to join again" in hands.said)
    with Command(tmp_path / "data", *address) as gateway:
        async with await gateway.caller() as caller:
            await until(lambda: ready(caller), lambda pids: process.pid in pids and len(pids) == 2, 60)
            assert {(await caller.complete()).status_code for _ in range(2)} == {200}
            again = (await caller.post("/api/deployments/demo/versions/v1/join")).json()["command"]
            assert again == told
        gateway.signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None)
        assert process.returncode == 0  # it was drained
    assert len(re.findall(r": ready on ", hands.said)) == 1


async def ready(caller: Caller) -> list[int]:
    found = (await caller.version("demo", "v1"))["replicas"]
    return [r["pid"] for r in found if r["state"] == "READY"]


SPEC = WorkerSpec("toy:", runner="toy")


class Answers(Joiner):
    """Says at once what it is to say."""

    def __init__(self, launch: WorkerLaunch, rejoin_s: float = 60.0) -> None:
        super().__init__(lambda: Dial(""), pb.JoinRequest(), rejoin_s, lambda: 0.0)
        self._launch = launch

    def ask(self) -> tuple[WorkerLaunch, Dial]:
        return self._launch, Dial("unix:/elsewhere")


@pytest.mark.parametrize(
    ("told", "is_same"),
    [
        (WorkerLaunch("demo@v1#joined-1", "", "new", "toy:", SPEC), True),
        (WorkerLaunch("demo@v1#joined-1", "", "new", "toy:", WorkerSpec("toy:step_s=1", runner="toy")), False),
        (WorkerLaunch("demo@v1#joined-1", "", "new", "toy:", SPEC, "other content"), False),
    ],
)
async def test_another_model_under_the_name_is_not_served_with_the_one_that_is_loaded(
    told: WorkerLaunch, is_same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = WorkerApp(WorkerLaunch("demo@v1#joined-0", "", "t", "toy:", SPEC), Dial(""), Answers(told))
    never = asyncio.create_task(asyncio.sleep(60))
    assert await app._join_again(never, never) is is_same
    assert (app._launch.replica, app._launch.token) == (
        ("demo@v1#joined-1", "new") if is_same else ("demo@v1#joined-0", "t")
    )
    assert ("another model by now" in caplog.text) is not is_same
    never.cancel()


async def test_one_whose_engine_hangs_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    launch = WorkerLaunch("demo@v1#joined-0", "", "t", "toy:", SPEC)
    app = WorkerApp(launch, Dial(""), Answers(launch, rejoin_s=0.01))
    app._idle.clear()
    never = asyncio.create_task(asyncio.sleep(60))
    assert not await app._join_again(never, never)
    assert "has not ended what was asked before" in caplog.text
    never.cancel()


async def test_it_asks_until_its_time_is_over() -> None:
    now = [0.0]

    class Away(Answers):
        num_asked = 0

        def ask(self) -> tuple[WorkerLaunch, Dial]:
            self.num_asked += 1
            now[0] += 20.0
            raise join._NoAnswer("nobody is there")

    away = Away(WorkerLaunch("", "", "", "", SPEC))
    away._clock = lambda: now[0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # Its own name for the module: the gateway of the tests before runs on this loop, and sleeps too.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(join, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop))
        with pytest.raises(MayNotJoin, match="nobody is there; it was asked for 60 s"):
            await away.again()
    assert (away.num_asked, slept) == (3, [0.5, 1.0])


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
async def test_a_time_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--join", "unix:/nowhere", "--deployment", "demo", "--version", "v1", f"--rejoin-s={value}"]
    with pytest.raises(SystemExit):
        join.launch_asked(words)
    assert "--rejoin-s" in capsys.readouterr().err
