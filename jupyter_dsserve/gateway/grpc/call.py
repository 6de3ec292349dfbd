"""What all gRPC methods share: the key, the caller's deadline, errors as statuses, cancelling when it leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from tornado.httputil import HTTPHeaders

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.generate import start
from jupyter_dsserve.gateway.v2.peers import peer_named
from jupyter_dsserve.protocol.errors import DeadlineExceeded, DSServeError, InvalidRequest, TooManyRequests, Unavailable
from jupyter_dsserve.protocol.request import Request
from jupyter_dsserve.protocol.spec import Task
from jupyter_dsserve.protocol.traces import Attribute

log = logging.getLogger(__name__)

# On one stream; while so many run no more are read from it, and its caller's writes wait.
MAX_AT_ONCE = 256

# Of a deadline may have passed before it came here.
_ON_THE_WAY = 0.1

ServicerContext = grpc.aio.ServicerContext[Any, Any]
R = TypeVar("R")


# A caller that has read nothing is told that it is cut, and waited for so long: it may go on reading.
_TOLD_S = 1.0
# Bytes a second: how much of a message a caller takes is not known before all of it is, and a large one takes its time.
_SLOWEST = 100_000


class Stalled(Exception):
    """A caller took nothing of what was written for the gateway's ``stall_s``."""


class GrpcAsker(Asker):
    """The caller of ``method``; several of one ``call``, if that is a stream of many requests."""

    def __init__(self, context: Context, call: ServicerContext, method: str) -> None:
        self.enter(context)
        self.call, self.method = call, method
        self.code = grpc.StatusCode.OK
        self._headers = headers_of(call.invocation_metadata())
        self._began = time.monotonic()
        self._has_begun = False  # to answer on a stream

    @property
    def sent_headers(self) -> HTTPHeaders:
        return self._headers

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def address(self) -> str:
        """The caller's, as it is over HTTP: without the port."""
        peer = peer_named(self.call.peer())
        return self.context.proxies.caller(peer[0] if peer else "", self._headers.get_list("X-Forwarded-For"))

    def attributes(self) -> Mapping[str, Attribute]:
        return {
            "rpc.system": "grpc",
            "rpc.method": self.method,
            "rpc.grpc.status_code": number_of(self.code),
            "client.address": self.address,
        }

    def again(self) -> GrpcAsker:
        """For one more request on the same stream. Raises `Unauthorized` if its key holds no more."""
        another = GrpcAsker(self.context, self.call, self.method)
        another.check_key()
        return another

    async def ask(
        self,
        model: str,
        requests: Sequence[Request],
        task: Task = "generate",
        check: Callable[[Version], None] = lambda _version: None,
    ) -> Answering:
        """As `generate.start`, within the caller's deadline. An empty ``model`` is the only one there is.

        Raises `InvalidRequest` if there are several, `DeadlineExceeded` if it has passed.
        """
        left_s = self.call.time_remaining()
        if left_s is not None:
            if left_s <= 0:
                raise _late()
            requests = [replace(r, timeout_s=min(left_s, r.timeout_s or left_s)) for r in requests]
        return await start(self, model or self.only_model(), requests, task=task, check=check)

    async def tell(self, message: Message) -> None:
        """Write it on the stream, which takes one at a time. Raises `Stalled`; nothing may be written after that."""
        if not self._has_begun:  # with the first message they would wait as that does, and no end could be sent
            self._has_begun = True
            await self.call.send_initial_metadata(())
        writing = asyncio.ensure_future(self.call.write(message))
        # Never cancelled, for gRPC still holds what it was given: it ends with the call.
        stall_s = self.context.connections.stall_s
        await asyncio.wait((_heard(writing),), timeout=(stall_s and stall_s + message.ByteSize() / _SLOWEST) or None)
        if not writing.done():
            raise Stalled
        try:
            writing.result()
        except grpc.aio.InternalError:  # the call has ended meanwhile
            raise asyncio.CancelledError from None

    async def cut(self) -> None:
        """End the call of one that has stalled. All that ran for it has ended; what is left is the message that was
        being written, and this end, which wait in gRPC for its reader, or for the end of its connection."""
        connections = self.context.connections
        connections.num_cut += 1
        stall_s = connections.stall_s
        log.warning("a caller read nothing of %s for %g s (stall_s): its call is cut", self.method, stall_s)
        told = f"nothing of the answer was read for {stall_s:g} s, which is the gateway's stall_s: read faster"
        ending = asyncio.ensure_future(self.call.abort(self.code, told, self.trailing))
        await asyncio.wait((_heard(ending),), timeout=_TOLD_S)

    def only_model(self) -> str:
        names = sorted(d.name for d in self.fleet.deployments() if self.may_ask(d.name))
        if len(names) > 1:
            raise InvalidRequest(f"no model is named, and there are {', '.join(names)}: name one", param="model")
        return names[0] if names else ""

    def failed(self, fault: BaseException) -> DSServeError:
        """Note what the call ended with; what of it may be told."""
        self.fault = fault
        told = fault
        if not isinstance(told, DSServeError):
            log.error("%s failed", self.method, exc_info=fault)
            told = DSServeError("Internal Server Error: the gateway's log says more")
        self.code = code_of(told)
        if isinstance(told, Unavailable | TooManyRequests):
            self.keep_header("Retry-After", str(told.retry_after_s))
        return told

    def left(self) -> None:
        """Its caller has gone, or has set a deadline that has passed now, by its own clock: that began sooner than ours
        by the way here."""
        left_s = self.call.time_remaining()
        if left_s is not None and left_s <= _ON_THE_WAY * (left_s + self.passed_s):
            self.failed(_late())
        else:
            self.caller_left = True
            self.code = grpc.StatusCode.CANCELLED

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self.kept.items())


@asynccontextmanager
async def calling(asker: GrpcAsker) -> AsyncIterator[GrpcAsker]:
    """A call of a model from here to its end. Raises `DSServeError` for whatever it ends with, `Stalled` as it is."""
    try:
        yield asker
    except (asyncio.CancelledError, Stalled):
        asker.left()
        raise
    except Exception as fault:
        raise asker.failed(fault) from None
    finally:
        asker.end_call()


@asynccontextmanager
async def asked(
    context: Context, call: ServicerContext, method: str, *, is_open: bool = False
) -> AsyncIterator[GrpcAsker]:
    """A method's work: needs a key unless it ``is_open``; what it raises becomes the call's status."""
    asker = GrpcAsker(context, call, method)
    try:
        async with calling(asker):
            if not is_open:
                asker.check_key()
            yield asker
        call.set_trailing_metadata(asker.trailing)
    except DSServeError as fault:
        await call.abort(asker.code, fault.message, asker.trailing)
    except Stalled:
        await asker.cut()


async def each(requests: AsyncIterator[R], answer: Callable[[R], Awaitable[None]]) -> None:
    """Answer all that come on a stream, many at once; returns with the last. What an ``answer`` raises ends them all,
    and is raised."""
    running: set[asyncio.Future[None]] = set()
    broken: asyncio.Future[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    def ended(task: asyncio.Future[None]) -> None:
        running.discard(task)
        if (task.cancelled() or task.exception()) and not broken.done():
            broken.set_result(task)

    async def read() -> None:
        async for request in requests:
            if len(running) >= MAX_AT_ONCE:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.ensure_future(answer(request))
            running.add(task)
            task.add_done_callback(ended)
        if running:
            await asyncio.wait(running)

    reading = asyncio.ensure_future(read())
    try:
        await asyncio.wait((reading, broken), return_when=asyncio.FIRST_COMPLETED)
        (broken.result() if broken.done() else reading).result()
    finally:
        left = [reading, *running]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def code_of(fault: DSServeError) -> grpc.StatusCode:
    return grpc.StatusCode[fault.grpc_code]


def number_of(code: grpc.StatusCode) -> int:
    """As it travels."""
    value: tuple[int, str] = code.value
    return value[0]


def headers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> HTTPHeaders:
    """A caller's metadata as the headers that they would be over HTTP; binary ones are none."""
    headers = HTTPHeaders()
    for name, value in metadata or ():
        if isinstance(value, str):
            headers.add(name, value)
    return headers


def _heard(task: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """One whose fault asyncio does not log: who waits for it looks, or has gone."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline of the call has passed: give it a longer one")
