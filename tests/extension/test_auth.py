"""Every route below /dsserve is behind Jupyter's authentication and authorization."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from jupyter_dsserve.extension.handlers import HANDLERS, ForwardHandler, GatewayHandler
from jupyter_dsserve.gateway import control, generate, openai
from tests.support import Caller, JupyterServer

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")


def all_routes() -> list[tuple[str, str]]:
    """(method, path) of everything: our own routes, and each of the gateway's."""
    patterns = [p for p, _ in (*openai.ROUTES, *generate.ROUTES, *control.ROUTES)]
    paths = ["/gateway", "/", "/no/such/path", *(re.sub(r"\(\[\^/\]\+\)|\.\*", "x", p) for p in patterns)]
    return [(method, path) for path in paths for method in METHODS]


def test_the_walk_knows_all_handlers() -> None:
    assert [handler for _, handler in HANDLERS] == [GatewayHandler, ForwardHandler]
    assert len(all_routes()) > 100


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "token wrong"}, {"Cookie": "username-x=y"}]
)
async def test_without_jupyters_token_no_route_answers_and_nothing_starts(
    server: JupyterServer, headers: dict[str, str]
) -> None:
    async with server.caller() as known, httpx.AsyncClient(headers=headers, trust_env=False) as stranger:
        before = (await known.get("/gateway")).json()
        for method, path in all_routes():
            answer = await stranger.request(method, f"{server.url}/dsserve{path}")
            assert answer.status_code == 403, (method, path, answer.text)
        assert (await known.get("/gateway")).json() == before


async def test_a_preflight_tells_a_stranger_nothing_of_the_gateway(server: JupyterServer) -> None:
    """Jupyter answers OPTIONS itself, to anyone."""
    async with httpx.AsyncClient(trust_env=False) as stranger:
        for path in ("/gateway", "/api/status", "/v1/completions"):
            answer = await stranger.options(f"{server.url}/dsserve{path}", headers={"Origin": "http://elsewhere"})
            assert (answer.status_code, answer.content) == (200, b"")
            assert not answer.headers.get("Access-Control-Allow-Origin")


async def test_the_gateways_own_key_does_not_open_jupyter(server: JupyterServer) -> None:
    async with server.caller() as known:
        key = (await known.post("/gateway")).json()["key"]
    async with server.caller(token=key) as stranger:
        assert (await stranger.get("/api/status")).status_code == 403


@pytest.mark.parametrize(("authorizer", "allowed"), [("DenyDSServe", set()), ("ReadOnly", {"GET", "HEAD"})])
async def test_the_authorizer_is_asked_for_every_route(home: Path, authorizer: str, allowed: set[str]) -> None:
    with JupyterServer(home, f"--ServerApp.authorizer_class=tests.extension.deny.{authorizer}") as server:
        async with server.caller() as caller:
            for method, path in all_routes():
                if method in allowed and path == "/api/events":
                    continue  # an answer without an end
                answer = await caller.request(method, path)
                if method == "PATCH" or (path == "/gateway" and method not in ("GET", "POST")):
                    assert answer.status_code == 405
                elif method not in allowed:
                    assert answer.status_code == 403, (method, path)
                else:
                    assert answer.status_code in (200, 400, 401, 404, 405, 503), (method, path, answer.text)


async def test_a_cookie_opens_get_and_needs_the_xsrf_token_for_the_rest(server: JupyterServer, through: Caller) -> None:
    async with httpx.AsyncClient(base_url=f"{server.url}/dsserve", trust_env=False) as browser:
        await browser.get(f"{server.url}/login", params={"token": server.token}, follow_redirects=True)
        assert (await browser.get("/api/status")).status_code == 200
        assert (await browser.post("/gateway")).status_code == 403
        cookie = next(v for k, v in browser.cookies.items() if k == "_xsrf")
        assert (await browser.post("/gateway", headers={"X-XSRFToken": cookie})).status_code == 200
