"""`GatewayConfig`: what a gateway is told, whichever door it came through."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.sizes import bytes_of

Priority = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """When a load may start, and how long it may take.

    ``share_…``: the part of what we may hold of a device that one version of a class may take, 0 to 1. ``timeout_…_s``:
    seconds a load of the class may take, from its admission, besides its bytes at ``bytes_per_s`` and ``build_s`` where
    DeepSpeed may build an operation first. ``stall_s``: seconds that a load may go without any progress. ``ageing_s``:
    a load that has waited so much longer is before one of the class above. ``max_wait_s``: seconds a load may wait for
    memory; 0 is as long as it takes.
    """

    share_high: float = 0.8
    share_medium: float = 0.5
    share_low: float = 0.3
    timeout_high_s: float = 30.0
    timeout_medium_s: float = 60.0
    timeout_low_s: float = 120.0
    bytes_per_s: float = 20e6
    build_s: float = 300.0  # alone on a machine it takes half a minute
    stall_s: float = 60.0
    ageing_s: float = 300.0
    max_wait_s: float = 0.0

    def share(self, priority: Priority) -> float:
        return {"high": self.share_high, "medium": self.share_medium, "low": self.share_low}[priority]

    def timeout_s(self, priority: Priority) -> float:
        return {"high": self.timeout_high_s, "medium": self.timeout_medium_s, "low": self.timeout_low_s}[priority]

    @staticmethod
    def read(given: Mapping[str, Any]) -> AdmissionSettings:
        """The defaults, but for what is given. Raises `InvalidRequest` for a name nobody knows, or no fit number."""
        known = [f.name for f in fields(AdmissionSettings)]
        numbers: dict[str, float] = {}
        for name, value in given.items():
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise InvalidRequest(
                    f"admission has no {name!r}: " + (f"did you mean {near[0]}?" if near else f"use {', '.join(known)}")
                )
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError):
                numbers[name] = math.nan
            most = 1.0 if name.startswith("share") else math.inf
            is_fit = 0 <= numbers[name] <= most and math.isfinite(numbers[name])
            if not is_fit or (name == "bytes_per_s" and numbers[name] == 0):
                limits = "from 0 to 1" if most == 1 else "of 0 or more" if name != "bytes_per_s" else "over 0"
                raise InvalidRequest(f"admission's {name} is {value!r}: give a number {limits}")
        return AdmissionSettings(**numbers)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that a gateway is told. Where a field says nothing else, 0 sets no limit."""

    data_dir: Path  # keys, versions, routes, logs

    # ---- where it answers; a port of 0 takes a free one

    ip: str = "127.0.0.1"
    port: int = 8899
    certfile: str = ""  # PEM, as the key; with them `ip` and `port` speak TLS, and `local_port` of 127.0.0.1 does not
    keyfile: str = ""
    local_port: int = 0  # of use with TLS alone
    grpc_port: int | None = None  # None is no gRPC
    grpc_ip: str = ""  # empty is `ip`
    grpc_certfile: str = ""  # PEM, as the key; without them gRPC has those of HTTP, or no TLS
    grpc_keyfile: str = ""
    join_address: str = ""  # HOST:PORT where workers of other machines join, over TLS; empty is nowhere
    join_certfile: str = ""  # PEM, as the key; without them the gateway makes a certificate
    join_keyfile: str = ""
    cors_origins: tuple[str, ...] = ()  # whose pages may ask from a browser; ``*`` is any
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks whose X-Forwarded-For says who calls, in logs
    open_metrics: bool = False  # /metrics needs no key

    # ---- what it serves from the start

    loads: tuple[tuple[str, str], ...] = ()  # (deployment, model) pairs
    deployments: str = ""  # a file whose deployments are applied
    watch: bool = False  # and again whenever it was written
    restore: bool = True  # load again what ran when the last gateway on this directory ended; else only register it

    # ---- what versions may do and hold

    allow_code: bool = False  # they may load files that can run code (torch.export programs)
    memory_budget_bytes: int = 0  # the most that we hold of each device; 0 is 75 % of what is free at the start
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    notice_s: float = 0.0  # for which it goes on, told to stop, and says that it is not ready
    drain_s: float = 30.0  # for running requests, at an unload and at the end; 0 ends them at once

    # ---- what callers may do

    max_body_bytes: int = 16 * 1024 * 1024
    max_calls: int = 0  # of models, at once; more get 429
    max_connections: int = 0  # more get 503; 0 is three quarters of the files that the process may open
    stall_s: float = 60.0  # until a connection is cut whose reader takes nothing of what waits for it
    body_s: float = 120.0  # in which a request's body must have come
    idle_s: float = 75.0  # that a connection may ask nothing
    limits_url: str = field(default="", repr=False)  # a Redis that gateways share keys' limits in, or @FILE

    # ---- what it keeps

    database_url: str = field(default="", repr=False)  # postgresql://, or @FILE with it; empty is SQLite in `data_dir`
    history_events: int = 100_000
    history_days: float = 90.0
    stats_days: float = 14.0  # of what versions did each minute
    traces: int = 200  # of the last calls of models what happened when; 0 keeps none

    # ---- what it tells

    otlp_endpoint: str = ""  # where traces are sent, by OTLP over gRPC or HTTP; empty is the environment's
    trace_sample: float | None = None  # the share of them, where the caller says nothing; None: the environment's
    access_log: bool = True  # a line for each request
    log_json: bool = False  # all of it, workers' lines too
    log_prompts: bool = False  # the beginning of each

    @staticmethod
    def told(settings: Mapping[str, Any], **own: Any) -> GatewayConfig:
        """From a door's ``settings`` by name, of which some are no fields, and its ``own`` words for fields.

        ``memory_budget`` is a text, ``admission`` a mapping. Raises `InvalidRequest` for what they cannot be.
        """
        same = {f.name: settings[f.name] for f in fields(GatewayConfig) if f.name in settings}
        budget, admission = settings.get("memory_budget", ""), settings.get("admission", {})
        read = {"memory_budget_bytes": bytes_of(budget), "admission": AdmissionSettings.read(admission)}
        return GatewayConfig(**(same | read | own))

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"data_dir": str(self.data_dir)})

    @staticmethod
    def from_json(text: str) -> GatewayConfig:
        raw = json.loads(text)
        loads = tuple((name, model) for name, model in raw["loads"])
        own = {"data_dir": Path(raw["data_dir"]), "loads": loads}
        lists = {name: tuple(raw[name]) for name in ("cors_origins", "trusted_proxies")}
        return GatewayConfig(**(raw | own | lists | {"admission": AdmissionSettings(**raw["admission"])}))
