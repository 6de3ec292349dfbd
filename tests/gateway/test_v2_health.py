"""Probes of the Open Inference Protocol, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_dsserve.gateway.v2.handlers import Ready


@pytest.mark.parametrize(
    ("ready", "is_leaving", "answer"),
    [
        ([], False, ({"ready": False}, 503)),
        ([set()], False, ({"ready": False}, 503)),
        ([set(), {"v1"}], False, ({"ready": True}, 200)),
        ([set(), {"v1"}], True, ({"ready": False}, 503)),
    ],
)
def test_a_probe_asks_each_deployment_and_takes_no_status_of_all(
    ready: list[set[str]], is_leaving: bool, answer: Any
) -> None:
    """Anybody may probe, without a key: it is to cost little, however many versions and replicas there are."""
    told: list[Any] = []
    fleet = SimpleNamespace(deployments=lambda: [SimpleNamespace(ready=each) for each in ready])  # and nothing else
    context = SimpleNamespace(connections=SimpleNamespace(is_leaving=is_leaving))
    probe: Any = SimpleNamespace(context=context, fleet=fleet, answer=lambda *args: told.append(args))
    Ready.get(probe)
    assert told == [answer]
