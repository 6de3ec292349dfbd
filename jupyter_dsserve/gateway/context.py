"""`Context`: what every face of the gateway is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.shared_limits import SharedLimits
from jupyter_dsserve.gateway.calls import Calls
from jupyter_dsserve.gateway.connections import Connections
from jupyter_dsserve.gateway.feed import Feed
from jupyter_dsserve.gateway.proxies import Proxies
from jupyter_dsserve.gateway.tracing import Traces
from jupyter_dsserve.gateway.v2.regions import Regions


@dataclass(frozen=True, slots=True)
class Context:
    """``id`` is that of the data directory. ``grpc_address`` is where gRPC answers, ``host:port``; empty: nowhere.
    ``shared_limits`` are those of keys that other gateways have too."""

    fleet: Fleet
    admin_key: str = field(repr=False)
    max_body_bytes: int
    cors_origins: frozenset[str] = frozenset()
    open_metrics: bool = False
    proxies: Proxies = field(default_factory=Proxies)
    calls: Calls = field(default_factory=Calls)
    traces: Traces = field(default_factory=Traces)
    connections: Connections = field(default_factory=Connections)
    feed: Feed = field(default_factory=Feed)
    log_prompts: bool = False
    regions: Regions = field(default_factory=Regions)
    grpc_address: str = ""
    id: str = ""
    shared_limits: SharedLimits | None = None
