"""Which notebook a kernel belongs to: Jupyter servers of this user say it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

_CONNECTION_FILE = re.compile(r"kernel-([0-9a-zA-Z-]+)\.json$")
_ANSWER_S = 2.0


def kernel_id(command: Sequence[str]) -> str:
    """The id in the connection file that a kernel's command line names; empty if it is no kernel."""
    return next((found[1] for word in command if (found := _CONNECTION_FILE.search(word))), "")


def notebooks(runtime_dir: Path | None = None) -> dict[str, str]:
    """The name of the notebook (or console) of each kernel, by the kernel's id, as this user's Jupyter servers tell.

    Blocks for two seconds at most for each server that does not answer; what cannot be asked is left out.
    """
    folder = runtime_dir or Path(jupyter_runtime_dir())
    found: dict[str, str] = {}
    for file in folder.glob("jpserver-*.json"):
        try:
            server = json.loads(file.read_text())
            found |= _sessions(str(server["url"]).rstrip("/"), str(server.get("token", "")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _sessions(url: str, token: str) -> dict[str, str]:
    import httpx  # here: a gateway whose memory nobody asks for need not load it

    try:
        # A server on this machine may have made its own certificate, and no proxy stands on the way to it.
        with httpx.Client(verify=False, trust_env=False, timeout=_ANSWER_S) as client:
            answer = client.get(f"{url}/api/sessions", headers={"Authorization": f"token {token}"})
            sessions = answer.raise_for_status().json()
        return {one["kernel"]["id"]: Path(one["path"]).name or one["name"] for one in sessions}
    except (httpx.HTTPError, KeyError, TypeError) as fault:
        raise OSError(f"{url} does not tell its sessions: {fault}") from fault
