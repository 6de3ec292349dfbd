"""Probes of the Open Inference Protocol, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_dsserve.gateway.v2.handlers import Ready


@pytest.mark.parametrize(
    ("ready", "answer"),
    [
        ([], ({"ready": False}, 503)),
        ([set()], ({"ready": False}, 503)),
        ([set(), {"v1"}], ({"ready": True}, 200)),
    ],
)
def test_a_probe_asks_each_deployment_and_takes_no_status_of_all(ready: list[set[str]], answer: Any) -> None:
    """Anybody may probe, without a key: it is to cost little, however many versions and replicas there are."""
    told: list[Any] = []
    fleet = SimpleNamespace(deployments=lambda: [SimpleNamespace(ready=each) for each in ready])  # and nothing else
    probe: Any = SimpleNamespace(fleet=fleet, answer=lambda *args: told.append(args))
    Ready.get(probe)
    assert told == [answer]
