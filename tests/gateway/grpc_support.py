"""What the tests of gRPC share: a gateway in a process of its own, as callers meet it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from jupyter_dsserve.protocol import inference_pb2_grpc as stubs
from tests.support import Caller, Command


@dataclass
class Served:
    caller: Caller
    address: str
    key: str

    def with_key(self, key: str | None = None) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {key or self.key}"),)

    @contextlib.asynccontextmanager
    async def inference(
        self, credentials: grpc.ChannelCredentials | None = None, options: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[stubs.InferenceStub]:
        async with self.channel(credentials, options) as channel:
            yield stubs.InferenceStub(channel)

    def channel(
        self, credentials: grpc.ChannelCredentials | None = None, options: Sequence[tuple[str, str]] = ()
    ) -> grpc.aio.Channel:
        if credentials:
            return grpc.aio.secure_channel(self.address, credentials, options=options)
        return grpc.aio.insecure_channel(self.address, options=options)


@contextlib.asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[Served]:
    with Command(folder / "data", "--grpc-port", "0", "--drain", "5", *options) as command:
        async with await command.caller() as caller:
            address = json.loads((folder / "data/gateway.lock").read_text())["grpc"]
            yield Served(caller, address, command.key)
        command.process.terminate()
        command.output()
