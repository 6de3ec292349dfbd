"""`GatewayConfig`: what a gateway is told, whichever door it came through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """``port`` 0 takes a free one. ``drain_s`` seconds are given to running requests at the end. ``loads`` are
    (deployment, model) pairs to serve from the start."""

    data_dir: Path
    ip: str = "127.0.0.1"
    port: int = 8899
    drain_s: float = 30.0
    max_body_bytes: int = 16 * 1024 * 1024
    loads: tuple[tuple[str, str], ...] = ()
