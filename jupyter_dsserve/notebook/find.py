"""Which Jupyter server, or else which gateway, belongs to this kernel. Looks at files and the environment only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.records import GatewayAddress

_REMEDY = "name one: %dsserve connect URL, or Client(URL, key=KEY)"
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
        return JupyterServer(env["JUPYTERHUB_SERVICE_URL"].rstrip("/"), env["JUPYTERHUB_API_TOKEN"])
    parent = env.get("JPY_PARENT_PID", "")
    record = runtime_dir / f"jpserver-{parent}.json"
    if parent and record.exists():
        return _server(json.loads(record.read_text()))
    held = holder(data_dir)
    if held and held.url:
        return GatewayAddress(held.url, read_admin_key(data_dir))
    others = sorted(runtime_dir.glob("jpserver-*.json")) if runtime_dir.is_dir() else []
    known = [json.loads(path.read_text()).get("url", "") for path in others]
    here = f"; Jupyter servers known here: {', '.join(known)}" if known else ""
    raise NotFound(f"this kernel was not started by a Jupyter server, and no gateway runs{here}; {_REMEDY}")


def _server(info: Mapping[str, object]) -> JupyterServer:
    if info.get("sock"):
        raise NotFound(f"the Jupyter server listens on the socket {info['sock']}, not on a port: {_REMEDY}")
    if not info.get("token"):
        raise NotFound(
            "the Jupyter server that started this kernel has no token (a password alone opens it), so a kernel cannot "
            f"ask it: start it with a token, or {_REMEDY}"
        )
    host = str(info.get("hostname", ""))
    host = "127.0.0.1" if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host
    scheme = "https" if info.get("secure") else "http"
    base = str(info.get("base_url", "/")).rstrip("/")
    return JupyterServer(f"{scheme}://{host}:{info['port']}{base}", str(info["token"]))
