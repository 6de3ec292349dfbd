"""The gateway's end of the stream: workers dial in on a unix socket that only our user can reach."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import grpc.aio
from jupyter_core.paths import jupyter_runtime_dir

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, DSServeError
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION, WorkerLaunch
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkServicer, add_LinkServicer_to_server

log = logging.getLogger(__name__)

_MAX_TOGETHER_BYTES = 1 << 20
_MAX_SOCKET_PATH = 107  # gRPC refuses longer ones, after the kernel's sockaddr_un

_Context = grpc.aio.ServicerContext[pb.FromWorker, pb.ToWorker]


class Link(LinkServicer):
    """Matches a dialling worker with the `Replica` that expects it, and carries messages between the two."""

    def __init__(self, data_dir: Path, admit: Callable[[pb.JoinRequest, bool], WorkerLaunch]) -> None:
        """``admit`` says what a worker that people started is to load, or raises why it may not join. It is
        told whether that worker is on this machine."""
        self._admit = admit
        self._expected: dict[str, Replica] = {}
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        add_LinkServicer_to_server(self, self._server)
        self._dir = _socket_dir(data_dir)  # made in `start`

    @property
    def address(self) -> str:
        return f"unix:{self._dir / 'link.sock'}"

    async def start(self) -> None:
        self._dir.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Its name follows from the data directory, whose lock we hold: what a killed gateway left is ours to remove.
        shutil.rmtree(self._dir, ignore_errors=True)
        # Raises if somebody else's directory stands there: never put the socket into a place others can write to.
        self._dir.mkdir(mode=0o700)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=0)
        shutil.rmtree(self._dir, ignore_errors=True)

    def expect(self, replica: Replica) -> None:
        self._expected[replica.id] = replica

    def forget(self, replica: Replica) -> None:
        if self._expected.get(replica.id) is replica:
            del self._expected[replica.id]

    def knows(self, token: str) -> bool:
        """Whether a worker is expected that has it."""
        return any(hmac.compare_digest(token.encode(), r.token.encode()) for r in self._expected.values())

    async def Connect(  # noqa: N802  (the name is the .proto's)
        self, request_iterator: AsyncIterator[pb.FromWorker], context: _Context
    ) -> None:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        replica = self._expected.get(first.hello.replica)
        if refusal := _refusal(first.hello, replica):
            log.warning("refused a worker: %s", refusal)
            if replica and hmac.compare_digest(first.hello.token, replica.token):
                replica.failure = Conflict(refusal)
            await context.write(pb.ToWorker(refuse=pb.Refuse(reason=refusal)))
            return
        assert replica is not None
        replica.dialled(time.monotonic())
        sending = asyncio.create_task(_send(replica, context))
        try:
            async for message in request_iterator:
                if replica.state is VersionState.STOPPED:  # a joined worker that was given up, and goes on now
                    break
                replica.receive(message, time.monotonic())
        finally:
            replica.disconnected()
            # The sender ends by itself: to cancel it within a write would break the stream, and with it what the worker
            # still has to read.
            replica.commands.put_nowait(None)
            await asyncio.wait({sending})

    async def Join(  # noqa: N802
        self, request: pb.JoinRequest, context: grpc.aio.ServicerContext[pb.JoinRequest, pb.JoinReply]
    ) -> pb.JoinReply:
        refusal = _other_protocol(request.protocol_version, request.package_version)
        is_here = context.peer().startswith("unix:")
        try:
            if refusal:
                return pb.JoinReply(refusal=refusal)
            return pb.JoinReply(launch=self._admit(request, is_here).to_json())
        except DSServeError as fault:
            return pb.JoinReply(refusal=fault.message)


async def _send(replica: Replica, context: _Context) -> None:
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.BaseError):  # the worker is gone
        async for message in messages(replica.commands):
            await context.write(message)


async def messages(commands: asyncio.Queue[pb.ToWorker | None]) -> AsyncIterator[pb.ToWorker]:
    """What a worker is to hear, in order, up to the None. A message costs the gateway as much as the rest of a short
    request does: what has come while the one before was written goes together, up to some size."""
    command = await commands.get()
    while command is not None:
        several, num_bytes = [command], command.ByteSize()
        while not commands.empty() and num_bytes < _MAX_TOGETHER_BYTES:
            if (command := commands.get_nowait()) is None:
                break
            several.append(command)
            num_bytes += command.ByteSize()
        yield several[0] if len(several) == 1 else pb.ToWorker(several=pb.Several(commands=several))
        command = command and await commands.get()


def _refusal(hello: pb.Hello, replica: Replica | None) -> str:
    """Why this worker may not join; empty if it may."""
    if replica is None or not hmac.compare_digest(hello.token, replica.token):
        return f"no replica {hello.replica!r} with this token is expected here"
    if refusal := _other_protocol(hello.protocol_version, hello.package_version):
        return refusal
    if hello.spec_digest != replica.spec_digest:
        return f"the worker loaded spec {hello.spec_digest}, the replica is of spec {replica.spec_digest}"
    return ""


def _other_protocol(protocol_version: int, package_version: str) -> str:
    if protocol_version == PROTOCOL_VERSION:
        return ""
    return (
        f"the worker's jupyter_dsserve is {package_version} (protocol {protocol_version}), the "
        f"gateway's is {__version__} (protocol {PROTOCOL_VERSION}): pip install jupyter_dsserve=={__version__} "
        "in the worker's environment"
    )


def _socket_dir(data_dir: Path) -> Path:
    """A place for the socket whose path is short and plain enough: in the runtime directory, else the temporary one."""
    name = "dsserve-" + hashlib.blake2b(os.fsencode(data_dir.resolve()), digest_size=6).hexdigest()
    parents = (Path(jupyter_runtime_dir()), Path(tempfile.gettempdir()), Path("/tmp"))
    return next(parent / name for parent in parents if _is_socket_path(parent / name / "link.sock"))


def _is_socket_path(path: Path) -> bool:
    # gRPC reads the path out of a URL, where these signs mean something.
    return len(os.fsencode(path)) <= _MAX_SOCKET_PATH and not set("%#?") & set(str(path))
