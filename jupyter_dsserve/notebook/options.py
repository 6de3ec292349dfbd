"""What a load, and a policy, may be told, once for client, magic and type checker: the fields of the routes' bodies."""

from __future__ import annotations

import getpass
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from jupyter_dsserve.protocol.policy import Rule


class LoadOptions(TypedDict, total=False):
    """Each as in `protocol.spec.WorkerSpec`; None leaves it to the gateway. ``metadata`` is of the run that trained the
    model, a flat mapping (``{"run": "r7", "loss": 2.5}``); ``created_by`` is you unless told."""

    task: str | None
    runner: str | None
    dtype: str | None
    device: str | None
    replicas: int | None
    python: str | None
    max_sequences: int | None
    max_context: int | None
    kv_bytes: int | None
    max_step_tokens: int | None
    num_threads: int | None
    tp: int | None
    zero: str | None
    nvme_dir: str | None
    quantize: str | None
    min_agreement: float | None
    priority: str | None
    note: str | None
    created_by: str | None
    metadata: Mapping[str, str | float | bool | None] | None


class PolicyOptions(TypedDict, total=False):
    """Each as in `protocol.policy.Policy`; None leaves it as it is."""

    rate: float | None
    burst: int | None
    max_in_flight: int | None
    max_queue: int | None
    acquire_timeout_s: float | None
    queue_timeout_s: float | None
    first_token_timeout_s: float | None
    timeout_s: float | None
    fallback: str | None
    fallback_answer: str | None
    rules: Sequence[Rule | Mapping[str, str]] | None
    retry_share: float | None
    min_retries: int | None
    breaker_failures: int | None
    breaker_share: float | None
    breaker_open_s: float | None
    breaker_successes: int | None


def given(options: LoadOptions) -> dict[str, Any]:
    """What of it was given, with this kernel's interpreter where ``python`` is ``kernel``."""
    found = {name: value for name, value in options.items() if value is not None}
    return found | ({"python": sys.executable} if found.get("python") == "kernel" else {})


def user_name() -> str:
    """Who loads: JupyterHub's name for the user, or the system's; empty if neither says."""
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


def shown(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the options one by one, for help and completion."""
    parameters = []
    for each in signature.parameters.values():
        options = next((o for o in (LoadOptions, PolicyOptions) if f"[{o.__name__}]" in str(each.annotation)), None)
        if each.kind is not inspect.Parameter.VAR_KEYWORD or options is None:
            parameters.append(each)
            continue
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind.__forward_arg__)
            for name, kind in options.__annotations__.items()
        ]
    return signature.replace(parameters=parameters)
