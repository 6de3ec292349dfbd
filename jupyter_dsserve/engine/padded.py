"""`PaddedRunner`: any causal transformers model, one sequence a forward pass, with the model's own attention and cache.

For what does not go through transformers' `AttentionInterface`, or is no attention at all: Bloom, Falcon, GPT-J, Mamba,
RWKV, hybrids. Slower than the ragged runner, as nothing is batched, and right for everything `generate` is right for:
inputs are prepared by the model's own `prepare_inputs_for_generation`, and the cache is the one the model itself makes.
(The name is the family's: no row is ever padded here, for a state-space model would take padding for text.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from jupyter_dsserve.engine import self_check
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.engine.runner import KVRoom, Span, Step
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.tensors import ModelInfo

# What a model's answer may call the cache that it wants back, and what its next call takes it as.
_CACHES = {
    "cache": "cache",  # any of them, from transformers 5.24 on
    "past_key_values": "past_key_values",
    "cache_params": "cache_params",  # Mamba
    "state": "state",  # RWKV
    "mems": "past_key_values",  # XLNet
    "past_buckets_states": "past_key_values",  # Reformer
}


@dataclass(slots=True)
class _Running:
    """A sequence, how many tokens its cache has seen, and that cache (empty at first, and in a model without one).

    ``logits``, ``[rows, vocabulary]``, are of the last of those tokens.
    """

    sequence: Sequence
    num_seen: int = 0
    cache: dict[str, Any] = field(default_factory=dict)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def rows(self, positions: Seq[int]) -> torch.Tensor:
        """Their logits, ``[positions, vocabulary]``."""
        return self.logits[[position - self.num_seen for position in positions]]


class PaddedRunner:
    """Owns one model and a cache for each running sequence. Not for several threads at once.

    ``engine`` is what `deepspeed.init_inference` made of the model. ``why`` says, for the status, what kept the model
    from the ragged runner; empty if the version asked for this one.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        *,
        name: str,
        why: str,
        max_sequences: int,
        max_step_tokens: int,
        max_context: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_step_tokens = max_step_tokens
        # One block a sequence: a cache is whole or not there, and nothing is shared by prompts that begin alike.
        self.room = KVRoom(max_sequences, max_context, num_blocks=max_sequences, block_tokens=max_context)
        self.info = ModelInfo()
        self.kind = f"padded: {why}" if why else "padded"
        self._engine = engine
        self._model = engine.module
        self._name = name
        self._device: torch.device = self._model.device
        self._takes = set(inspect.signature(self._model.forward).parameters)
        self._can_chunk = False  # until `check` has seen that chunks make no difference
        self._running: dict[int, _Running] = {}  # by slot

    @property
    def device(self) -> str:
        return str(self._device)

    def begin(self, sequence: Sequence) -> None:
        """Nothing to prepare: a sequence gets its cache with its first tokens."""

    @torch.inference_mode()
    def forward(self, step: Step) -> TorchLogits:
        self._running = {slot: one for slot, one in self._running.items() if one.sequence.slot == slot}
        ran = [(span, self._advance(span)) for span in step.spans]
        none = torch.empty(0, self.tokenizer.vocab_size, device=self._device)
        sampled = [one.rows([span.start + span.num_tokens - 1]) for span, one in ran if span.is_sampled]
        scored = [one.rows(span.scored) for span, one in ran if span.scored]
        return TorchLogits(torch.cat([none, *sampled]), self.tokenizer.eos_ids, torch.cat([none, *scored]))

    def _advance(self, span: Span) -> _Running:
        """Bring one sequence to the end of its span; if it must not be cut into chunks, to the end of its prompt."""
        slot, end = span.sequence.slot, span.start + span.num_tokens
        if span.start == 0:
            self._running[slot] = _Running(span.sequence)
        one = self._running[slot]
        if one.num_seen < end:
            self._pass(one, end if self._can_chunk else len(span.sequence.tokens))
        return one

    def _pass(self, one: _Running, end: int) -> None:
        """A forward pass over the tokens up to ``end`` that the cache has not seen."""
        tokens = torch.tensor([one.sequence.tokens[:end]], device=self._device)
        num_rows = end - one.num_seen if one.sequence.scores_prompt else 1
        asked: dict[str, Any] = {"attention_mask": None, "use_cache": True, **one.cache}
        if "position_ids" in self._takes:
            asked["position_ids"] = torch.arange(end, device=self._device)[None]
        if "logits_to_keep" in self._takes:
            asked["logits_to_keep"] = num_rows
        inputs = self._model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=end - one.num_seen if one.cache else None,
            is_first_iteration=one.num_seen == 0,
            **asked,
        )
        out = self._engine(**inputs, return_dict=True)
        # The first that is there: a release that renames one may answer with both names.
        found = next((name for name in _CACHES if out.get(name) is not None), None)
        one.cache = {_CACHES[found]: out[found]} if found else {}
        one.num_seen, one.logits = end, out.logits[0, -num_rows:]

    def check(self) -> None:
        """Compare sequences that run side by side with plain forwards of the same weights, decoding included.

        Prompts are cut into chunks only where the cache keeps every key and the comparison holds with chunks too.
        Raises `InvalidRequest` if the numbers differ, or the model does not run at all.
        """
        name, tolerance = f"{self._name} ({type(self._model).__name__})", self_check.TOLERANCE[self._model.dtype]
        try:
            off = self._off()
            self._can_chunk = self._keeps_all_keys()
            self._can_chunk = self._can_chunk and self._off() <= tolerance
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as fault:
            raise InvalidRequest(
                f"model {name} does not run: {type(fault).__name__}: {fault}: choose a model of another architecture"
            ) from fault
        self._running.clear()
        if not off <= tolerance:
            raise InvalidRequest(
                f"model {name} answers differently with its cache than without: logits are off by {off:.2g} of the "
                f"largest, where rounding explains {tolerance:g}: choose a model of another architecture"
            )

    def _off(self) -> float:
        return self_check.difference(
            self._forward_logits, self._plain_logits, self.tokenizer.vocab_size, self.room.max_context
        )

    def _forward_logits(self, step: Step) -> torch.Tensor:
        return self.forward(step).logits

    def _keeps_all_keys(self) -> bool:
        """Whether the cache that the check left behind is keys and values of all positions, and nothing else."""
        caches = [cache for one in self._running.values() for cache in one.cache.values()]
        return bool(caches) and all(
            type(cache) is DynamicCache and {type(layer) for layer in cache.layers} == {DynamicLayer}
            for cache in caches
        )

    @torch.inference_mode()
    def _plain_logits(self, tokens: list[int]) -> torch.Tensor:
        """Logits of every token in one pass without a cache, ``[tokens, vocabulary]``."""
        out = self._engine(input_ids=torch.tensor([tokens], device=self._device), use_cache=False, return_dict=True)
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def device_bytes(self) -> int:
        return held_bytes(self._device)
