"""Workers of other machines join over TCP and TLS: here they are of another interpreter, and know the address only."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import venv
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import grpc.aio
import onnx
import psutil
import pytest
import pytest_asyncio
from onnx import TensorProto, helper

from jupyter_dsserve.fleet import health, listener
from jupyter_dsserve.fleet.certificate import given_certificate, own_certificate
from jupyter_dsserve.fleet.listener import JoinSettings, Listener
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkServicer, LinkStub
from jupyter_dsserve.worker import join
from jupyter_dsserve.worker.dial import pinned
from tests.engine.test_loop import toy_text
from tests.gateway.test_grpc_doors import certificate
from tests.road.hands import ASKING, Hands, Network, command, parts, put_together, replicas
from tests.support import Caller, held, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another interpreter, which finds the same packages."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python3*/site-packages")
    (site / "same.pth").write_text("\n".join(path for path in sys.path if path))
    return folder / "bin/python"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Where workers may ask often whether it is there."""
    config = GatewayConfig(tmp_path_factory.mktemp("data"), port=0, drain_s=5, join_address="127.0.0.1:0")
    gateway = Gateway(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listener, "_MIN_PING_S", 1)
        await gateway.start()
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", "toy:step_s=0.005")
        yield caller


def in_a_shell(line: str, log: Path) -> subprocess.Popen[bytes]:
    """In a group of its own, as a terminal has it."""
    with log.open("wb") as out:
        return subprocess.Popen(["sh", "-c", line], stdout=out, stderr=out, start_new_session=True)


async def test_one_of_another_interpreter_joins_serves_and_is_dropped_within_5_s_of_its_death(
    caller: Caller, gateway: Gateway, hands: Hands, python: Path
) -> None:
    told = await command(gateway)
    token, words = parts(told)
    assert words[words.index("--join") + 1] == gateway.fleet.joins.address
    process = hands.start(told, str(python))
    found = await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 2)
    assert found[1]["pid"] == process.pid
    assert token not in " ".join(psutil.Process(process.pid).cmdline())
    version = gateway.fleet.version("demo", "v1")
    with held(*(r.pid for r in version.replicas)):
        asking = asyncio.gather(*(caller.complete(max_tokens=40) for _ in range(16)))
        await until(lambda: [r.in_flight for r in version.replicas] == [8, 8])
    answers = await asking
    assert {(a.status_code, a.json()["choices"][0]["text"]) for a in answers} == {(200, toy_text("hello", 40))}
    process.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    await until(lambda: replicas(caller), lambda found: len(found) == 1, timeout_s=5)
    assert time.monotonic() - begun < 5


async def test_one_whose_network_dies_is_given_up_ends_itself_and_another_joins_later(
    caller: Caller, gateway: Gateway, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_SILENT_S", 4.0)
    token, words = parts(await command(gateway))
    version = gateway.fleet.version("demo", "v1")
    async with Network(gateway.fleet.joins.address) as network:
        words[words.index("--join") + 1] = network.address
        told = put_together(token, ["-c", ASKING, *words[2:], "--rejoin-s", "0"])
        process = hands.start(told)
        await until(lambda: [r.state.value for r in version.replicas] == ["READY"] * 2)
        gone = version.replicas[1]
        begun = [asyncio.create_task(caller.complete(max_tokens=600)) for _ in range(4)]  # 3 s
        await until(lambda: [inbox.has_begun for inbox in gone._in_flight.values()] == [True] * 2)
        network.is_dead = True
        later = [asyncio.create_task(caller.complete(max_tokens=600)) for _ in range(4)]
        await until(lambda: gone.in_flight == 4)
        await until(lambda: gone.trouble)
        assert (await caller.complete()).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*later)} == {200}  # given to the other one
        answers = sorted([answer.status_code, answer.text] for answer in await asyncio.gather(*begun))
        assert [code for code, _ in answers] == [200, 200, 503, 503]
        assert f"the worker {gone.id} was lost while it was answering (the worker was silent for 4 s" in answers[-1][1]
        assert (version.replicas, gone.in_flight) == ([version.replicas[0]], 0)
        await until(lambda: process.poll() is not None)
        assert process.returncode == 1
        assert "the stream to the gateway broke" in hands.said
        network.is_dead = False
        hands.start(told)
        await until(lambda: [r.state.value for r in version.replicas] == ["READY"] * 2)
        assert {(await caller.complete()).status_code for _ in range(2)} == {200}
        hands.processes[-1].send_signal(signal.SIGINT)
        await until(lambda: len(version.replicas) == 1)


async def test_the_command_works_as_it_stands_in_a_shell_and_the_worker_leaves_on_ctrl_c(
    caller: Caller, gateway: Gateway, tmp_path: Path
) -> None:
    line = (await command(gateway)).replace("| python ", f"| exec {sys.executable} ")
    shell = in_a_shell(line, tmp_path / "log")
    try:
        await until(lambda: replicas(caller), lambda found: [r["state"] for r in found] == ["READY"] * 2)
        os.killpg(shell.pid, signal.SIGINT)
        await until(lambda: replicas(caller), lambda found: len(found) == 1)
        await until(lambda: shell.poll() is not None)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("--fingerprint", "ab" * 32, "shows a certificate with the fingerprint"),
        ("--name", "another", "no gateway answers at"),
        ("--join", "127.0.0.1:9", "no gateway answers at 127.0.0.1:9"),
        ("--join", "127.0.0.1:99999", "no gateway answers at 127.0.0.1:99999 (no such address"),
        ("--version", "v9", "version 'v9' of demo does not exist"),
        ("", "guessed", "the token opens nothing here: ask for the command again"),
    ],
)
async def test_one_that_may_not_is_told_why(
    caller: Caller,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    said: str,
) -> None:
    token, words = parts(await command(gateway))
    if name:
        words[words.index(name) + 1] = value
    monkeypatch.setattr(sys, "stdin", io.StringIO(token if name else value))
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(join.launch_asked, words[2:])
    assert said in str(ended.value)
    assert token not in str(ended.value)
    assert len(await replicas(caller)) == 1


def save_sum(path: Path, weight: float) -> Path:
    """``y = x + weight``."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


async def test_one_whose_machine_has_other_weights_does_not_join(
    caller: Caller, gateway: Gateway, hands: Hands, tmp_path: Path
) -> None:
    model = save_sum(tmp_path / "sum.onnx", 1)
    assert (await caller.load("sum", "v1", str(model), task="tensor", num_threads=1))["state"] == "READY"
    registered = gateway.fleet.version("sum", "v1").origin.content
    save_sum(model, 2)  # what stands under this path on the other machine
    process = hands.start(gateway.fleet.join("sum", "v1").command)
    await until(lambda: process.poll() is not None)
    said = f"{model} on {socket.gethostname()} has changed since sum@v1 was registered (content {registered}, now"
    assert process.returncode == 1
    assert said in hands.said
    version = gateway.fleet.version("sum", "v1")
    await until(lambda: [r.id for r in version.replicas] == ["sum@v1#0"])
    assert version.is_ready
    history = (await caller.get("/api/history")).json()
    [left] = [e for e in history if e["kind"] == "replica_left" and e["replica"].startswith("sum@v1#joined-")]
    assert said in left["reason"]


async def test_an_address_without_a_fingerprint_and_an_empty_stdin_are_refused(
    caller: Caller, gateway: Gateway, hands: Hands
) -> None:
    token, words = parts(await command(gateway))
    at = words.index("--fingerprint")
    await until(lambda: hands.start(put_together(token, words[:at] + words[at + 2 :])).wait(60) is not None)
    assert "give --fingerprint too" in hands.said
    await until(lambda: hands.start(put_together("''", words)).wait(60) is not None)
    assert "stdin has no token" in hands.said


async def test_the_port_speaks_tls_only_and_takes_no_message_of_whom_it_does_not_know(
    caller: Caller, gateway: Gateway
) -> None:
    address, shown = gateway.fleet.joins.address, gateway.fleet.joins._listener.certificate  # type: ignore[union-attr]
    request = pb.JoinRequest(deployment="demo", version="v1", token=gateway.fleet.join("demo", "v1").token)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await LinkStub(channel).Join(request, timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    dial = await asyncio.to_thread(pinned, address, shown.fingerprint, shown.name)
    async with dial.aio_channel([]) as channel:
        for metadata in ((), (("authorization", "Bearer guessed"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await LinkStub(channel).Join(request, timeout=30, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            stream = LinkStub(channel).Connect(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.read()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # With a token of a version one may ask to join, and no more: a stream takes the token that Join gave.
        stream = LinkStub(channel).Connect(metadata=dial.metadata(request.token))
        await stream.write(pb.FromWorker(hello=pb.Hello(replica="demo@v1#0", token=request.token)))
        assert "no replica 'demo@v1#0' with this token" in (await stream.read()).refuse.reason  # type: ignore[union-attr]


@pytest.fixture
async def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """Of a listener with other limits, where nobody has a token."""
    for name, value in request.param.items():
        monkeypatch.setattr(listener, name, value)
    alone = Listener(JoinSettings("127.0.0.1:0"), tmp_path, LinkServicer(), lambda _token: False)
    await alone.start()
    yield int(alone.address.rpartition(":")[2])
    await alone.stop()


BEGINNING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # of HTTP/2, without settings


def trusting() -> ssl.SSLContext:
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [{"_most_connections": lambda: 3}], indirect=True)
@pytest.mark.parametrize("tls", [None, trusting()])
async def test_who_brings_no_token_holds_few_connections(port: int, tls: ssl.SSLContext | None) -> None:
    def held() -> int:
        found = psutil.Process().net_connections()
        return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)

    opening = (asyncio.open_connection("127.0.0.1", port, ssl=tls) for _ in range(6))
    opened = await asyncio.gather(*opening, return_exceptions=True)
    await until(lambda: held() == 3)
    for one in opened:
        if not isinstance(one, BaseException):
            one[1].close()


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [{"_HANDSHAKE_S": 1, "_IDLE_S": 1}], indirect=True)
async def test_and_not_for_long(port: int) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", port, ssl=tls) for tls in (None, trusting())]
    for reader, writer in opened:
        if writer.get_extra_info("ssl_object"):
            writer.write(BEGINNING)
        await asyncio.wait_for(reader.read(-1), 30)
        writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [{"_PING_S": 1, "_PING_WAIT_S": 1}], indirect=True)
async def test_one_whose_machine_does_not_answer_a_ping_is_gone(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    writer.write(BEGINNING)
    assert b"ping_timeout" in await asyncio.wait_for(reader.read(-1), 30)
    writer.close()


async def test_the_certificate_is_made_once_and_its_key_is_the_owners_alone(tmp_path: Path) -> None:
    first = own_certificate(tmp_path)
    assert own_certificate(tmp_path) == first
    assert ((tmp_path / "join.key").stat().st_mode & 0o777) == 0o600
    (tmp_path / "join.crt").write_bytes(b"spoilt")
    assert own_certificate(tmp_path).fingerprint != first.fingerprint


def issued(folder: Path) -> tuple[Path, Path]:
    """A certificate of box.example that an authority signed, with the authority's behind it, and its key."""
    authority, authoritys_key = certificate(folder)
    key, asked, cert = folder / "box.key", folder / "box.csr", folder / "box.pem"
    names = folder / "names"
    names.write_text("subjectAltName=DNS:box.example\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=box"]
    subprocess.run([*new, "-keyout", key, "-out", asked], check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-days", "2", "-CA", authority, "-CAkey", authoritys_key, "-CAcreateserial"]
    subprocess.run([*sign, "-in", asked, "-extfile", names, "-out", cert], check=True, capture_output=True)
    cert.write_bytes(cert.read_bytes() + authority.read_bytes())
    return cert, key


@pytest.mark.parametrize(("make", "name"), [(certificate, "localhost"), (issued, "box.example")])
async def test_a_certificate_that_is_given_is_shown_whoever_signed_it(
    tmp_path: Path, make: Callable[[Path], tuple[Path, Path]], name: str
) -> None:
    cert, key = make(tmp_path)
    config = GatewayConfig(
        tmp_path / "data", port=0, join_address="127.0.0.1:0", join_certfile=str(cert), join_keyfile=str(key)
    )
    gateway = Gateway(config)
    await gateway.start()
    try:
        shown = given_certificate(str(cert), str(key))
        assert shown.name == name
        dial = await asyncio.to_thread(pinned, gateway.fleet.joins.address, shown.fingerprint, shown.name)
        assert dial.certificate in cert.read_bytes()
        async with dial.aio_channel([]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await LinkStub(channel).Join(pb.JoinRequest(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # so it was trusted
    finally:
        await gateway.stop()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"join_address": "8870"}, "write HOST:PORT"),
        ({"join_address": "127.0.0.1:99999"}, "write HOST:PORT"),
        ({"join_address": "::1:0"}, "write HOST:PORT"),
        ({"join_address": "127.0.0.1:0", "join_certfile": "nowhere.pem"}, "takes both"),
        ({"join_address": "127.0.0.1:0", "join_certfile": "no.pem", "join_keyfile": "no.key"}, "cannot be used"),
        ({"join_address": "192.0.2.1:0"}, "give another --join-address"),
    ],
)
async def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, **settings))  # type: ignore[arg-type]
    with pytest.raises(Conflict, match=said):
        await gateway.start()
