"""At no moment of a load a worker takes more than 1.2 times the weights, beyond what any worker takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from jupyter_dsserve.fleet.need import TORCH_BYTES, need_of
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.bench.bench_load import weights_mib
from tests.bench.models import VOCABULARY, make_tokenizer
from tests.support import Caller, Peak, until

ANY = {"device": "cpu", "max_sequences": 4, "max_context": 256, "num_threads": 1}


def save_llama(folder: Path, dtype: torch.dtype, hidden: int, layers: int) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="30MB")
    make_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    settings = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder)
    return folder


def save_encoder(folder: Path, hidden: int, layers: int) -> Path:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save(kind: str, folder: Path, hidden: int, layers: int) -> tuple[Path, Path]:
    """What is loaded, and where its weights are."""
    if kind == "encoder":
        weights = save_encoder(folder / "m", hidden, layers)
        return weights, weights
    dtype = torch.float32 if "fp32" in kind else torch.bfloat16
    weights = save_llama(folder / "m", dtype, hidden, layers)
    return (save_adapter(folder / "a", weights) if "adapter" in kind else weights), weights


@pytest.mark.long  # two workers a case
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "dtype", "fields"),
    [
        ("fp32", "fp32", {}),
        ("bf16", "bf16", {}),
        ("fp32", "bf16", {}),
        ("bf16", "fp32", {}),
        ("fp32", "fp32", {"quantize": "int8", "min_agreement": 0}),
        ("bf16", "fp32", {"quantize": "int8", "min_agreement": 0}),
        ("fp32", "bf16", {"quantize": "int8", "min_agreement": 0}),
        ("adapter of fp32", "fp32", {}),
        ("adapter of fp32", "bf16", {}),
        ("encoder", "fp32", {"task": "embed"}),
        ("encoder", "bf16", {"task": "embed"}),
    ],
)
async def test_a_load_takes_at_most_a_fifth_more_than_the_weights(
    kind: str, dtype: str, fields: dict[str, Any], caller: Caller, tmp_path: Path
) -> None:
    small, _ = save(kind, tmp_path / "small", 64, 1)
    large, weights = save(kind, tmp_path / "large", 640, 10)
    any_worker = await peak_mib(caller, "small", small, dtype=dtype, **ANY, **fields)
    taken = await peak_mib(caller, "large", large, dtype=dtype, **ANY, **fields) - any_worker
    size = weights_mib(weights, dtype)
    assert size > 95
    # Fewer bits stay than were read; where nothing is converted they are all that is ever in memory.
    assert size * (0.3 if fields.get("quantize") else 0.9) < taken <= size * 1.2
    asked = need_of(WorkerSpec(str(large), dtype=dtype, **ANY, **fields), str(large), on_gpu=False)  # type: ignore[arg-type]
    if fields.get("quantize"):
        assert taken * 2**20 <= max(asked.fixed_bytes, asked.load_bytes) - TORCH_BYTES


async def peak_mib(caller: Caller, name: str, model: Path, **fields: Any) -> float:
    with Peak() as peak:
        await caller.load(name, "v1", str(model), wait=False, priority="low", **fields)  # which has two minutes
        await until(lambda: caller.version(name, "v1"), lambda v: v["replicas"] and peak.of(v["replicas"][0]["pid"]))
        loaded = await caller.settled(name, "v1", timeout_s=250)
        assert loaded["state"] == "READY", loaded["reason"]
    await caller.post(f"/api/deployments/{name}/versions/v1/unload")
    return peak.num_bytes / 2**20
