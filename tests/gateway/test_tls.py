"""TLS on the port of HTTP: who gets in, what is said where, and a certificate that is renewed under way."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import grpc.aio
import httpx
import openai
import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway import server
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.gateway.tls import ShownCertificate
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict, Unavailable
from tests.gateway.certificates import certificate
from tests.support import Command, until


def config(folder: Path, **settings: object) -> GatewayConfig:
    cert, key = certificate(folder)
    own = {"port": 0, "certfile": str(cert), "keyfile": str(key), "loads": (("demo", "toy:"),), **settings}
    return GatewayConfig(folder / "data", **own)  # type: ignore[arg-type]


def shown(address: tuple[str, int]) -> str:
    return ssl.get_server_certificate(address, timeout=10)


async def test_callers_come_by_tls_and_programs_of_the_machine_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    # 127.0.0.2 stands for another machine: to 127.0.0.1 the client needs no certificate that it trusts.
    options = ("--ip=127.0.0.2", f"--certfile={cert}", f"--keyfile={key}")
    with Command(tmp_path / "data", *options) as command:
        own = command.url()
        assert own.startswith("http://127.0.0.1:")
        await until(lambda: f"programs of this machine ask at {own}" in command.said())
        public = command.said().partition("serving at ")[2].split()[0]
        assert public.startswith("https://127.0.0.2:")
        async with await command.caller() as caller:
            await caller.load("demo", "v1", "toy:")
        monkeypatch.setenv("NO_PROXY", "*")
        async with httpx.AsyncClient() as without:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await without.get(f"{public}/health/live")
            with pytest.raises(httpx.TransportError):
                await without.get(f"{public.replace('https', 'http')}/health/live")
        async with AsyncClient(public, command.key) as client:
            with pytest.raises(Unavailable, match=r"trust who signed its certificate \(SSL_CERT_FILE"):
                await client.status()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))  # how a company's own authority is told to Python's clients
        async with AsyncClient(public, command.key) as client:
            told = await client.generate("demo", "over TLS", max_tokens=20)
        async with AsyncClient(own, command.key) as client:
            assert (await client.generate("demo", "over TLS", max_tokens=20)).text == told.text
        async with openai.AsyncOpenAI(base_url=f"{public}/v1", api_key=command.key, max_retries=0) as app:
            pieces = await app.completions.create(model="demo", prompt="over TLS", max_tokens=20, stream=True)
            assert "".join([piece.choices[0].text async for piece in pieces]) == told.text
        command.process.terminate()
        command.output()


async def test_what_was_written_is_shown_to_the_next_caller_and_half_of_it_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_RENEW_S", 0.01)
    gateway = Gateway(config(tmp_path, grpc_port=0))
    await gateway.start()
    try:
        https = ("127.0.0.1", int(gateway.public_url.rpartition(":")[2]))
        rpc = ("127.0.0.1", int(gateway.context.grpc_address.rpartition(":")[2]))
        before = (tmp_path / "cert.pem").read_text()
        for address in (https, rpc):
            assert await asyncio.to_thread(shown, address) == before

        (tmp_path / "new").mkdir()
        new, new_key = certificate(tmp_path / "new")
        shutil.copy(new, tmp_path / "cert.pem")  # its key is still on its way
        await asyncio.sleep(0.1)
        for address in (https, rpc):
            assert await asyncio.to_thread(shown, address) == before
        shutil.copy(new_key, tmp_path / "key.pem")

        async def is_renewed() -> bool:
            seen = [await asyncio.to_thread(shown, address) for address in (https, rpc)]
            return seen == [new.read_text()] * 2

        await until(is_renewed)
        credentials = grpc.ssl_channel_credentials(new.read_bytes())
        async with grpc.aio.secure_channel(gateway.context.grpc_address, credentials) as channel:
            await channel.channel_ready()
    finally:
        await gateway.stop()


async def test_the_port_without_tls_may_be_a_certain_one_and_where_it_is_taken_all_else_is_freed(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        for _ in range(2):
            with pytest.raises(Conflict, match=f"port {taken} on 127.0.0.1 .* another --local-port"):
                Gateway(config(tmp_path, ip="127.0.0.2", port=taken, local_port=taken))


async def test_who_never_ends_its_handshake_is_closed(tmp_path: Path) -> None:
    gateway = Gateway(config(tmp_path, idle_s=0.3))
    await gateway.start()
    try:
        port = int(gateway.public_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")  # how a handshake begins
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
    finally:
        await gateway.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ip", "0.0.0.0"), "give --certfile and --keyfile"),
        (("--certfile", "nowhere.pem"), "give --certfile and --keyfile"),
        (("--certfile", "nowhere.pem", "--keyfile", "no.key"), "--certfile nowhere.pem and --keyfile no.key cannot"),
    ],
)
def test_without_a_pair_that_can_be_used_it_does_not_start(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with Command(tmp_path / "data", *options) as command:
        assert words in command.output()
        assert command.process.returncode == 1


async def test_with_one_it_may_be_reached_from_other_machines(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    options = ("--ip", "0.0.0.0", "--grpc-port", "0", f"--certfile={cert}", f"--keyfile={key}")
    with Command(tmp_path / "data", *options) as command:
        assert command.url().startswith("http://127.0.0.1:")
        own = int(command.url().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", own)) as reached:
            assert reached.getpeername()[0] == "127.0.0.1"
        await until(lambda: "serving at https://0.0.0.0:" in command.said())
        command.process.terminate()
        command.output()


def test_the_reason_of_a_refused_renewal_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = certificate(tmp_path)
    one = ShownCertificate("", str(cert), str(key))
    before = one.context
    key.write_text("nonsense")
    for _ in range(3):
        one.look()
    assert [record.message for record in caplog.records if "not renewed" in record.message] == [caplog.messages[0]]
    assert one.context is before
    with pytest.raises(Conflict, match="cannot be used"):
        ShownCertificate("", str(cert), str(key))
