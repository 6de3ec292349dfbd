"""Which Jupyter server, or else which gateway, belongs to this kernel. Looks at files and environments only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.records import GatewayAddress

_REMEDY = "name one: %dsserve connect URL, or Client(URL, key=KEY)"
_GENERATIONS = 3
_ANY_ADDRESS = {"", "0.0.0.0", "::", "*", "localhost"}


@dataclass(frozen=True, slots=True)
class JupyterServer:
    """Where it answers, without a slash at the end, and the token that opens it (and a shell: keep it to yourself)."""

    url: str
    token: str = field(repr=False)


def find(env: Mapping[str, str], runtime_dir: Path, data_dir: Path) -> JupyterServer | GatewayAddress:
    """The Jupyter server that started this kernel; outside of one, the gateway that runs on the user's data directory.

    Raises `NotFound` with what to do if there is neither: a server that merely runs here may be somebody else's work.
    """
    if env.get("JUPYTERHUB_SERVICE_URL") and env.get("JUPYTERHUB_API_TOKEN"):
        service = urlsplit(env["JUPYTERHUB_SERVICE_URL"])
        port = f":{service.port}" if service.port else ""
        url = f"{service.scheme}://{_reachable(service.hostname or '')}{port}{service.path.rstrip('/')}"
        return JupyterServer(url, env["JUPYTERHUB_API_TOKEN"])
    parent = env.get("JPY_PARENT_PID", "")
    for _ in range(_GENERATIONS):  # a kernel that a notebook starts belongs to the notebook's server
        if parent and (info := _read(runtime_dir / f"jpserver-{parent}.json")):
            return _server(info)
        parent = _parent_of(parent)
    held = holder(data_dir)
    if held and held.url:
        return GatewayAddress(held.url, read_admin_key(data_dir))
    others = sorted(runtime_dir.glob("jpserver-*.json")) if runtime_dir.is_dir() else []
    known = [str(info["url"]) for path in others if (info := _read(path)).get("url")]
    here = f"; Jupyter servers known here: {', '.join(known)}" if known else ""
    raise NotFound(f"this kernel was not started by a Jupyter server, and no gateway runs{here}; {_REMEDY}")


def _parent_of(pid: str) -> str:
    """The process that started the kernel ``pid``, if it is one and ours."""
    try:
        return psutil.Process(int(pid)).environ().get("JPY_PARENT_PID", "")
    except (ValueError, OSError, psutil.Error):
        return ""


def _server(info: Mapping[str, Any]) -> JupyterServer:
    if info.get("sock"):
        raise NotFound(f"the Jupyter server listens on the socket {info['sock']}, not on a port: {_REMEDY}")
    if not info.get("token"):
        how = "a password alone opens it" if info.get("password") else "it asks nobody who they are"
        raise NotFound(
            f"the Jupyter server that started this kernel has no token ({how}), and a kernel needs one to ask it: "
            f"start it with a token, or {_REMEDY}"
        )
    scheme = "https" if info.get("secure") else "http"
    host, base = _reachable(str(info.get("hostname", ""))), str(info.get("base_url", "/")).rstrip("/")
    return JupyterServer(f"{scheme}://{host}:{info['port']}{base}", str(info["token"]))


def _reachable(host: str) -> str:
    """An address that this machine reaches, for one that a server listens on."""
    return "127.0.0.1" if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host


def _read(record: Path) -> dict[str, Any]:
    """What a server wrote down about itself; empty if it is not there, or only half of it."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
