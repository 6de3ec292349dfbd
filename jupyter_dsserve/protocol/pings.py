"""How one end of a gRPC connection finds out that the other's machine is gone, or its network: it asks, and waits."""

from __future__ import annotations


def pings(every_s: int, wait_s: int) -> list[tuple[str, int]]:
    """Options of a channel or a server. After ``every_s`` seconds in which nothing came the other end is asked; without
    an answer the connection ends ``wait_s`` seconds later. An answer waits for what is on its way before it."""
    return [
        ("grpc.keepalive_time_ms", 1000 * every_s),
        ("grpc.keepalive_timeout_ms", 1000 * wait_s),
        # What counts in fact: the one before alone leaves gRPC's minute.
        ("grpc.http2.ping_timeout_ms", 1000 * wait_s),
    ]
