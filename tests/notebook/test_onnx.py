"""Exporting from a command, from Python and from a cell: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from jupyter_dsserve import Client
from jupyter_dsserve.notebook import onnx
from jupyter_dsserve.notebook.onnx import export_onnx, onnx_of
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest, NotFound
from jupyter_dsserve.protocol.records import GatewayAddress
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine.tiny_encoders import save_encoder
from tests.engine.tiny_models import byte_tokenizer
from tests.engine.tiny_programs import save_scorer
from tests.support import Command

COMMAND = (str(Path(sys.executable).with_name("jupyter-dsserve")), "export", "onnx")


def test_the_command_writes_a_program_and_tells_how_far_it_is_off(tmp_path: Path) -> None:
    path = save_scorer(tmp_path / "scorer.pt2")
    line = [*COMMAND, str(path), "--out", str(tmp_path / "out"), "--allow-code"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/out/model.onnx (0.0 MB), task tensor: x, ids → score, label\n")
    assert "in 3 calls of different shapes" in done.stdout


def test_an_interrupt_leaves_neither_a_process_nor_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def communicate(self, *_: Any, **__: Any) -> Any:
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(onnx.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx("org/model", tmp_path / "out")
    assert not psutil.pid_exists(started[0].pid)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_without_an_answer_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"ended without an answer: .*No module named"):
        export_onnx("m", tmp_path / "out", python=_python_without_us(tmp_path))
    with pytest.raises(InvalidRequest, match="/none/python cannot be started"):
        export_onnx("m", tmp_path / "out", python="/none/python")


def _python_without_us(folder: Path) -> str:
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    script.chmod(0o755)
    return str(script)


def version(task: Any, model: str, runner: Any = "encoder") -> Any:
    spec = WorkerSpec(model, task=task, runner=runner, python="/named/by/the/gateway")
    return SimpleNamespace(id="emb@v1", spec=spec, content="")


def test_what_becomes_no_onnx_file_is_refused_before_a_process_is_started(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="emb@v1 has the task generate and the runner ragged"):
        onnx_of(version("generate", "m", "ragged"), tmp_path / "out")
    with pytest.raises(NotFound, match="the model of emb@v1, /none/there, is not on this machine"):
        onnx_of(version("embed", "/none/there"), tmp_path / "out")


def test_a_gateway_elsewhere_names_no_path_of_this_machine(tmp_path: Path) -> None:
    for path in (str(tmp_path), "~", "../x"):
        with pytest.raises(InvalidRequest, match=r"lies where the gateway at http://far:1 runs, on another machine"):
            onnx_of(version("embed", path), tmp_path / "out", gateway="http://far:1")


def test_what_has_changed_since_it_was_registered_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = version("embed", str(tmp_path))
    found.content = "0123456789abcdef"
    with pytest.raises(Conflict, match="has changed since emb@v1 was registered"):
        onnx_of(found, tmp_path / "out", gateway="http://127.0.0.1:1", is_own=True)


@pytest.mark.parametrize(("is_given", "python"), [(False, "/named/by/the/gateway"), (True, "")])
def test_only_the_kernels_own_gateway_names_the_interpreter(
    is_given: bool, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:1"
    client = Client(url if is_given else "")
    monkeypatch.setattr(client, "version", lambda *_: version("embed", "org/model"))
    monkeypatch.setattr(client, "address", lambda: GatewayAddress(url, ""))
    given: list[str] = []
    monkeypatch.setattr(onnx, "export_onnx", lambda *_, python, **__: given.append(python))
    client.export_onnx("emb", "v1", tmp_path / "out")
    assert given == [python]
    client.close()


@pytest.mark.long
async def test_a_version_that_is_served_is_exported_and_the_export_is_served(tmp_path: Path) -> None:
    save_encoder("BertModel", tmp_path / "enc")
    with Command(tmp_path / "data") as command:
        async with await command.caller() as caller:
            await caller.load("emb", "v1", str(tmp_path / "enc"), task="embed")
            client = Client(str(caller.base_url), command.key)
            done = client.export_onnx("emb", "v1", tmp_path / "onnx")
            assert done.share < 1e-4
            state = await caller.load("emb", "v2", str(tmp_path / "onnx"), task="embed")
            assert state["state"] == "READY", state["reason"]
            vectors = [client.embed(f"emb@{v}", ["abc", "a longer text"]) for v in ("v1", "v2")]
            assert np.abs(vectors[0] - vectors[1]).max() < 1e-4
            await caller.load("raw", "v1", str(tmp_path / "onnx"), task="tensor")
            ids = np.array([byte_tokenizer(pad_token="<pad>")("abc")["input_ids"]])
            found = client.infer("raw", {"input_ids": ids, "attention_mask": np.ones_like(ids)})["embedding"]
            assert np.abs(found - vectors[1][:1]).max() < 1e-4
            client.close()
