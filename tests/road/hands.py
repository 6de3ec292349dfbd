"""What the tests of joining share: workers started as a person would, and a network between them and the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import subprocess
import sys
from pathlib import Path

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from tests.support import Caller, Json


def parts(command: str) -> tuple[str, list[str]]:
    """Of ``printf TOKEN | python …``: the token, and the words after python."""
    told, _, words = command.partition(" | ")
    return shlex.split(told)[-1], shlex.split(words)[1:]


def put_together(token: str, words: list[str]) -> str:
    return f"printf '%s\\n' {token} | python {shlex.join(words)}"


class Hands:
    """Starts workers as a person would in a shell, and ends them with the test."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: str, python: str = sys.executable) -> subprocess.Popen[bytes]:
        token, words = parts(command)
        with self._log.open("ab") as log:
            process = subprocess.Popen([python, *words], stdin=subprocess.PIPE, stdout=log, stderr=log)
        self.processes.append(process)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it may have ended already
            process.stdin.write(f"{token}\n".encode())
        return process

    @property
    def said(self) -> str:
        return self._log.read_text()


async def command(gateway: Gateway) -> str:
    client = AsyncClient(gateway.url, gateway.admin_key)
    try:
        return (await client.join("demo", "v1")).command
    finally:
        await client.aclose()


async def replicas(caller: Caller) -> list[Json]:
    found: list[Json] = (await caller.version("demo", "v1"))["replicas"]
    return found


class Network:
    """The way to ``address``, until it is dead: then nothing goes through, and no connection ends."""

    def __init__(self, address: str) -> None:
        self._to = address.rpartition(":")
        self._ways: list[tuple[asyncio.StreamWriter, list[asyncio.Task[None]]]] = []
        self.is_dead = False

    async def __aenter__(self) -> Network:
        self._server = await asyncio.start_server(self._lead, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer, pumps in self._ways:
            for pump in pumps:
                pump.cancel()
            writer.close()

    def revive(self) -> None:
        """Connections whose bytes were swallowed end: to go on without them they cannot."""
        self.is_dead = False
        for writer, _ in self._ways:
            writer.close()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond, there = await asyncio.open_connection(self._to[0], int(self._to[2]))
        pumps = [asyncio.create_task(self._pump(reader, there)), asyncio.create_task(self._pump(beyond, writer))]
        self._ways += [(writer, pumps), (there, [])]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not self.is_dead:
                writer.write(data)
        if not self.is_dead:
            writer.close()


# A worker that asks more often than others whether the gateway is there.
ASKING = """
from jupyter_dsserve.protocol.pings import pings
from jupyter_dsserve.worker import dial
dial._PINGS = pings(2, 2)
from jupyter_dsserve.worker.__main__ import main
main()
"""
