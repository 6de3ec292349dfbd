"""Forwarding to the gateway: bytes as they come, and an answer that is cancelled when its caller leaves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import parse_qsl, urlencode

import aiohttp
from multidict import CIMultiDict
from tornado.httputil import HTTPServerRequest
from yarl import URL

from jupyter_dsserve.protocol.records import GatewayAddress

# RFC 9110 §7.6.1: between two neighbours only. Length and coding are the next connection's own.
_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade", "host", "content-length", "accept-encoding"),
}
# What opens the Jupyter server is none of the gateway's business: it also opens a shell.
_SECRETS = {"authorization", "cookie", "x-xsrftoken"}
_JUPYTERS_ARGUMENTS = {"token", "_xsrf", "no_track_activity"}
# Set anew on this side, or telling of the other one.
_ANSWER_ONLY = {"date", "server", "set-cookie"}
_SILENT_S = 40.0  # the gateway says every 15 s that it is still there


class Forwarder:
    """A pool of connections to the gateway. Made within the running loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
            trust_env=False,  # the gateway is on this machine, whatever proxy there is
        )

    async def send(self, request: HTTPServerRequest, path: str, to: GatewayAddress) -> aiohttp.ClientResponse:
        """Ask the gateway for ``path`` (percent-encoded as it came), with its caller's own API key if there is one.
        Raises aiohttp's errors."""
        url = URL(f"{to.url}/{path}{_query(request.query)}", encoded=True)
        headers = _without(request.headers, _HOP | _SECRETS)
        headers["Via"] = "1.1 jupyter"  # RFC 9110 §7.6.3; what is for callers on this machine only is not for ours
        headers["Authorization"] = request.headers["Authorization"] if has_api_key(request) else f"Bearer {to.key}"
        body = request.body or None
        return await self._session.request(
            request.method or "GET", url, headers=headers, data=body, allow_redirects=False
        )

    async def activity(self, of: GatewayAddress) -> tuple[int, int]:
        """How many requests the gateway has taken, and how many of them run. Raises aiohttp's errors."""
        headers = {"Authorization": f"Bearer {of.key}"}
        async with self._session.get(f"{of.url}/api/status", headers=headers, raise_for_status=True) as answer:
            status = await answer.json()
            return status["num_requests"], status["in_flight"]

    def listen(self, to: GatewayAddress, last_id: int) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The gateway's events after ``last_id``, server-sent. Raises aiohttp's errors, and `TimeoutError` when it is
        silent for longer than it ever is."""
        headers = {"Authorization": f"Bearer {to.key}", "Last-Event-ID": str(last_id)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENT_S)
        return self._session.get(f"{to.url}/api/events", headers=headers, timeout=timeout, raise_for_status=True)

    async def close(self) -> None:
        await self._session.close()


def has_api_key(request: HTTPServerRequest) -> bool:
    """Whether it brings a key of the gateway's, which that checks; Jupyter's own tokens look otherwise."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and key.strip().startswith("dsk_")


def answer_headers(response: aiohttp.ClientResponse) -> CIMultiDict[str]:
    """The headers to hand on."""
    return _without(response.headers, _HOP | _ANSWER_ONLY)


def _without(headers: Mapping[str, str], names: set[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in names)


def _query(query: str) -> str:
    if not query:
        return ""
    kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k not in _JUPYTERS_ARGUMENTS]
    return f"?{urlencode(kept)}" if kept else ""
