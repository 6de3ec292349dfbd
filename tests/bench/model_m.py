"""Model M: a Llama of 120 M parameters (478 MB in fp32) with random weights (fixed seed) and model S's tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bench.model_s import VOCABULARY, make_tokenizer


def make_model_m(folder: Path) -> Path:
    """Write it to ``folder`` unless it is there already."""
    if not (folder / "model.safetensors").exists():
        make_tokenizer().save_pretrained(folder)
        _model().save_pretrained(folder)
    return folder


def _model() -> LlamaForCausalLM:
    torch.manual_seed(1234)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)
