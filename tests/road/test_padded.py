"""A model that cannot share a batch goes the whole road, and its status says which runner serves it and why."""

from __future__ import annotations

import asyncio
from pathlib import Path

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.engine import families
from tests.support import Caller


async def test_a_state_space_model_is_served_and_its_status_says_how(tmp_path: Path) -> None:
    model = families.save("mamba", tmp_path / "mamba")
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, drain_s=5))
    await gateway.start()
    try:
        async with Caller(gateway.url, gateway.admin_key) as caller:
            loaded = await caller.load("demo", "v1", str(model), num_threads=1, dtype="fp32")
            assert loaded["state"] == "READY", loaded["reason"]
            why = "padded: MambaForCausalLM has layers of type linear_attention"
            assert [replica["runner"] for replica in loaded["replicas"]] == [why]
            asked = [caller.complete("demo", prompt="hello " * n, temperature=0, max_tokens=6) for n in (1, 9)]
            together = [answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*asked)]
            alone = await caller.complete("demo", prompt="hello " * 9, temperature=0, max_tokens=6)
            assert alone.json()["choices"][0]["text"] == together[1]
    finally:
        await gateway.stop()
