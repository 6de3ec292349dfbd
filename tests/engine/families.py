"""Tiny random models of every family of causal language models in transformers that one can be made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from tests.engine import tiny_models

WINDOW = 12  # shorter than the prompts of the tests; so are the numbers of keys that sparse attentions keep

# Sizes under every name that a family may have for them: a config gets those of its fields that stand here.
_SIZES: dict[str, Any] = {
    "vocab_size": tiny_models.VOCAB,
    "vocab_size_per_layer_input": tiny_models.VOCAB,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed", "embedding_size", "lru_width"), 32),
    **dict.fromkeys(("word_embed_proj_dim",), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff"), 48),
    **dict.fromkeys(("block_ff_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(
        ("decoder_attention_heads", "encoder_attention_heads", "index_n_heads", "linear_num_value_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "rotary_dim", "qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "time_step_rank", "adapter_rank", "conv_kernel", "mamba_d_conv"), 4),
    "v_head_dim": 6,
    "qk_head_dim": 12,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    "original_max_position_embeddings": 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "num_memory_blocks"), 1),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("index_topk", "index_head_dim", "chunk_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("expand", "mamba_expand"), 2),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "num_kv_shared_layers"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    "use_sliding_window": True,
    "max_window_layers": 1,
}
_MLA = {"num_key_value_heads": 4, "head_dim": 4}  # every head has a K of its own, made of a common part

# Of the weights, where 0 gives answers that repeat themselves.
_SEEDS = {"ctrl": 4}
_SEEDS |= dict.fromkeys(("apertus", "gpt_neox", "llama4_text", "minimax_m2", "mixtral", "olmoe", "persimmon"), 1)
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_TIED = {"tie_word_embeddings": True}

_RAGGED = """
afmoe apertus arcee aria_text biogpt bitnet cohere cohere2 cohere2_moe ctrl dots1 ernie4_5 ernie4_5_moe exaone4
exaone_moe flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granite_swa
granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax jais2 jetmoe laguna llama
mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral mistral mixtral nanochat nemotron olmo olmo2 olmo3 olmoe
opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
"""
_RAGGED_MLA = "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 youtu"
_PADDED = """
bloom deepseek_v4 diffllama doge falcon falcon_mamba gpt_neox_japanese hrm_text inkling_text lfm3
llama4_text mamba minimax mpt olmo_hybrid openai-gpt qwen3_5_moe_text qwen3_5_text qwen3_next rwkv xglm
"""
_PADDED_MLA = "glm_moe_dsa"

# Families that go through AttentionInterface, by model_type (and a variant), with what differs from _SIZES.
RAGGED: dict[str, dict[str, Any]] = {
    **{name: {} for name in _RAGGED.split()},
    **dict.fromkeys(_RAGGED_MLA.split(), _MLA),
    "cwm": {"bos_token_id": 1, "eos_token_id": 1},
    "modernbert-decoder": {"bos_token_id": 1, "eos_token_id": 1},
    # Its last layers share the keys and values of earlier ones.
    "gemma4_text": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "llama+mqa": {"num_key_value_heads": 1},
    "llama+tied": _TIED,
    "llama+yarn": {"rope_parameters": _YARN},
    # Queries grow with their position.
    "ministral3": {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "gpt_bigcode+mha": {"multi_query": False},
    "qwen3+tied": _TIED,
}
# Families that do not, or whose layers are more than attention.
PADDED: dict[str, dict[str, Any]] = {
    **{name: {} for name in _PADDED.split()},
    **dict.fromkeys(_PADDED_MLA.split(), _MLA),
    "bamba": {"attn_layer_indices": [1]},
    "falcon+alibi": {"alibi": True},
    "falcon+grouped": {"new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "mlp", "full_attention", "moe"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
}
# Families that no runner serves: not causal, or cached answers that differ from plain ones.
REFUSED: dict[str, dict[str, Any]] = {"bert": {}, "prophetnet": {}, "roberta": {}, "xlnet": {}}


# transformers 5.24 brought them to the AttentionInterface.
EITHER: dict[str, dict[str, Any]] = {"codegen": {}, "gptj": {}}


def names(families: dict[str, dict[str, Any]]) -> list[str]:
    """Those of ``families`` that this release of transformers has."""
    return [name for name in families if name.partition("+")[0] in CONFIG_MAPPING]


def config(name: str) -> PreTrainedConfig:
    """The config of a family: two layers, of different kinds if the family has such."""
    model_type = name.partition("+")[0]
    kind = CONFIG_MAPPING[model_type]
    usual = kind()
    own = (RAGGED | PADDED | EITHER | REFUSED)[name]
    given = {field: size for field, size in _SIZES.items() if field in usual.to_dict()}
    for field in ("layer_types", "mlp_layer_types"):
        if field in usual.to_dict() and getattr(usual, field):
            kinds = list(dict.fromkeys(getattr(usual, field)))
            given[field] = [kinds[0], kinds[-1]]
    return kind(**given | own)


def save(name: str, folder: Path) -> Path:
    """A family's checkpoint, random weights wide and embeddings narrow, so that answers do not repeat a token."""
    torch.manual_seed(_SEEDS.get(name, 0))
    model = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
    with torch.no_grad():
        for where, weights in model.named_parameters():
            if "sinks" in where:
                weights.normal_(0, 2)
            elif weights.dim() >= 2 and not re.search("A_log|conv1d|dt_", where):
                weights.normal_(0, 0.3)
        model.get_input_embeddings().weight.normal_(0, 0.03)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    tiny_models.byte_tokenizer().save_pretrained(folder)
    return folder
