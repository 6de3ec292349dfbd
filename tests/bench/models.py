"""Models of the benchmarks: random weights (fixed seed), a byte-level tokenizer, and no end token."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192

# hidden, intermediate, layers, heads, K/V heads: with 16, 53 and 120 million parameters. The vocabulary's matrix counts
# twice in all but M, where both ends share it.
SIZES = {"S": (384, 1024, 6, 6, 2), "SM": (640, 1792, 10, 10, 2), "M": (768, 3072, 12, 12, 12)}


def make_model(size: str, folder: Path) -> Path:
    """Write it to ``folder`` unless it is there already."""
    if not (folder / "model.safetensors").exists():
        make_tokenizer().save_pretrained(folder)
        _model(size).save_pretrained(folder)
    return folder


def _model(size: str) -> LlamaForCausalLM:
    torch.manual_seed(1234)
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=size == "M",
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The 256 bytes, and words of two to fill the vocabulary: every token the model draws is a text of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    readable = [c for c in letters if c.isascii() and c.isalnum()]
    pairs = [(a, b) for a in readable for b in readable]
    triples = [(a + b, c) for a, b in pairs for c in readable]
    merges = [*pairs, *triples][: VOCABULARY - len(letters)]
    vocabulary = {text: i for i, text in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8192)
