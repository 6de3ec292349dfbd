"""`RaggedRunner`: a transformers model under DeepSpeed that takes prompts and decoding sequences in one ragged step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from jupyter_dsserve.engine import attention, self_check
from jupyter_dsserve.engine.attention import NotRagged, PackedStep, Rows, attending
from jupyter_dsserve.engine.equivalence import Least, agreement, plain_logits, refuse_below
from jupyter_dsserve.engine.group import RankGroup, by_all_ranks
from jupyter_dsserve.engine.host import resident_bytes
from jupyter_dsserve.engine.kv_cache import KVCache
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.engine.paged_cache import PagedCache
from jupyter_dsserve.engine.runner import KVRoom, Move, Span, Step
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.tensors import ModelInfo

_NUM_CHECKED = 2  # sequences that `check` packs, even for a version that runs one at a time


@dataclass(frozen=True, slots=True)
class Plan:
    """A step as numbers, without its sequences: what every rank that holds a part of the model computes.

    ``tokens`` and ``positions`` have an entry a row of the pass; ``sampled`` are the rows whose logits are wanted,
    first those that give a token, then those of prompts. ``moves`` come first.
    """

    tokens: list[int]
    positions: list[int]
    rows: list[Rows]
    sampled: list[int]
    moves: tuple[Move, ...]


class RaggedRunner:
    """Owns one model and its KV cache. Not for several threads at once.

    ``engine`` is what DeepSpeed made of a model whose attention is ours; ``least`` what `check` asks of it besides.
    """

    kind = "ragged"

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        *,
        name: str,
        max_sequences: int,
        max_step_tokens: int,
        max_context: int,
        kv_bytes: int,
        group: RankGroup | None = None,
        least: Least | None = None,
    ) -> None:
        self.info = ModelInfo()  # with what `check` found
        self._least = least
        self.group = group  # on rank 0 of several
        self.tokenizer = tokenizer
        self.max_step_tokens = max_step_tokens
        self._max_sequences = max_sequences
        self._max_context = max_context
        self._kv_bytes = kv_bytes
        self._engine = engine
        self._model = engine.module
        self._name = name
        self._device: torch.device = self._model.device
        self._sorts_by_length = self._device.type != "cpu"
        # A GPU's cache takes its memory when it is made: at first one that is large enough for `check`.
        slots, context = max(_NUM_CHECKED, max_sequences), max_context
        if self._device.type != "cpu":
            slots, context = _NUM_CHECKED, min(context, self_check.MAX_TOKENS)
        self._first_cache = KVCache(slots, context, self._device)
        self._cache: KVCache | PagedCache = self._first_cache

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def room(self) -> KVRoom:
        room = self._first_cache.room(self._max_sequences, self._max_context, self._kv_bytes)
        return replace(room, max_bytes=room.max_bytes * self.group.size) if self.group else room

    def begin(self, sequence: Sequence) -> None:
        """Nothing to prepare: what an earlier sequence left in the slot is overwritten before it is read."""

    def forward(self, step: Step) -> TorchLogits:
        logits = self.compute(self.plan(step))
        num_sampled = len(step.sampled)
        return TorchLogits(logits[:num_sampled], self.tokenizer.eos_ids, logits[num_sampled:])

    def plan(self, step: Step) -> Plan:
        """``step`` as numbers."""
        plan = Plan([], [], [], [], step.moves)
        first_row: dict[int, int] = {}  # of each slot
        for span in self._in_order(step):
            slot, start, end = span.sequence.slot, span.start, span.start + span.num_tokens
            plan.rows.append(Rows(slot, start, len(plan.tokens), span.num_tokens))
            plan.tokens.extend(span.sequence.tokens[start:end])
            plan.positions.extend(range(start, end))
            first_row[slot] = len(plan.tokens) - span.num_tokens
        for span in step.spans:
            if span.is_sampled:
                plan.sampled.append(first_row[span.sequence.slot] + span.num_tokens - 1)
        for span in step.scoring:
            plan.sampled.extend(first_row[span.sequence.slot] + at - span.start for at in span.scored)
        return plan

    @by_all_ranks
    @torch.inference_mode()
    def compute(self, plan: Plan) -> torch.Tensor:
        """Logits of the sampled rows, ``[sampled, vocabulary]``; K and V of all rows are in the cache then."""
        for move in plan.moves:
            self._cache.do(move)
        where = [place for row in plan.rows for place in self._cache.places(row.slot, row.start, row.end)]
        # One tensor, so that a GPU gets one copy.
        numbers = torch.tensor([*plan.tokens, *plan.positions, *where, *plan.sampled]).to(self._device)
        num_rows = len(plan.tokens)
        tokens, positions, places, sampled = numbers.split([num_rows, num_rows, num_rows, len(plan.sampled)])
        with attending(PackedStep(self._cache, places, plan.rows)):
            return self._logits(tokens[None], positions[None], sampled)

    def _logits(self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits of ``rows``, ``[rows, vocabulary]``, of one pass over ``tokens`` and ``positions``, ``[1, T]``.

        The mask of ones says that nothing is padded; without it transformers looks for packed sequences in the
        positions itself, and waits for the GPU to do so.
        """
        out = self._engine(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=torch.ones_like(tokens, dtype=torch.bool),
            use_cache=False,
            logits_to_keep=rows,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _in_order(self, step: Step) -> list[Span]:
        """The spans as they stand in the row: decoding sequences of like length side by side where K and V are copied,
        and neighbours in the cache side by side where they are read as they lie."""
        if not self._sorts_by_length:
            return step.spans
        decoding = sorted(step.spans[: step.num_decoding], key=lambda span: span.start)
        return decoding + step.spans[step.num_decoding :]

    def check(self) -> None:
        """Compare packed sequences with plain forwards of the same weights, chunked prefill and decode included.

        Raises `NotRagged` if they differ by more than rounding explains: some architectures mix neighbours without
        a word (convolutions, recurrent layers), and a wrong number must never be served.
        """
        kind, tolerance = type(self._model).__name__, self_check.TOLERANCE[self._model.dtype]
        try:
            off = self_check.difference(
                self._packed_logits, self._plain_logits, self.tokenizer.vocab_size, self._max_context
            )
        except (NotRagged, DSServeError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as fault:
            raise NotRagged(f"{kind} does not run packed: {type(fault).__name__}: {fault}") from fault
        if not off <= tolerance:
            raise NotRagged(
                f"{kind} answers differently in a batch than alone: logits are off by {off:.2g} of the largest, where "
                f"rounding explains {tolerance:g}"
            )
        if self._least:
            found = agreement(self._least.reference, self._plain_logits)
            refuse_below(found, self._least.share, self._name)
            self.info = ModelInfo(note=str(found))
        if self._device.type != "cpu":
            self._make_cache(self._first_cache.room(self._max_sequences, self._max_context, self._kv_bytes))

    @by_all_ranks
    def _make_cache(self, room: KVRoom) -> None:
        """The one for what is to be served, in the place of the first."""
        self._cache = self._first_cache.made_for(room)

    def _packed_logits(self, step: Step) -> torch.Tensor:
        return self.forward(step).logits

    @by_all_ranks
    def _plain_logits(self, tokens: list[int]) -> torch.Tensor:
        """Logits of every token by transformers' own attention, ``[tokens, vocabulary]``."""
        with attention.eager(self._model):
            return plain_logits(self._engine, tokens, self._device)

    def device_bytes(self) -> int:
        """Of all ranks together; on GPUs every rank is taken to hold what this one does."""
        if self.group is None:
            return held_bytes(self._device)
        if self._device.type == "cuda":
            return held_bytes(self._device) * self.group.size
        return held_bytes(self._device) + sum(map(resident_bytes, self.group.pids))
