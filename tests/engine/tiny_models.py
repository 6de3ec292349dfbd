"""Tiny random models of many architectures, saved as real checkpoints, and runners and answers made of them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from jupyter_dsserve.engine.loader import load_runner
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Runner
from jupyter_dsserve.engine.scheduler import Scheduler
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec

VOCAB = 300
WINDOW = 24  # shorter than the prompts of the tests
LENGTHS = (
    110,
    1,
    3,
    5,
    9,
    17,
    23,
    24,
    25,
    31,
    40,
    47,
    55,
    70,
    90,
    101,
)  # of prompts: around the window, and over a step

SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4}

# Of the weights. With these every answer of the equality tests has at least eight distinct tokens.
_SEEDS = {"gpt-neox": 3}

# Config class and what differs from SIZE.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": WINDOW}),
    "gpt2": ("GPT2Config", {"n_inner": 96}),
    "opt": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "sliding_window": None}),
    "phi3-window": ("Phi3Config", {"pad_token_id": 0, "sliding_window": WINDOW}),
    # Gemma multiplies its embeddings by 8 here: tied, they would only repeat the last token.
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral-window": ("MixtralConfig", {**_MOE, "sliding_window": WINDOW}),
    "qwen2-moe-window": (
        "Qwen2MoeConfig",
        {
            **_MOE,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**_MOE, "head_dim": 16, "sliding_window": WINDOW}),
}


def make_config(name: str, **changes: Any) -> PreTrainedConfig:
    class_name, own = ARCHITECTURES[name]
    settings = SIZE | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | own | changes
    return getattr(transformers, class_name)(**settings)


def save_architecture(name: str, folder: Path, **changes: Any) -> Path:
    return save_model(make_config(name, **changes), folder, seed=_SEEDS.get(name, 0))


def save_model(config: PreTrainedConfig, folder: Path, *, seed: int = 0, std: float = 0.3) -> Path:
    """A model of random weights as a checkpoint in ``folder``.

    ``std`` is wide, so that attention is sharp and greedy answers do not repeat one token.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() >= 2:
                weights.normal_(0, std)
            elif "sinks" in name:
                weights.normal_(0, 2)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a byte; ``special`` names tokens such as ``bos_token``, which get the ids from 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([*alphabet, *special.values()])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def load(folder: Path, **settings: Any) -> RaggedRunner:
    """A runner in fp32 on one CPU thread, whose steps are short enough to cut prompts into several chunks."""
    defaults = {"dtype": "fp32", "device": "cpu", "max_sequences": 16, "max_step_tokens": 32, "num_threads": 1}
    return load_runner(WorkerSpec(str(folder), **(defaults | settings)), str(folder), lambda stage, done: None)


def random_prompts(lengths: Seq[int] = LENGTHS, seed: int = 5) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=draw).tolist() for length in lengths]


def answers(
    runner: Runner, prompts: Seq[Seq[int]], num_tokens: int, scheduler: Scheduler | None = None, **sampling: Any
) -> list[list[int]]:
    """The first ``num_tokens`` tokens after each prompt, all prompts running together; end tokens end nothing.

    A ``scheduler`` that served before knows what it can use again.
    """
    scheduler = scheduler or Scheduler(runner.room, runner.max_step_tokens)
    sequences = [Sequence(str(n), list(prompt), SamplingParams(**sampling)) for n, prompt in enumerate(prompts)]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.waiting or scheduler.running:
        while scheduler.admit():
            pass
        step = scheduler.schedule()
        assert step is not None
        tokens = runner.forward(step).sample(step.sampled)
        scheduler.advance(step)
        for sequence, token in zip(step.sampled, tokens, strict=True):
            sequence.tokens.append(token)
            if sequence.num_output == num_tokens:
                scheduler.remove(sequence)
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences]
