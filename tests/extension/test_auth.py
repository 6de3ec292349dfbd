"""Every route below /dsserve is behind Jupyter's authentication and authorization."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_dsserve.extension.handlers import HANDLERS, ForwardHandler, GatewayHandler, InferenceHandler, SlashHandler
from jupyter_dsserve.gateway.server import ROUTES
from tests.support import Caller, JupyterServer

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
INFERENCE = re.compile(r"/(v1/.*|v2|v2/.*|predict)")

# Every route of the Jupyter server that these options make, with all its extensions.
LIST_ROUTES = """
import json, sys
from jupyter_server.serverapp import ServerApp
app = ServerApp()
app.initialize(sys.argv[1:], new_httpserver=False)
rules = [rule for outer in app.web_app.default_router.rules for rule in getattr(outer.target, "rules", [])]
print(json.dumps([rule.matcher.regex.pattern for rule in rules]))
"""


def patterns_of(server: JupyterServer) -> list[str]:
    line = [sys.executable, "-c", LIST_ROUTES, *server.options]
    listing = subprocess.run(line, env=server.env, capture_output=True, text=True, check=True).stdout
    found: list[str] = json.loads(listing.splitlines()[-1])
    return found


def example_of(pattern: str) -> str:
    """A path that the pattern of a route takes."""

    def text(parts: Any) -> str:
        said = ""
        for kind, value in parts:
            name = str(kind)
            if name == "LITERAL":
                said += chr(value)
            elif name in ("MAX_REPEAT", "MIN_REPEAT"):
                said += text(value[2]) * max(1, value[0])
            elif name == "SUBPATTERN":
                said += text(value[3])
            elif name == "BRANCH":
                said += text(value[1][0])
            elif name == "IN":
                one = value[0]
                said += chr(one[1]) if str(one[0]) == "LITERAL" else "x"
            elif name in ("ANY", "NOT_LITERAL"):
                said += "x"
        return said

    found = text(re._parser.parse(pattern))  # type: ignore[attr-defined]
    assert re.fullmatch(pattern.rstrip("$"), found), (pattern, found)
    return found


def all_routes() -> list[tuple[str, str]]:
    """(method, path) of everything: our own routes, and each of the gateway's."""
    patterns = [p for p, _ in ROUTES]
    paths = ["", "/gateway", "/", "/no/such/path", *(re.sub(r"\(\[\^/\]\+\)|\.\*", "x", p) for p in patterns)]
    return [(method, path) for path in paths for method in METHODS]


def test_the_walk_knows_all_handlers() -> None:
    assert [handler for _, handler in HANDLERS] == [SlashHandler, GatewayHandler, InferenceHandler, ForwardHandler]
    assert len(all_routes()) > 100


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "token wrong"}, {"Cookie": "username-x=y"}]
)
async def test_without_jupyters_token_no_route_answers_and_nothing_starts(
    server: JupyterServer, headers: dict[str, str]
) -> None:
    async with server.caller() as known, httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as stranger:
        before = (await known.get("/gateway")).json()
        for method, path in all_routes():
            answer = await stranger.request(method, f"{server.url}/dsserve{path}")
            assert answer.status_code == 403, (method, path, answer.text)
        assert (await known.get("/gateway")).json() == before


async def test_a_preflight_tells_a_stranger_nothing_of_the_gateway(server: JupyterServer) -> None:
    """Jupyter answers OPTIONS itself, to anyone."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as stranger:
        for path in ("/gateway", "/api/status", "/v1/completions"):
            answer = await stranger.options(f"{server.url}/dsserve{path}", headers={"Origin": "http://elsewhere"})
            assert (answer.status_code, answer.content) == (200, b"")
            assert not answer.headers.get("Access-Control-Allow-Origin")


async def test_the_gateways_own_key_does_not_open_jupyter(server: JupyterServer) -> None:
    async with server.caller() as known:
        key = (await known.post("/gateway")).json()["key"]
    async with server.caller(token=key) as stranger:
        assert (await stranger.get("/api/status")).status_code == 403


@pytest.fixture
async def key(through: Caller) -> str:
    """Of an app, which only asks models."""
    return str((await through.post("/api/keys", json={"name": "app"})).json()["key"])


async def test_an_apps_key_opens_nothing_of_jupyter_that_was_not_open_to_strangers(
    server: JupyterServer, key: str
) -> None:
    patterns = patterns_of(server)
    hanging = [pattern for pattern in patterns if "/lab/api/licenses" in pattern]  # whoever asks, in JupyterLab 4.4
    paths = {example_of(pattern) for pattern in patterns if pattern not in hanging}
    root = server.url[: -len(server.base_url.rstrip("/"))]
    below = f"{server.base_url}dsserve"
    paths |= {below + path for _, path in all_routes()}
    assert len(paths) > 100
    assert {f"{server.base_url}api/contents/x", f"{server.base_url}api/kernels"} <= paths
    num_open = 0
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=root, trust_env=False, timeout=30) as stranger:
        for path in sorted(paths):
            for method in METHODS:
                mine = await outcome(stranger, method, path, headers)
                if path.startswith(below) and INFERENCE.fullmatch(path.removeprefix(below)):
                    if path.startswith(f"{below}/v2/repository/models/"):  # loads and unloads: the gateway refuses it
                        assert mine[0] in (403, 405), (method, path, mine)
                        continue
                    assert mine[0] not in (401, 403), (method, path, mine)
                    num_open += 1
                    continue
                assert mine == await outcome(stranger, method, path, {}), (method, path)
    assert num_open >= 15 * len(METHODS)


async def outcome(client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]) -> tuple[int, str | None]:
    """Status and where it sends one; a status of 0 for some of Jupyter's own that only hang up."""
    try:
        answer = await client.request(method, path, headers=headers)
    except httpx.RemoteProtocolError:
        return 0, None
    return answer.status_code, answer.headers.get("Location")


async def test_an_apps_key_asks_through_jupyter_with_its_own_limits(server: JupyterServer, through: Caller) -> None:
    new = (await through.post("/api/keys", json={"name": "app", "deployments": ["demo"], "rate": 0.01})).json()
    async with server.caller(token=new["key"]) as app:
        assert (await app.complete()).status_code == 200
        assert (await app.complete()).status_code == 429  # not the admin key, with which Jupyter forwards its users
    async with server.caller(token=f"{new['key']}x") as wrong:
        answer = await wrong.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    await through.delete(f"/api/keys/{new['id']}")
    async with server.caller(token=new["key"]) as gone:
        assert (await gone.complete()).status_code == 401


async def test_a_key_beside_jupyters_cookie_is_still_what_counts(server: JupyterServer, through: Caller) -> None:
    new = (await through.post("/api/keys", json={"name": "app", "deployments": ["other"]})).json()
    async with httpx.AsyncClient(base_url=f"{server.url}/dsserve", trust_env=False, timeout=60) as browser:
        await browser.get(f"{server.url}/login", params={"token": server.token}, follow_redirects=True)
        assert [m["id"] for m in (await browser.get("/v1/models")).json()["data"]] == ["demo"]
        mine = await browser.get("/v1/models", headers={"Authorization": f"Bearer {new['key']}"})
        assert mine.json()["data"] == []


async def test_a_key_does_not_start_a_gateway_that_is_off(home: Path) -> None:
    with JupyterServer(home) as server:
        async with server.caller(token="dsk_of-anybody") as stranger, server.caller() as known:
            answer = await stranger.complete()
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert (await known.get("/gateway")).json()["state"] == "OFF"


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
    async with httpx.AsyncClient(base_url=f"{server.url}/dsserve", trust_env=False, timeout=60) as browser:
        await browser.get(f"{server.url}/login", params={"token": server.token}, follow_redirects=True)
        assert (await browser.get("/api/status")).status_code == 200
        assert (await browser.post("/gateway")).status_code == 403
        cookie = next(v for k, v in browser.cookies.items() if k == "_xsrf")
        assert (await browser.post("/gateway", headers={"X-XSRFToken": cookie})).status_code == 200
