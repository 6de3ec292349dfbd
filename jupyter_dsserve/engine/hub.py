"""Models of the hub at one revision."""

from __future__ import annotations

import os

from jupyter_dsserve.protocol.errors import InvalidRequest

# What a load reads: no pickled weights, no weights in other frameworks' files.
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*/*.safetensors", "*/*.json"]


def snapshot_at(path: str) -> str:
    """The directory of a hub name with a revision (``org/name@REVISION``: a commit, tag or branch), downloaded if it is
    not in the hub's cache; any other ``path`` as it is. Raises `InvalidRequest` if it cannot be had."""
    name, sign, revision = path.partition("@")
    if not sign or os.path.exists(path):
        return path
    from huggingface_hub import snapshot_download  # here: few versions are named so, and it takes a while
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except (HfHubHTTPError, OSError, ValueError) as fault:
        said = " ".join(str(fault).split())
        raise InvalidRequest(f"model {path} cannot be had from the hub: {said}", param="model") from fault
