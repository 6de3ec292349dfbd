"""Quantised checkpoints: what loads here answers as its dequantised weights do, the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig

from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine import tiny_models

BLOCK = 128  # of FP8 weights with a scale of their own
PROMPTS = [[5, 6, 7, 8], [40, 3, 99]]


def save_llama(folder: Path, quantization: dict[str, Any] | None = None) -> Path:
    sizes = {"hidden_size": BLOCK, "intermediate_size": BLOCK, "num_attention_heads": 4, "num_key_value_heads": 4}
    tiny_models.save_architecture("llama", folder, **sizes)
    if quantization:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return folder


def test_fp8_weights_answer_as_what_they_stand_for(tmp_path: Path) -> None:
    """On a machine without a GPU they are dequantised when they are loaded."""
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    quantized, plain = save_llama(tmp_path / "fp8", settings), save_llama(tmp_path / "plain")
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if "proj" in name:
            scale = weight.abs().amax() / 448  # the largest FP8 number
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
            meant[name] = stored[name].float() * scale
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    before = tiny_models.answers(tiny_models.load(plain), PROMPTS, 12)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    expected = tiny_models.answers(tiny_models.load(plain), PROMPTS, 12)
    assert tiny_models.answers(tiny_models.load(quantized), PROMPTS, 12) == expected != before


def write_gguf(path: Path, plain: Path) -> dict[str, torch.Tensor]:
    """The Llama in ``plain`` as a GGUF file with projections of four bits; the weights these stand for."""
    config = AutoConfig.from_pretrained(plain)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = [f"<{number}>" for number in range(len(signs), config.vocab_size - 2)]
    writer.add_token_list([*signs, *unused, "he", "an"])
    writer.add_token_merges(["h e", "a n"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    meant = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        own, array = names.get_name(name, (".weight",)), weight.numpy()
        meant[name] = weight
        kind = gguf.GGMLQuantizationType.Q4_0
        if "proj" not in name:
            writer.add_tensor(own, array)
            continue
        meant[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(array, kind), kind).copy())
        if "q_proj" in name or "k_proj" in name:  # llama.cpp's rotary embedding wants its halves beside one another
            array = array.reshape(4, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(own, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def test_a_gguf_file_answers_as_what_its_weights_stand_for(tmp_path: Path) -> None:
    plain = save_llama(tmp_path / "plain")
    meant = write_gguf(tmp_path / "tiny.gguf", plain)
    before = tiny_models.answers(tiny_models.load(plain), PROMPTS, 12)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    runner = tiny_models.load(tmp_path / "tiny.gguf")
    ours = tiny_models.answers(runner, PROMPTS, 12)
    assert ours == tiny_models.answers(tiny_models.load(plain), PROMPTS, 12) != before
    assert runner.tokenizer.encode_batch(["the"]) == [[ord("t") - ord("!"), 298]]


def cut_weights(folder: Path) -> Path:
    """So that whoever reads them fails in another way."""
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "AWQ quantized model requires gptqmodel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "GPTQ quantized model requires|GPU is required"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "requires bitsandbytes: `pip install"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm fp8 quantization requires"),
    ],
)
def test_what_transformers_cannot_load_here_is_refused_by_name(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tiny_models.load(cut_weights(save_llama(tmp_path, settings)))


def test_what_transformers_would_take_without_its_scales_is_refused_by_name(tmp_path: Path) -> None:
    named = cut_weights(save_llama(tmp_path / "named", {"quant_method": "modelopt", "quant_algo": "FP8"}))
    beside = cut_weights(save_llama(tmp_path / "beside"))
    (beside / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    for folder in (named, beside):
        with pytest.raises(InvalidRequest, match="is quantised by modelopt, which transformers does not load"):
            tiny_models.load(folder)
