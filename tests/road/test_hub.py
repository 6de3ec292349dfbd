"""A model of the hub at one revision, from the hub's cache: nothing here reaches the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine.hub import snapshot_at
from jupyter_dsserve.fleet.need import need_of
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.support import Command

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub's cache with the built-in model as org/name, whose tag v1.0 is COMMIT."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--name/snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(builtin_path("demo-v1"))
    (cache / "models--org--name/refs").mkdir()
    (cache / "models--org--name/refs/v1.0").write_text(COMMIT)
    return cache


def test_a_revision_is_a_directory_of_the_hubs_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = str(cache / "models--org--name/snapshots" / COMMIT)
    assert snapshot_at("org/name@v1.0") == snapshot_at(f"org/name@{COMMIT}") == snapshot
    assert snapshot_at("org/name") == "org/name"
    assert snapshot_at(snapshot) == snapshot
    with pytest.raises(InvalidRequest, match=r"org/name@v2.0 cannot be had from the hub"):
        snapshot_at("org/name@v2.0")
    known = need_of(WorkerSpec("org/name@v1.0"), "org/name@v1.0", on_gpu=False)
    assert known.fixed_bytes == need_of(WorkerSpec(snapshot), snapshot, on_gpu=False).fixed_bytes


async def test_a_version_of_a_revision_is_served(cache: Path, data_dir: Path) -> None:
    with Command(data_dir, env={"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}) as command:
        async with await command.caller() as caller:
            loaded = await caller.load("demo", "v1", f"org/name@{COMMIT}")
            assert (loaded["state"], loaded["reason"]) == ("READY", "")
            assert loaded["spec"]["model"] == f"org/name@{COMMIT}"
            assert (await caller.complete()).json()["choices"][0]["text"]
            failed = await caller.load("demo", "v2", "org/name@v2.0")
            assert failed["state"] == "FAILED"
            assert "cannot be had from the hub" in failed["reason"]
