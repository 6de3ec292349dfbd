"""Models of the hub from its cache, at one revision or without network: nothing here reaches it."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine import hub
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
    for ref in ("v1.0", "main"):
        (cache / "models--org--name/refs" / ref).write_text(COMMIT)
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


async def test_where_the_hub_does_not_answer_what_is_in_its_cache_is_served_and_the_rest_refused_at_once(
    cache: Path, data_dir: Path
) -> None:
    with Command(data_dir, env={"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}) as command:
        async with await command.caller() as caller:
            loaded = await caller.load("demo", "v1", "org/name")
            assert (loaded["state"], loaded["reason"]) == ("READY", "")
            assert (await caller.complete()).json()["choices"][0]["text"]
            for version, model in (("v2", "org/name@v2.0"), ("v3", "org/other")):
                begun = time.monotonic()
                failed = await caller.load("demo", version, model)
                assert failed["state"] == "FAILED"
                assert f"model {model} cannot be had from the hub" in failed["reason"]
                assert "http://127.0.0.1:9 does not answer" in failed["reason"]
                assert time.monotonic() - begun < 15  # the hub's own client tries for longer


class _Hub(BaseHTTPRequestHandler):
    """Refuses everything."""

    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


def test_a_hub_that_refuses_answers_and_one_that_says_nothing_is_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert snapshot_at("org/other") == "org/other"  # the loader hears from the hub what it is
        assert huggingface_hub.constants.HF_HUB_OFFLINE is False
        server.shutdown()
    monkeypatch.setattr(hub, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert snapshot_at("org/name") == "org/name"
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True


def test_a_toy_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_silence", lambda endpoint: f"{endpoint} does not answer")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert hub.snapshot_at("toy:step_s=0.01") == "toy:step_s=0.01"
