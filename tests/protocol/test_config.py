"""What a gateway is told goes from its door to its process unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_dsserve.protocol.config import AdmissionSettings, GatewayConfig
from jupyter_dsserve.protocol.errors import InvalidRequest


def test_a_config_goes_over_as_a_line_and_comes_back_equal() -> None:
    config = GatewayConfig(
        Path("/d"),
        loads=(("a", "b"),),
        memory_budget_bytes=7,
        admission=AdmissionSettings(max_wait_s=5),
        cors_origins=("https://a", "*"),
        open_metrics=True,
    )
    assert GatewayConfig.from_json(config.to_json()) == config


def test_a_doors_settings_are_read_by_name_and_its_own_words_go_before() -> None:
    door = {"memory_budget": "1GiB", "admission": {"stall_s": 9}, "port": 7, "data_dir": "/jupyters", "strange": 1}
    assert GatewayConfig.told(door, data_dir=Path("/ours")) == GatewayConfig(
        Path("/ours"), port=7, memory_budget_bytes=2**30, admission=AdmissionSettings(stall_s=9)
    )
    with pytest.raises(InvalidRequest, match="did you mean stall_s"):
        GatewayConfig.told({"admission": {"stal_s": 9}}, data_dir=Path("/ours"))
