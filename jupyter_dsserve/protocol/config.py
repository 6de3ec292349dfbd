"""`GatewayConfig`: what a gateway is told, whichever door it came through."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """``port`` 0 takes a free one. ``drain_s`` seconds are given to running requests at the end. ``loads`` are
    (deployment, model) pairs to serve from the start. ``restore``: versions that ran when the last gateway on this
    directory ended are loaded again; without it they are only registered. ``allow_code``: versions may load files that
    can run code (torch.export programs). ``database_url``: where versions, routes and history are kept, a
    ``postgresql://`` URL or ``@FILE`` with one in it; empty is SQLite in ``data_dir``. Of the history the last
    ``history_events`` of the last ``history_days`` are kept; zero sets no such limit."""

    data_dir: Path
    ip: str = "127.0.0.1"
    port: int = 8899
    drain_s: float = 30.0
    max_body_bytes: int = 16 * 1024 * 1024
    loads: tuple[tuple[str, str], ...] = ()
    restore: bool = True
    allow_code: bool = False
    database_url: str = field(default="", repr=False)  # a password may be in it
    history_events: int = 100_000
    history_days: float = 90.0

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"data_dir": str(self.data_dir)})

    @staticmethod
    def from_json(text: str) -> GatewayConfig:
        raw = json.loads(text)
        loads = tuple((name, model) for name, model in raw["loads"])
        return GatewayConfig(**(raw | {"data_dir": Path(raw["data_dir"]), "loads": loads}))
