"""`RaggedRunner`: a transformers model under DeepSpeed that takes prompts and decoding sequences in one ragged step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from jupyter_dsserve.engine import attention
from jupyter_dsserve.engine.attention import PackedStep, Rows, attending
from jupyter_dsserve.engine.equivalence import Least, agreement, plain_logits, refuse_below
from jupyter_dsserve.engine.group import RankGroup, by_all_ranks
from jupyter_dsserve.engine.host import resident_bytes
from jupyter_dsserve.engine.kv_cache import KVCache
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.engine.runner import KVRoom, Move, Span, Step
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.tensors import ModelInfo

# How far packed logits may lie from plain ones, as a share of the largest logit: rounding differs with the shapes of a
# call, wrong attention shows in the first digits.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class Plan:
    """A step as numbers, without its sequences: what every rank that holds a part of the model computes.

    ``tokens``, ``positions`` and ``places`` (in the cache) have an entry a row of the pass; ``sampled`` are the rows
    whose logits are wanted, first those that give a token, then those of prompts. ``moves`` come first.
    """

    tokens: list[int]
    positions: list[int]
    places: list[int]
    rows: list[Rows]
    sampled: list[int]
    moves: tuple[Move, ...]


class RaggedRunner:
    """Owns one model and its KV cache. Not for several threads at once.

    ``engine`` is what DeepSpeed made of a model whose attention is ours; ``least`` what `check` asks of it besides.
    """

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
        # `check` packs two sequences, even for a version that runs one at a time.
        self._cache = KVCache(max(2, max_sequences), max_context, self._device)

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def room(self) -> KVRoom:
        return self._cache.room(self._max_sequences, self._kv_bytes)

    def begin(self, sequence: Sequence) -> None:
        """Nothing to prepare: what an earlier sequence left in the slot is overwritten before it is read."""

    def forward(self, step: Step) -> TorchLogits:
        logits = self.compute(self.plan(step))
        num_sampled = len(step.sampled)
        return TorchLogits(logits[:num_sampled], self.tokenizer.eos_ids, logits[num_sampled:])

    def plan(self, step: Step) -> Plan:
        """``step`` as numbers."""
        plan = Plan([], [], [], [], [], step.moves)
        first_row: dict[int, int] = {}  # of each slot
        for span in self._in_order(step):
            slot, start, end = span.sequence.slot, span.start, span.start + span.num_tokens
            plan.rows.append(Rows(slot, start, len(plan.tokens), span.num_tokens))
            plan.tokens.extend(span.sequence.tokens[start:end])
            plan.positions.extend(range(start, end))
            plan.places.extend(range(self._cache.place(slot, start), self._cache.place(slot, end)))
            first_row[slot] = len(plan.tokens) - span.num_tokens
        for span in step.spans:
            if span.is_sampled:
                plan.sampled.append(first_row[span.sequence.slot] + span.num_tokens - 1)
        for span in step.spans:
            plan.sampled.extend(first_row[span.sequence.slot] + at - span.start for at in span.scored)
        return plan

    @by_all_ranks
    @torch.inference_mode()
    def compute(self, plan: Plan) -> torch.Tensor:
        """Logits of the sampled rows, ``[sampled, vocabulary]``; K and V of all rows are in the cache then."""
        for move in plan.moves:
            self._cache.do(move)
        # One tensor, so that a GPU gets one copy.
        numbers = torch.tensor([plan.tokens, plan.positions, plan.places]).to(self._device)
        sampled = torch.tensor(plan.sampled, dtype=torch.long).to(self._device)
        with attending(PackedStep(self._cache, numbers[2], plan.rows)):
            return self._logits(numbers[:1], numbers[1:2], sampled)

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

        Raises `InvalidRequest` if they differ by more than rounding explains: some architectures mix neighbours without
        a word (convolutions, recurrent layers), and a wrong number must never be served.
        """
        long, short = self._probes()
        packed = self._packed_logits(long, short)
        plain = torch.cat([self._plain_logits(long)[-2:], self._plain_logits(short)[-2:]])
        difference = float((packed - plain).abs().max() / plain.abs().max())
        tolerance = _TOLERANCE[self._model.dtype]
        if not difference <= tolerance:
            raise InvalidRequest(
                f"model {self._name} ({type(self._model).__name__}) answers differently in a batch than alone: logits "
                f"are off by {difference:.2g} of the largest, where rounding explains {tolerance:g}: choose a model of "
                "another architecture"
            )
        if self._least:
            found = agreement(self._least.reference, self._plain_logits)
            refuse_below(found, self._least.share, self._name)
            self.info = ModelInfo(note=str(found))

    def _probes(self) -> tuple[list[int], list[int]]:
        """Two fixed sequences of random tokens, of different lengths."""
        draw = torch.Generator().manual_seed(0)
        length = min(24, self._max_context)
        tokens: list[int] = torch.randint(self.tokenizer.vocab_size, (2 * length,), generator=draw).tolist()
        return tokens[:length], tokens[length : length + max(3, length // 2)]

    def _packed_logits(self, long: list[int], short: list[int]) -> torch.Tensor:
        """Logits of both's last two tokens; ``long`` comes in two chunks, the second beside a decoding ``short``."""
        a, b = (
            Sequence(name, tokens, SamplingParams(), slot=slot)
            for slot, (name, tokens) in enumerate([("a", long), ("b", short)])
        )
        cut, end_a, end_b = len(long) // 2, len(long) - 1, len(short) - 1
        steps = [
            Step([Span(b, 0, end_b, True), Span(a, 0, cut, False)], 0),
            Step([Span(b, end_b, 1, True), Span(a, cut, end_a - cut, True)], 1),
            Step([Span(a, end_a, 1, True)], 1),
        ]
        b0, (b1, a0), a1 = (self.forward(step).logits.float() for step in steps)
        return torch.stack([a0, a1[0], b0[0], b1])

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
