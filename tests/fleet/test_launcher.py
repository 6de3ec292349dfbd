"""What a worker is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_dsserve.fleet.launcher import LocalLauncher
from jupyter_dsserve.protocol.spec import WorkerLaunch, WorkerSpec

PRINTS = "#!/bin/sh\nread -r line\necho order=$CUDA_DEVICE_ORDER threads=$OMP_NUM_THREADS wait=$OMP_WAIT_POLICY\n"


@pytest.mark.parametrize(("given", "order"), [("", "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
async def test_a_worker_numbers_gpus_as_the_ledger_does_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, order: str
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if given:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", given)
    python = tmp_path / "python"
    python.write_text(PRINTS)
    python.chmod(0o755)
    spec = WorkerSpec("toy:", runner="toy", python=str(python), num_threads=3)
    process = await LocalLauncher(tmp_path / "logs").start(WorkerLaunch("d@v1#0", "unix:x", "t", "toy:", spec))
    assert await process.wait(timeout_s=30) == 0
    assert process.log_path.read_text() == f"order={order} threads=3 wait=PASSIVE\n"
