"""What a load will take, from headers and configs alone. The files of these tests have no weights in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.fleet import need
from jupyter_dsserve.fleet.ledger import described
from jupyter_dsserve.fleet.need import CUDA_BYTES, ONNX_BYTES, TORCH_BYTES, UNLIMITED, need_of, token_bytes
from jupyter_dsserve.headers import tensors_in
from jupyter_dsserve.protocol.spec import WorkerSpec

LLAMA = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
# name: dtype, shape
WEIGHTS = {
    "model.embed_tokens.weight": ("BF16", (300, 64)),
    "model.layers.0.mlp.up_proj.weight": ("BF16", (128, 64)),
    "model.norm.weight": ("F32", (64,)),
    "model.layers.0.mask": ("I64", (10,)),
}
_BYTES = {"BF16": 2, "F32": 4, "I64": 8, "F16": 2}
EMBEDDING, LINEAR, NORM, MASK = 300 * 64, 128 * 64, 64, 80
FLOATS = EMBEDDING + LINEAR + NORM


def write(folder: Path, weights: Mapping[str, tuple[str, tuple[int, ...]]], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in weights.items():
        end = at + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}  # type: ignore[dict-item]
        at = end
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(need, "has_fast_bf16", lambda: True)
    return str(write(tmp_path / "llama", WEIGHTS, **LLAMA))


SPEC = WorkerSpec("m", max_sequences=8)
TOKEN = 2 * 3 * 2 * 16 * 2  # K and V, layers, heads, size of a head, bf16


def test_a_toy_needs_exactly_its_bytes() -> None:
    spec = WorkerSpec("toy:bytes=12345", runner="toy")
    assert need_of(spec, spec.model, on_gpu=False).least_bytes == 12345


@pytest.mark.parametrize(("dtype", "item"), [("auto", 2), ("bf16", 2), ("fp32", 4)])
def test_weights_count_in_the_dtype_they_will_have(llama: str, dtype: Any, item: int) -> None:
    found = need_of(replace(SPEC, dtype=dtype), llama, on_gpu=False)
    assert found.fixed_bytes == TORCH_BYTES + FLOATS * item + MASK


def test_auto_is_fp32_on_a_cpu_without_bf16_and_the_checkpoints_own_on_a_gpu(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(need, "has_fast_bf16", lambda: False)
    assert need_of(SPEC, llama, on_gpu=False).fixed_bytes == TORCH_BYTES + FLOATS * 4 + MASK
    assert need_of(SPEC, llama, on_gpu=True).fixed_bytes == CUDA_BYTES + FLOATS * 2 + MASK


def test_a_tied_embedding_is_there_twice_once_it_is_packed(tmp_path: Path, llama: str) -> None:
    tied = str(write(tmp_path / "tied", WEIGHTS, **(LLAMA | {"tie_word_embeddings": True})))
    more = need_of(SPEC, tied, on_gpu=False).fixed_bytes - need_of(SPEC, llama, on_gpu=False).fixed_bytes
    assert more == 2 * EMBEDDING
    assert need_of(SPEC, tied, on_gpu=True) == need_of(SPEC, llama, on_gpu=True)


def test_ranks_bring_a_worker_each_and_share_the_weights(llama: str) -> None:
    found = need_of(replace(SPEC, tp=2), llama, on_gpu=False)
    assert (found.num_ranks, found.fixed_bytes) == (2, 2 * TORCH_BYTES + FLOATS * 2 + MASK)
    assert found.builds


def test_quantised_layers_take_fewer_bits_and_their_scales(llama: str) -> None:
    plain = (EMBEDDING + NORM) * 2 + MASK
    for kind, bits in (("int8", 8), ("int4", 4)):
        found = need_of(replace(SPEC, quantize=kind), llama, on_gpu=False)  # type: ignore[arg-type]
        layers = LINEAR * bits // 8 + 2 * 2 * LINEAR // 64
        remade = 7 * EMBEDDING * 2
        assert found.fixed_bytes == TORCH_BYTES + plain + layers + remade, (
            "and what each pass makes of the largest weight"
        )


def test_weights_that_are_converted_first_are_in_memory_until_they_are_quantised(tmp_path: Path, llama: str) -> None:
    plain = need_of(replace(SPEC, quantize="int8"), llama, on_gpu=False)
    remade = 7 * EMBEDDING * 2
    assert plain.least_bytes == plain.fixed_bytes + plain.kv_least_bytes, "mapped files are nobody's memory"
    assert need_of(replace(SPEC, quantize="int8", dtype="fp32"), llama, on_gpu=False).load_bytes == 0, "one by one"
    wide = {name: ("F32" if dtype == "BF16" else dtype, shape) for name, (dtype, shape) in WEIGHTS.items()}
    spec, llama32 = replace(SPEC, quantize="int8", kv_bytes=1000), str(write(tmp_path / "fp32", wide, **LLAMA))
    found = need_of(spec, llama32, on_gpu=False)
    assert found.load_bytes == TORCH_BYTES + FLOATS * 2 + remade
    assert found.fixed_bytes < found.kept_bytes < found.load_bytes == found.least_bytes
    assert need_of(spec, llama32, on_gpu=True).load_bytes == 0, "on the host"
    assert need_of(spec, llama32, on_gpu=False, measured_bytes=777).least_bytes == found.load_bytes, "each time"
    lora = write(tmp_path / "lora", {"lora_A": ("F32", (10, 10))})
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": llama}))
    merged = need_of(replace(SPEC, quantize="int8"), str(lora), on_gpu=False)
    assert merged.load_bytes == TORCH_BYTES + FLOATS * 2 + remade


def test_offloaded_weights_leave_a_few_of_them_on_the_device(llama: str) -> None:
    on_disk = need_of(replace(SPEC, zero="nvme"), llama, on_gpu=False)
    assert (on_disk.fixed_bytes, on_disk.host_bytes) == (TORCH_BYTES + 5 * EMBEDDING * 2, 0)
    on_host = need_of(replace(SPEC, zero="cpu"), llama, on_gpu=True)
    assert (on_host.fixed_bytes, on_host.host_bytes) == (CUDA_BYTES + 5 * EMBEDDING * 2, FLOATS * 2 + MASK)


def test_an_adapter_needs_its_base(tmp_path: Path, llama: str) -> None:
    lora = write(tmp_path / "lora", {"lora_A": ("F32", (1000, 10))})
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": llama}))
    found, base = need_of(SPEC, str(lora), on_gpu=False), need_of(SPEC, llama, on_gpu=False)
    assert found.fixed_bytes == base.fixed_bytes
    assert found.read_bytes == base.read_bytes + 40_000


def test_a_program_needs_its_file_and_what_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 100)
    (tmp_path / "m.onnx.data").write_bytes(b"x" * 5000)
    spec = WorkerSpec(str(path), task="tensor", runner="program")
    assert need_of(spec, str(path), on_gpu=False).least_bytes == ONNX_BYTES + 5100
    exported = tmp_path / "m.pt2"
    exported.write_bytes(b"x" * 7)
    assert need_of(replace(spec, model=str(exported)), str(exported), on_gpu=False).least_bytes == TORCH_BYTES + 7


def test_a_gguf_file_counts_by_its_numbers_and_not_by_its_bytes(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    weights = np.zeros((64, 256), np.float32)
    quantised = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = need_of(WorkerSpec(str(path)), str(path), on_gpu=False)
    assert found.fixed_bytes == TORCH_BYTES + 64 * 256 * 4
    assert found.kv_most_bytes == UNLIMITED


def test_a_hub_name_in_the_cache_is_read_and_another_one_is_said_to_be_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--org--name"
    write(repository / "snapshots/abc", WEIGHTS, **LLAMA)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    cached = need_of(WorkerSpec("org/name", max_sequences=8), "org/name", on_gpu=False)
    assert cached == need_of(SPEC, llama, on_gpu=False)
    index = repository / "snapshots/abc/model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    broken_off = need_of(WorkerSpec("org/name"), "org/name", on_gpu=False)
    assert broken_off.read_bytes == UNLIMITED, "its second file has still to come"
    other = need_of(WorkerSpec("org/other"), "org/other", on_gpu=False)
    assert other.fixed_bytes == TORCH_BYTES
    assert other.read_bytes == UNLIMITED
    assert described(other).endswith(
        "for the KV cache, and more, for org/other is not in the hub's cache here, so what it takes is not known yet)"
    )


@pytest.mark.parametrize("raw", [b"", b"\xff" * 40, (9).to_bytes(8, "little") + b"[1, 2, 3]"])
def test_a_file_that_is_none_leaves_the_need_unknown_and_the_worker_to_say_why(tmp_path: Path, raw: bytes) -> None:
    write(tmp_path / "bad", {}, **LLAMA)
    (tmp_path / "bad/model.safetensors").write_bytes(raw)
    found = need_of(SPEC, str(tmp_path / "bad"), on_gpu=False)
    assert found.fixed_bytes == TORCH_BYTES
    assert "its files cannot be read" in found.note
    with pytest.raises(ValueError):  # noqa: PT011
        tensors_in(tmp_path / "bad")


def test_what_a_load_really_took_is_what_the_next_one_needs(llama: str) -> None:
    found = need_of(SPEC, llama, on_gpu=False, measured_bytes=777)
    assert found.fixed_bytes == 777
    assert found.kv_most_bytes == need_of(SPEC, llama, on_gpu=False).kv_most_bytes


# ---- the KV cache


def test_a_kv_cache_is_as_large_as_the_version_says(llama: str) -> None:
    found = need_of(replace(SPEC, kv_bytes=5000), llama, on_gpu=False)
    assert (found.kv_least_bytes, found.kv_most_bytes, found.tells_kv) == (5000, 5000, False)


def test_a_kv_cache_without_a_size_is_between_one_eighth_and_all_that_its_sequences_fill(llama: str) -> None:
    found = need_of(replace(SPEC, max_sequences=64), llama, on_gpu=False)
    assert found.tells_kv
    assert found.kv_most_bytes == 64 * 256 * TOKEN
    assert found.kv_least_bytes == 8 * 256 * TOKEN
    short = need_of(replace(SPEC, max_sequences=1, max_context=100), llama, on_gpu=False)
    assert short.kv_least_bytes == 128 * TOKEN, "one sequence, in whole blocks"
    assert short.kv_most_bytes == 2 * 128 * TOKEN, "two stand side by side in the check"


def test_a_long_context_asks_for_one_sequence_of_it_or_two_thousand_tokens_for_each(tmp_path: Path) -> None:
    long = str(write(tmp_path / "long", WEIGHTS, **LLAMA | {"max_position_embeddings": 131072}))
    found = need_of(replace(SPEC, max_sequences=32), long, on_gpu=True)
    assert (found.kv_least_bytes, found.kv_most_bytes) == (131072 * TOKEN, 32 * 131072 * TOKEN)
    many = need_of(replace(SPEC, max_sequences=256), long, on_gpu=True)
    assert many.kv_least_bytes == 256 * 2048 * TOKEN


def test_encoders_have_none(tmp_path: Path, llama: str) -> None:
    found = need_of(replace(SPEC, task="embed", runner="encoder"), llama, on_gpu=False)
    assert (found.kv_least_bytes, found.kv_most_bytes, found.tells_kv) == (0, 0, False)


@pytest.mark.parametrize(
    ("config", "elements"),
    [
        (LLAMA, 2 * 3 * 2 * 16),
        (LLAMA | {"head_dim": 64}, 2 * 3 * 2 * 64),
        (LLAMA | {"num_key_value_heads": None}, 2 * 3 * 4 * 16),
        ({"n_layer": 2, "n_head": 3, "n_embd": 12}, 2 * 2 * 3 * 4),
        ({"text_config": LLAMA}, 2 * 3 * 2 * 16),
        (LLAMA | {"head_dim": 16, "global_head_dim": 32}, 2 * 3 * 2 * 32),  # rather too much
        (LLAMA | {"kv_lora_rank": 512}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_a_tokens_keys_and_values_are_counted_from_the_config(config: dict[str, Any], elements: int | None) -> None:
    assert token_bytes(config, 2) == (None if elements is None else 2 * elements)


def test_the_built_in_models_need_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need, "has_fast_bf16", lambda: True)
    found = need_of(WorkerSpec("builtin:demo-v1"), str(builtin_path("demo-v1")), on_gpu=False)
    assert 5e6 < found.fixed_bytes - TORCH_BYTES < 15e6
    assert found.kv_most_bytes == 64 * 1024 * 2 * 4 * 2 * 64 * 2
