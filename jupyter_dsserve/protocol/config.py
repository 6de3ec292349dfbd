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
    build_s: float = 120.0
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
    """``port`` 0 takes a free one. ``drain_s`` seconds are given to running requests at the end. ``loads`` are
    (deployment, model) pairs to serve from the start. ``restore``: versions that ran when the last gateway on this
    directory ended are loaded again; without it they are only registered. ``allow_code``: versions may load files that
    can run code (torch.export programs). ``database_url``: where versions, routes and history are kept, a
    ``postgresql://`` URL or ``@FILE`` with one in it; empty is SQLite in ``data_dir``. Of the history the last
    ``history_events`` of the last ``history_days`` are kept, and what versions did each minute for ``stats_days``; zero
    sets no such limit. ``memory_budget_bytes``: the most
    that we hold of each device; 0 is 75 % of what is free at the start.
    ``limits_url`` is a Redis in which gateways share the limits of keys, or ``@FILE`` with its URL; empty is none.
    ``max_calls`` of models run at once, and more get 429; 0 sets no limit. Pages from ``cors_origins`` may ask from a
    browser (``*``: any). ``open_metrics``: ``/metrics`` needs no key. Of the last ``traces`` calls
    of models is kept what happened when; 0 keeps none. ``otlp_endpoint`` is where traces are sent, a URL of OTLP over
    gRPC or HTTP; empty is the environment's. ``trace_sample``: the share of them, 0 to 1, where the caller says
    nothing; None is the environment's, or all. ``log_prompts``: the beginning of each prompt is logged.
    ``log_json``: so are workers' lines, all of it in JSON. ``access_log``: each request has a line.
    A connection is cut whose reader takes nothing of what waits for it for ``stall_s`` seconds, whose request's body is
    not there after ``body_s``, or that asks nothing for ``idle_s`` (0: never, each of them). Beyond ``max_connections``
    new ones get 503 (0: three quarters of the files that the process may open).
    ``grpc_port`` is that of gRPC, on ``grpc_ip`` (empty: ``ip``): 0 takes a free one, None is no gRPC; with
    ``grpc_certfile`` and ``grpc_keyfile``, both PEM, it speaks TLS. At ``join_address`` (``HOST:PORT``; empty: nowhere)
    workers of other machines join, over TLS with ``join_certfile`` and ``join_keyfile``, or with a certificate that the
    gateway makes.
    ``deployments`` is a file whose deployments are applied at the start, and with ``watch`` whenever it was written."""

    data_dir: Path
    ip: str = "127.0.0.1"
    port: int = 8899
    grpc_port: int | None = None
    grpc_ip: str = ""
    grpc_certfile: str = ""
    grpc_keyfile: str = ""
    join_address: str = ""
    join_certfile: str = ""
    join_keyfile: str = ""
    drain_s: float = 30.0
    max_body_bytes: int = 16 * 1024 * 1024
    loads: tuple[tuple[str, str], ...] = ()
    restore: bool = True
    allow_code: bool = False
    database_url: str = field(default="", repr=False)  # a password may be in it
    limits_url: str = field(default="", repr=False)  # likewise
    history_events: int = 100_000
    history_days: float = 90.0
    stats_days: float = 14.0
    memory_budget_bytes: int = 0
    max_calls: int = 0
    max_connections: int = 0
    stall_s: float = 60.0
    body_s: float = 120.0
    idle_s: float = 75.0
    cors_origins: tuple[str, ...] = ()
    open_metrics: bool = False
    traces: int = 200
    otlp_endpoint: str = ""
    trace_sample: float | None = None
    log_prompts: bool = False
    log_json: bool = False
    access_log: bool = True
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    deployments: str = ""
    watch: bool = False

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
        own = {"data_dir": Path(raw["data_dir"]), "loads": loads, "cors_origins": tuple(raw["cors_origins"])}
        return GatewayConfig(**(raw | own | {"admission": AdmissionSettings(**raw["admission"])}))
