"""What a client can ask for: each verb once, as a conversation without I/O.

A conversation (`Talk`) yields what it wants sent, or the seconds it wants to pass, and is given the responses. The two
clients only drive it, one blocking and one awaiting (as httpx does with its authentication flows).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir
from pydantic import TypeAdapter

from jupyter_dsserve.notebook.answers import answer_of, asked
from jupyter_dsserve.notebook.find import JupyterServer, find
from jupyter_dsserve.notebook.views import Answer, Deployment, Status, Version
from jupyter_dsserve.protocol.errors import (
    DSServeError,
    InvalidRequest,
    NotFound,
    Unauthorized,
    Unavailable,
    error_named,
    error_with,
)
from jupyter_dsserve.protocol.records import Event, GatewayAddress, GatewayState, GatewayStatus, VersionState

POLL_S = 0.2
_SETTLED = (VersionState.READY, VersionState.FAILED, VersionState.STOPPED)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send. ``stream``: hand over the response as soon as its headers are there."""

    request: httpx.Request
    stream: bool = False


# httpx's errors are thrown into it. The response to seconds is None.
Talk = Generator[Send | float, Any, T]
OnProgress = Callable[[Version], object]

_DEPLOYMENT = TypeAdapter(Deployment)
_VERSION = TypeAdapter(Version)
_DEPLOYMENTS = TypeAdapter(list[Deployment])
_EVENTS = TypeAdapter(list[Event])
_GATEWAY = TypeAdapter(GatewayStatus)


class Verbs:
    """``url`` and ``key`` name a gateway; without them it is the one of this kernel's Jupyter server (see `find`)."""

    def __init__(self, url: str = "", key: str = "") -> None:
        self._given = GatewayAddress(url.rstrip("/"), key) if url else None
        self._found: GatewayAddress | None = None

    # ---- looking

    def gateway(self) -> Talk[GatewayStatus]:
        """How the gateway is. Starts nothing."""
        source = self._source()
        if isinstance(source, GatewayAddress):
            return GatewayStatus(GatewayState.RUNNING, source.url)
        return _GATEWAY.validate_python((yield from _ask_jupyter(source, "GET")))

    def address(self) -> Talk[GatewayAddress]:
        """Where the gateway answers, and its key: for ``OpenAI(base_url=f"{url}/v1", api_key=key)``. Starts it."""
        return (yield from self._address(start=True))

    def status(self) -> Talk[Status]:
        """The gateway and everything on it. Starts nothing."""
        gateway = yield from self.gateway()
        if gateway.state is not GatewayState.RUNNING:
            return Status(gateway)
        raw = yield from self._ask("GET", "/api/status")
        return Status(gateway, _DEPLOYMENTS.validate_python(raw["deployments"]))

    def deployment(self, name: str) -> Talk[Deployment]:
        """Raises `NotFound`."""
        return _DEPLOYMENT.validate_python((yield from self._ask("GET", _path(name))))

    def version(self, name: str, version: str) -> Talk[Version]:
        """Raises `NotFound`."""
        return _VERSION.validate_python((yield from self._ask("GET", _path(name, version))))

    def logs(self, name: str, version: str, num_lines: int = 200) -> Talk[dict[str, list[str]]]:
        """The last lines that each of the version's workers wrote."""
        found: dict[str, list[str]] = yield from self._ask("GET", f"{_path(name, version)}/logs?lines={num_lines}")
        return found

    def history(self) -> Talk[list[Event]]:
        """What happened, oldest first, as far as the gateway remembers."""
        return _EVENTS.validate_python((yield from self._ask("GET", "/api/history")))

    # ---- versions

    def load(
        self,
        name: str,
        model: str = "",
        version: str = "",
        *,
        runner: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        replicas: int | None = None,
        python: str | None = None,
        max_sequences: int | None = None,
        max_context: int | None = None,
        max_step_tokens: int | None = None,
        num_threads: int | None = None,
        note: str | None = None,
        wait: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Talk[Version]:
        """Load ``model`` as a version of the deployment ``name``, and wait until it is READY.

        ``model`` is a directory, a hub name or ``builtin:NAME``; without it a registered version is loaded again.
        Without ``version`` it is the one that has this model already, or else the next free of v1, v2, …; a version
        that is loaded just so is left alone. ``python="kernel"`` runs the worker under this kernel's interpreter. The
        other options are those of ``POST /api/deployments``. ``on_progress`` is called with the `Version` while it
        loads. Raises `Unavailable` with the reason if it fails to load.
        """
        options = {
            "runner": runner,
            "dtype": dtype,
            "device": device,
            "replicas": replicas,
            "python": sys.executable if python == "kernel" else python,
            "max_sequences": max_sequences,
            "max_context": max_context,
            "max_step_tokens": max_step_tokens,
            "num_threads": num_threads,
            "note": note,
        }
        given = {key: value for key, value in options.items() if value is not None}
        model = _absolute(model)
        known = [] if model and version else (yield from self._versions_of(name))
        if model and not version:
            version = version_for(known, model)
            if not given and version in [v.version for v in known]:  # registered, with whatever options
                model = ""
        if model:
            yield from self._ask(
                "POST", "/api/deployments", {"name": name, "version": version, "model": model, **given}
            )
        else:
            version = version or only_version(name, known)
            yield from self._ask("POST", f"{_path(name, version)}/load")
        if not wait:
            return (yield from self.version(name, version))
        return (yield from self._settled(name, version, on_progress))

    def unload(self, name: str, version: str = "", *, wait: bool = True) -> Talk[Deployment]:
        """Drain a version (or all of the deployment's) and end its workers; it stays registered."""
        for each in (yield from self._ids(name, version)):
            yield from self._ask("POST", f"{_path(name, each)}/unload")
        while True:
            found = yield from self.deployment(name)
            busy = [v for v in found.versions if v.state is VersionState.DRAINING and version in ("", v.version)]
            if not wait or not busy:
                return found
            yield POLL_S

    def delete(self, name: str, version: str = "") -> Talk[None]:
        """Unload a version (or the whole deployment) and forget it."""
        yield from self._ask("DELETE", _path(name, version) if version else _path(name))

    def activate(
        self, name: str, version: str, *, wait: bool = True, on_progress: OnProgress | None = None
    ) -> Talk[Deployment]:
        """Give a version all traffic, loading it first if need be; the others then drain and stop.

        Raises `Unavailable` with the reason if it fails to load; the others then serve on.
        """
        yield from self._ask("POST", f"{_path(name)}/activate", {"version": version})
        if wait:
            yield from self._settled(name, version, on_progress)
        while True:
            found = yield from self.deployment(name)
            if not wait or not found.activating:
                return found
            yield POLL_S

    def route(
        self, name: str, weights: Mapping[str, float] | None = None, *, revision: int | None = None
    ) -> Talk[Deployment]:
        """Set the weights, in percent, that sum to 100; without them, only look.

        With ``revision`` (of the `Deployment` that was looked at) a change that somebody made since is not
        overwritten: it raises `Conflict`.
        """
        if weights is not None:
            body: dict[str, Any] = {"weights": dict(weights)}
            if revision is not None:
                body["revision"] = revision
            yield from self._ask("PUT", f"{_path(name)}/route", body)
        return (yield from self.deployment(name))

    # ---- asking

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        user: str | None = None,
    ) -> Talk[Answer]:
        """The whole answer of ``model``: a deployment (``demo``) or one version of it (``demo@v2``).

        ``prompt`` is a text, token ids, or a chat (``[{"role": "user", "content": "…"}]``). ``user`` keeps their
        version while the weights stand.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        path, body = asked(model, prompt, options | {"seed": seed, "stop": stop, "user": user})
        response = yield from self.send("POST", path, body)
        return answer_of(response, model)

    # ---- inside

    def _source(self) -> JupyterServer | GatewayAddress:
        return self._given or find(os.environ, Path(jupyter_runtime_dir()), Path(jupyter_data_dir()) / "dsserve")

    def _address(self, start: bool) -> Talk[GatewayAddress]:
        if self._found:
            return self._found
        source = self._source()
        if isinstance(source, JupyterServer):
            gateway = yield from self.gateway()
            if not start and gateway.state is not GatewayState.RUNNING:
                raise Unavailable(f"the gateway is {gateway.state.value} {gateway.reason}".rstrip())
            source = GatewayAddress(**(yield from _ask_jupyter(source, "POST")))
        self._found = source
        return source

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Talk[Any]:
        """The answer's JSON. Raises the gateway's errors as ours."""
        return (yield from self.send(method, path, body)).json()

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        start: bool = True,
    ) -> Talk[httpx.Response]:
        """The answer, unless it is an error: then it is raised. ``start``: a gateway that does not run is started."""
        was_known = self._found is not None
        address = yield from self._address(start)
        request = httpx.Request(
            method, address.url + path, headers={"Authorization": f"Bearer {address.key}"}, json=body
        )
        try:
            response: httpx.Response = yield Send(request, stream)
        except httpx.ConnectError as fault:
            self._found = None
            if was_known and not self._given:  # it may have come back elsewhere
                return (yield from self.send(method, path, body, stream=stream, start=start))
            raise Unavailable(f"no gateway answers at {address.url} ({fault}): is it running?") from None
        except httpx.HTTPError as fault:
            raise Unavailable(f"the gateway at {address.url} did not answer ({_words(fault)}): ask again") from None
        if response.is_error:
            raise error_in(response.status_code, response.content)
        return response

    def _versions_of(self, name: str) -> Talk[list[Version]]:
        """Empty for a deployment that does not exist yet."""
        found = _DEPLOYMENTS.validate_python((yield from self._ask("GET", "/api/deployments")))
        return next((d.versions for d in found if d.name == name), [])

    def _ids(self, name: str, version: str) -> Talk[list[str]]:
        return [version] if version else [v.version for v in (yield from self.deployment(name)).versions]

    def _settled(self, name: str, version: str, on_progress: OnProgress | None) -> Talk[Version]:
        while True:
            now = yield from self.version(name, version)
            if on_progress:
                on_progress(now)
            if now.state is VersionState.READY:
                return now
            if now.state in _SETTLED:
                raise Unavailable(f"{now.id} is {now.state.value}: {now.reason or 'it was unloaded meanwhile'}")
            yield POLL_S


def version_for(known: Sequence[Version], model: str) -> str:
    """The version that ``model`` is loaded as: the one that has it, or else the next free of v1, v2, …"""
    if same := [v.version for v in known if v.spec.model == model]:
        return same[-1]
    taken = [int(v.version[1:]) for v in known if re.fullmatch(r"v\d{1,6}", v.version)]
    return f"v{max(taken, default=0) + 1}"


def only_version(name: str, known: Sequence[Version]) -> str:
    """The one version of ``name``. Raises `InvalidRequest` if there are none or several."""
    if len(known) == 1:
        return known[0].version
    if not known:
        raise InvalidRequest(f"{name} is not registered yet: name the model to load, such as builtin:demo-v1")
    names = ", ".join(v.id for v in known)
    raise InvalidRequest(f"{name} has {len(known)} versions: name one of {names}, or a model")


def error_in(status: int, content: bytes) -> DSServeError:
    """The error that an answer carries, in the gateway's shape, OpenAI's or Jupyter's."""
    try:
        raw = TypeAdapter(dict[str, Any]).validate_json(content)
    except ValueError:
        return error_with(status, f"HTTP {status}: {content[:200].decode(errors='replace')}")
    found = raw.get("error", raw)
    message, param = str(found.get("message", "")) or f"HTTP {status}", found.get("param")
    ours = error_named(str(found.get("type", "")), message, param)
    return ours if type(ours) is not DSServeError else error_with(status, message, param)


def _ask_jupyter(server: JupyterServer, method: str) -> Talk[Any]:
    request = httpx.Request(method, f"{server.url}/dsserve/gateway", headers={"Authorization": f"token {server.token}"})
    try:
        response: httpx.Response = yield Send(request)
    except httpx.HTTPError as fault:
        raise Unavailable(f"the Jupyter server at {server.url} does not answer ({_words(fault)})") from None
    if response.status_code == 404:
        raise NotFound(
            f"the Jupyter server at {server.url} does not have jupyter_dsserve: install it in that server's "
            "environment and start the server again"
        )
    if response.status_code == 403:
        raise Unauthorized(f"the Jupyter server at {server.url} does not let this kernel use dsserve")
    if response.is_error:
        raise error_in(response.status_code, response.content)
    return response.json()


def _words(fault: httpx.HTTPError) -> str:
    return str(fault) or type(fault).__name__


def _path(name: str, version: str = "") -> str:
    path = f"/api/deployments/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _absolute(model: str) -> str:
    """A directory by its whole path: the gateway has another working directory than the kernel."""
    try:
        path = Path(model).expanduser()
        return str(path.resolve()) if model and path.is_dir() else model
    except (OSError, RuntimeError):  # too long a name; no such user's home
        return model
