"""A directory's content has a name that changes when what a load reads changes, and only then."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_dsserve.content import check_content, content_of
from jupyter_dsserve.protocol.errors import Conflict

SIZE = 3 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "1_Pooling/config.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [SIZE // 4], "data_offsets": [0, SIZE]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(SIZE))
    return model


def other_weights(model: Path) -> None:
    """As another training step leaves them: the same size and header."""
    path = model / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-SIZE] + os.urandom(SIZE))


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        lambda m: (m / "config.json").write_text('{"a": 1}'),
        lambda m: (m / "1_Pooling/config.json").write_text('{"a": 1}'),
        lambda m: (m / "tokenizer.json").write_text("{}"),
        lambda m: (m / "config.json").unlink(),
        lambda m: (m / "1_Pooling").rename(m / "2_Pooling"),
    ],
)
def test_whatever_a_load_reads_changes_the_name(model: Path, change: Callable[[Path], object]) -> None:
    before = content_of(str(model))
    change(model)
    assert content_of(str(model)) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m / "README.md").write_text("read me"),
        lambda m: (m / "optimizer.pt").write_bytes(b"x"),
        lambda m: (m / "trainer_state.json").write_text("{}"),
        lambda m: (m / "checkpoint-100").mkdir() or (m / "checkpoint-100/config.json").write_text("{}"),
        lambda m: os.utime(m / "model.safetensors", (1, 1)),
        lambda m: m.rename(m.with_name("moved")).rename(m),
    ],
)
def test_nothing_else_does(model: Path, change: Callable[[Path], object]) -> None:
    before = content_of(str(model))
    change(model)
    assert content_of(str(model)) == before


def test_an_adapters_name_is_its_bases_too(model: Path) -> None:
    adapter = model.with_name("adapter")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(model)})
    )
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    before = content_of(str(adapter))
    other_weights(model)
    assert content_of(str(adapter)) != before


def test_a_file_is_its_own_content_and_a_hub_name_has_none(model: Path) -> None:
    assert content_of(str(model / "model.safetensors")) != content_of(str(model / "config.json")) != ""
    assert content_of("org/name") == ""


def test_a_large_model_is_named_without_being_read(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(200 << 30)  # sparse: it takes no room
    started = time.process_time()
    content_of(str(model))
    assert time.process_time() - started < 1


def test_a_change_is_said_with_both_names() -> None:
    check_content("demo@v1", "", "abc", "/model")  # registered by older code: nothing is known
    check_content("demo@v1", "abc", "abc", "/model")
    with pytest.raises(Conflict, match=r"/model has changed since demo@v1 was registered \(content abc, now def\)"):
        check_content("demo@v1", "abc", "def", "/model")
