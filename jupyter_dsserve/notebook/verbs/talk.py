"""A conversation with the gateway, without I/O: what is sent, and what becomes of an answer.

A conversation (`Talk`) yields what it wants sent, or the seconds it wants to pass, and is given the responses. The two
clients only drive it, one blocking and one awaiting (as httpx does with its authentication flows).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir
from pydantic import TypeAdapter

from jupyter_dsserve.notebook.address import checked_key, checked_url
from jupyter_dsserve.notebook.find import JupyterServer, find
from jupyter_dsserve.notebook.views import Deployment, Version
from jupyter_dsserve.protocol.errors import (
    DSServeError,
    InvalidRequest,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_named,
    error_with,
    no_answer,
)
from jupyter_dsserve.protocol.records import GatewayAddress, GatewayState, GatewayStatus

POLL_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send. ``stream``: hand over the response as soon as its headers are there."""

    request: httpx.Request
    stream: bool = False


# httpx's errors are thrown into it. The response to seconds is None.
Talk = Generator[Send | float, Any, T]
OnProgress = Callable[[Any], object]  # a `Version`; a `Saving` while a model of this kernel is saved


# What several verbs read.
DEPLOYMENT = TypeAdapter(Deployment)
VERSION = TypeAdapter(Version)
DEPLOYMENTS = TypeAdapter(list[Deployment])
_GATEWAY = TypeAdapter(GatewayStatus)
_ADDRESS = TypeAdapter(GatewayAddress)


class Talking:
    """``url`` and ``key`` name a gateway; without them it is the one of this kernel's Jupyter server (see `find`)."""

    def __init__(self, url: str = "", key: str = "") -> None:
        """Raises `InvalidRequest` for what can be no URL or no key."""
        self._given = GatewayAddress(checked_url(url), checked_key(key)) if url else None
        self._found: GatewayAddress | None = None

    @property
    def url(self) -> str:
        """Where the gateway answered last; empty before the first time."""
        return self._found.url if self._found else ""

    @property
    def is_given(self) -> bool:
        """Whether a URL named the gateway: who runs it may be somebody else."""
        return self._given is not None

    def gateway(self) -> Talk[GatewayStatus]:
        """How the gateway is."""
        source = self._source()
        if isinstance(source, GatewayAddress):
            return GatewayStatus(GatewayState.RUNNING, source.url)
        return read(_GATEWAY, (yield from _ask_jupyter(source, "GET")), source.url)

    def address(self) -> Talk[GatewayAddress]:
        """Where the gateway answers, and its key: for ``OpenAI(base_url=f"{url}/v1", api_key=key)``."""
        return (yield from self._address(start=True))

    # ---- inside

    def _source(self) -> JupyterServer | GatewayAddress:
        return self._given or find(os.environ, Path(jupyter_runtime_dir()), Path(jupyter_data_dir()) / "dsserve")

    def _address(self, start: bool) -> Talk[GatewayAddress]:
        if self._found:
            return self._found
        source = self._source()
        if isinstance(source, JupyterServer):
            gateway = yield from self.gateway()
            if not start and gateway.state in (GatewayState.OFF, GatewayState.FAILED):
                why = f": {gateway.reason}" if gateway.reason else "; it starts when a model is loaded or asked"
                raise Unavailable(f"the gateway is {gateway.state.value}{why}")
            source = read(_ADDRESS, (yield from _ask_jupyter(source, "POST")), source.url)
        self._found = source
        return source

    def _look(self, adapter: TypeAdapter[T], path: str, *, start: bool = False) -> Talk[T]:
        """What stands at ``path``. Raises `Unavailable` if no gateway runs, unless ``start``: then it is started."""
        response = yield from self.send("GET", path, start=start)
        return read(adapter, response, self.url)

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, stream: bool = False, start: bool = True
    ) -> Talk[httpx.Response]:
        """The answer, unless it is an error: then it is raised. ``start``: a gateway that does not run is started."""
        was_known = self._found is not None
        address = yield from self._address(start)
        sent = {"Authorization": f"Bearer {address.key}"}
        try:
            request = httpx.Request(method, address.url + path, headers=sent, json=body)
        except ValueError as fault:  # JSON has no NaN
            raise InvalidRequest(f"it cannot be sent ({fault}): give finite numbers") from None
        try:
            response: httpx.Response = yield Send(request, stream)
        except httpx.HTTPError as fault:
            self._found = None
            is_gone = isinstance(fault, httpx.ConnectError)
            may_repeat = is_gone or (method == "GET" and not isinstance(fault, httpx.TimeoutException))
            if may_repeat and was_known and not self._given:
                # It has just ended, and may come back elsewhere: what was not taken, or only looks, is asked again.
                return (yield from self.send(method, path, body, stream=stream, start=start))
            if is_gone:
                raise no_answer(address.url, fault) from None
            raise Unavailable(f"the gateway at {address.url} did not answer ({_words(fault)}): ask again") from None
        if not response.is_success:
            error = error_in(response.status_code, response.content)
            if isinstance(error, TooManyRequests | Unavailable):
                error.retry_after_s = int(response.headers.get("Retry-After", error.retry_after_s))
            raise error
        return response


def error_in(status: int, content: bytes) -> DSServeError:
    """The error that an answer carries, in the gateway's shape, OpenAI's or Jupyter's."""
    try:
        raw = TypeAdapter(dict[str, Any]).validate_json(content)
    except ValueError:
        return error_with(status, f"HTTP {status}: {content[:200].decode(errors='replace')}")
    found = raw.get("error", raw)
    found = found if isinstance(found, dict) else {"message": found}
    message, param = str(found.get("message", "")) or f"HTTP {status}", found.get("param")
    ours = error_named(str(found.get("type", "")), message, param)
    return ours if type(ours) is not DSServeError else error_with(status, message, param)


def _ask_jupyter(server: JupyterServer, method: str) -> Talk[httpx.Response]:
    request = httpx.Request(method, f"{server.url}/dsserve/gateway", headers={"Authorization": f"token {server.token}"})
    try:
        response: httpx.Response = yield Send(request)
    except httpx.HTTPError as fault:
        raise Unavailable(
            f"the Jupyter server at {server.url} does not answer ({_words(fault)}): does it still run?"
        ) from None
    if response.status_code == 404:
        raise NotFound(
            f"the Jupyter server at {server.url} does not have jupyter_dsserve: install it in that server's "
            "environment and start the server again"
        )
    if response.status_code == 403:
        raise Unauthorized(
            f"the Jupyter server at {server.url} does not let this kernel use dsserve: its own settings say who may"
        )
    if not response.is_success:
        raise error_in(response.status_code, response.content)
    return response


def read(adapter: TypeAdapter[T], response: httpx.Response, url: str) -> T:
    try:
        return adapter.validate_json(response.content)
    except ValueError:
        raise Unavailable(
            f"what answers at {url} is not a dsserve gateway (a Jupyter server has its own at URL/dsserve)"
        ) from None


def _words(fault: httpx.HTTPError) -> str:
    # A LocalProtocolError quotes the header that is wrong, and a key may stand in it.
    return "" if isinstance(fault, httpx.LocalProtocolError) else str(fault) or type(fault).__name__


def path_of(name: str, version: str = "") -> str:
    path = f"/api/deployments/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path
