"""Model S of the benchmarks: a 15.7 M-parameter Llama with random weights (fixed seed) and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192


def make_model_s(folder: Path) -> Path:
    """Write it to ``folder`` unless it is there already."""
    if not (folder / "model.safetensors").exists():
        make_tokenizer().save_pretrained(folder)
        _model().save_pretrained(folder)
    return folder


def _model() -> LlamaForCausalLM:
    torch.manual_seed(1234)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=2048)
