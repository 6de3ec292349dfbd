"""Models of the hub: at one revision, and where there is no network."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.protocol.errors import InvalidRequest

# What a load reads: no pickled weights, no weights in other frameworks' files.
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*/*.safetensors", "*/*.json"]
_CONNECT_S = 5.0


def snapshot_at(path: str) -> str:
    """The directory of a hub name with a revision (``org/name@REVISION``: a commit, tag or branch), downloaded if it is
    not in the hub's cache; any other ``path`` as it is.

    Where the hub does not answer this process goes on without it, with what is in the cache: its client would try each
    file again for half a minute. Raises `InvalidRequest` if the model cannot be had then.
    """
    if path.startswith("toy:"):
        return path
    if os.path.exists(path):
        if (adapter := Adapter.read(Path(path))) and not os.path.exists(adapter.base):
            _reach_or_do_without(adapter.base, None)
        return path
    name, sign, revision = path.partition("@")
    _reach_or_do_without(name, revision or None)
    if not sign:
        return path
    from huggingface_hub import snapshot_download  # here: few versions are named so, and it takes a while
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except (HfHubHTTPError, OSError, ValueError) as fault:
        said = " ".join(str(fault).split())
        raise InvalidRequest(f"model {path} cannot be had from the hub: {said}", param="model") from fault


def _reach_or_do_without(name: str, revision: str | None) -> None:
    """Raises `InvalidRequest` if neither the hub answers nor its cache has the model."""
    from huggingface_hub import constants, try_to_load_from_cache

    why = "it is told not to be asked (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        why = _silence(constants.ENDPOINT)
        if not why:
            return
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the other ranks
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        at = f"{name}@{revision}" if revision else name
        raise InvalidRequest(
            f"model {at} cannot be had from the hub: {why}, and it is not in the hub's cache on this machine: bring it "
            f"there (hf download {name}), or give a directory",
            param="model",
        )


def _silence(endpoint: str) -> str:
    """Why the hub at ``endpoint`` does not answer; empty if it does, whatever it says. Asks through a proxy if the
    environment names one."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_CONNECT_S).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as fault:
        reason = fault.reason if isinstance(fault, urllib.error.URLError) else fault
        # The hub's client may know certificates that Python does not.
        return "" if isinstance(reason, ssl.SSLError) else f"{endpoint} does not answer ({reason})"
    return ""
