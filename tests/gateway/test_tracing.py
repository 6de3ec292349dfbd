"""What is kept of a call that may have asked for anything."""

from __future__ import annotations

from jupyter_dsserve.fleet.tracing import MAX_MODEL
from jupyter_dsserve.gateway.tracing import Traces
from jupyter_dsserve.protocol.request import Request


def test_of_a_name_of_megabytes_little_is_kept() -> None:
    trace = Traces().begin("m" * 5_000_000, Request("a", "x"))
    assert trace is not None
    assert trace.model == "m" * MAX_MODEL
