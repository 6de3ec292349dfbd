"""Which tokens go into the next step: continuous batching with chunked prefill, first come first served.

Every running sequence that decodes gets its one token; what is left of the step's token budget goes to prompts, the
oldest first, cut into chunks (Sarathi-Serve, Agrawal et al. 2024): a long prompt never stalls the others' tokens for
longer than one step of the budget's length.
"""

from __future__ import annotations

import heapq
from collections import deque

from jupyter_dsserve.engine.runner import Span, Step
from jupyter_dsserve.engine.sequence import Sequence


class Scheduler:
    """Gives slots to waiting sequences and cuts steps. Knows neither text nor tensors.

    Slots are numbers from 0 to ``max_sequences - 1``; the lowest free one is given first, so that the running
    sequences stay close together in the KV cache.
    """

    def __init__(self, max_sequences: int, max_step_tokens: int) -> None:
        self.max_sequences = max_sequences
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free_slots = list(range(max_sequences))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> Sequence | None:
        """Move the oldest waiting sequence to a free slot and return it; None if nothing waits or no slot is free."""
        if not self.waiting or not self._free_slots:
            return None
        sequence = self.waiting.popleft()
        sequence.slot = heapq.heappop(self._free_slots)
        self.running.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands; its slot is free for the next step."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1

    def schedule(self) -> Step | None:
        """The next step, or None if nothing runs. The sequences' ``num_computed`` is moved on by `advance`."""
        decoding = sorted((s for s in self.running if s.is_decoding), key=lambda s: s.slot)
        spans = [Span(s, s.num_computed, 1, True) for s in decoding]
        # However many decode, prompts make some progress: else a full house would starve newcomers.
        budget = max(self.max_step_tokens - len(spans), self.max_step_tokens // 4, 1)
        for sequence in self.running:
            if budget <= 0:
                break
            if not sequence.is_decoding:
                missing = len(sequence.tokens) - sequence.num_computed
                num_tokens = min(missing, budget)
                spans.append(Span(sequence, sequence.num_computed, num_tokens, num_tokens == missing))
                budget -= num_tokens
        return Step(spans, len(decoding)) if spans else None

    @staticmethod
    def advance(step: Step) -> None:
        """After the forward pass: what the step held is in the KV cache."""
        for span in step.spans:
            span.sequence.num_computed += span.num_tokens
