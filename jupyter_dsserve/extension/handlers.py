"""``/dsserve``: the gateway's state and address, and everything else forwarded to it, behind Jupyter's own doors."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import asdict
from http.client import responses
from typing import Any

import aiohttp
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from jupyter_server.utils import url_path_join
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, authenticated

from jupyter_dsserve.extension.forward import answer_headers, has_api_key
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.records import GatewayAddress

# Looking never starts the gateway.
_LOOKING = ("health", "api/status", "api/events", "metrics", "openapi.json")
_LOGS = re.compile(r"api/deployments/[^/]+/versions/[^/]+/logs")  # an open tab asks again and again


class _Handler(ExtensionHandlerMixin, APIHandler):
    auth_resource = "dsserve"

    @property
    def extension(self) -> Any:
        """The `DSServeExtension`, which imports this module."""
        return self.extensionapp

    async def address(self, wait_s: float) -> GatewayAddress:
        try:
            return await self.extension.keeper.address(wait_s)
        except DSServeError as fault:
            raise HTTPError(fault.status, fault.message) from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Jupyter's shape and OpenAI's in one: below ``/dsserve/v1`` callers expect the second."""
        fault = kwargs.get("exc_info", (None, None))[1]
        message = (fault.log_message if isinstance(fault, HTTPError) else "") or responses.get(status_code, "error")
        kind = "invalid_request_error" if status_code < 500 else "server_error"
        if status_code == 503:
            self.set_header("Retry-After", "2")
        error = {"message": message, "type": kind, "param": None, "code": None}
        self.finish(json.dumps({"message": message, "reason": None, "error": error}))


class GatewayHandler(_Handler):
    """GET says how the gateway is and never starts it; POST starts it if need be, and tells address and key."""

    _track_activity = False

    @authenticated
    @authorized
    def get(self) -> None:
        self.finish(json.dumps(asdict(self.extension.keeper.status())))

    @authenticated
    @authorized
    async def post(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(asdict(await self.address(self.extension.start_wait_s))))


def _forwarding() -> Any:
    """A method of its own for each verb: `authorized` remembers the action of the first call of what it decorates."""

    @authenticated
    @authorized
    async def method(self: ForwardHandler, _path: str) -> None:
        await self.forward()

    return method


class ForwardHandler(_Handler):
    """Any path of the gateway. Cancelled when the caller leaves: the gateway then cancels its request."""

    is_stranger = False  # to Jupyter: it must not start the gateway
    _work: asyncio.Task[Any] | None = None
    _caller_left = False

    get, head, post, put, delete = (_forwarding() for _ in range(5))

    async def prepare(self) -> None:  # type: ignore[override]  # as Jupyter's own APIHandler does
        await super().prepare()
        # Looking is polled: it must not keep an idle server from being culled.
        self._track_activity = self.request.method not in ("GET", "HEAD")

    def on_connection_close(self) -> None:
        self._caller_left = True
        if self._work:
            self._work.cancel()

    async def forward(self) -> None:
        if self._caller_left:  # while Jupyter asked who it is
            return
        self._work = asyncio.current_task()
        try:
            async with await self._ask() as answer:
                await self._hand_on(answer)
        except StreamClosedError:
            pass  # the caller left while we wrote
        except asyncio.CancelledError:
            if not self._caller_left:
                raise
        finally:
            self._work = None

    async def _ask(self) -> aiohttp.ClientResponse:
        """The gateway's answer, as soon as its headers are there. Waits while the gateway starts or comes back."""
        # As it came: Tornado's own path argument is decoded, and `a%2Fb` must not become two segments.
        path = self.request.path[len(url_path_join(self.base_url, "dsserve/")) :]
        keeper, end = self.extension.keeper, time.monotonic() + self.extension.start_wait_s
        may_start = not (path.startswith(_LOOKING) or _LOGS.fullmatch(path) or self.is_stranger)
        while True:
            # Each time anew: one that drains is still told of, but hears nothing, and may be gone at the next turn.
            found = await self.address(max(0.0, end - time.monotonic())) if may_start else keeper.running()
            if not found:
                state = keeper.status().state.value
                raise HTTPError(503, f"the gateway is {state}: it starts when a model is loaded or asked")
            try:
                return await self.extension.forwarder.send(self.request, path, found)
            except aiohttp.ClientError as fault:  # it has just ended
                was_not_sent = isinstance(fault, aiohttp.ClientConnectorError)
                if time.monotonic() > end or not (was_not_sent or self.request.method in ("GET", "HEAD")):
                    raise HTTPError(503, f"the gateway ended before it answered ({fault}): ask again") from None
                await asyncio.sleep(0.1)

    async def _hand_on(self, answer: aiohttp.ClientResponse) -> None:
        self.set_status(answer.status, answer.reason)
        headers = answer_headers(answer)
        for name in headers:
            self.clear_header(name)
        for name, value in headers.items():
            self.add_header(name, value)
        # Each token is a packet of its own, which must not wait for the acknowledgement of the one before.
        connection: Any = self.request.connection
        connection.stream.set_nodelay(True)
        await self.flush()
        try:
            async for piece in answer.content.iter_any():
                self.write(piece)
                await self.flush()
        except aiohttp.ClientError:
            # Cut off, so that the caller sees that the end is missing: to finish would look like a whole answer.
            self.detach().close()
            return
        self.finish(set_content_type=headers.get("Content-Type", "application/json"))


class SlashHandler(ForwardHandler):
    """``/dsserve``: its page is at ``/dsserve/``, whose links are relative."""

    async def forward(self) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(f"{self.request.path}/{query}", status=307)


class InferenceHandler(ForwardHandler):
    """What asks models: an API key opens it, which only the gateway knows, so Jupyter is not asked whose that is, and
    its cookies say nothing. Without a key it is as everything else."""

    async def prepare(self) -> None:  # type: ignore[override]
        self.is_stranger = has_api_key(self.request) and self.request.method != "OPTIONS"
        if not self.is_stranger:
            await super().prepare()
            return
        self.current_user = self._jupyter_current_user = None
        if not self.check_host():
            raise HTTPError(403)
        if not self.check_origin():
            raise HTTPError(404)
        await self.forward()  # and Tornado goes no further, to the methods that need a user


HANDLERS: list[tuple[str, type[_Handler]]] = [
    (r"/dsserve()", SlashHandler),
    (r"/dsserve/gateway", GatewayHandler),
    (r"/dsserve/(v1/.*|v2|v2/.*|predict)", InferenceHandler),
    (r"/dsserve/(.*)", ForwardHandler),
]
