"""The seam under the engine: a `Runner` owns a model and its KV cache, and turns a `Step` into `Logits`."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from jupyter_dsserve.engine.sequence import Likelihood, Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.tensors import ModelInfo


@dataclass(frozen=True, slots=True)
class KVRoom:
    """What a runner's KV cache holds: ``num_slots`` sequences of up to ``max_context`` tokens, and over all of them as
    many blocks of ``block_tokens`` tokens as there is memory for, ``max_bytes`` when all are filled."""

    num_slots: int
    max_context: int
    num_blocks: int
    block_tokens: int
    max_bytes: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether there are fewer blocks than the slots could fill."""
        return self.num_blocks < self.num_slots * -(-self.max_context // self.block_tokens)

    def __str__(self) -> str:
        return (
            f"KV cache for {self.num_slots} sequences, {self.num_blocks * self.block_tokens:,} tokens in up to "
            f"{self.max_bytes / 2**20:,.0f} MiB"
        )


@dataclass(frozen=True, slots=True)
class Copy:
    """K and V of the first ``num_tokens`` of slot ``source`` go to slot ``target`` too."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Trim:
    """Slot ``slot`` gives back its memory, all but that of the first ``num_tokens``."""

    slot: int
    num_tokens: int


Move = Copy | Trim


@dataclass(frozen=True, slots=True)
class Span:
    """What one sequence brings to a step: its tokens at positions ``start`` to ``start + num_tokens - 1``.

    With ``is_sampled`` the row of the last of them gives the sequence's next token.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    is_sampled: bool

    @property
    def scored(self) -> range:
        """The positions whose rows say how likely the prompt's next token was, where it is asked for and not known."""
        return self.sequence.unscored(self.start, self.start + self.num_tokens)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: decoding sequences first (one token each, lowest slot first), then chunks of prompts.

    ``moves`` are done in the KV cache before it, in order.
    """

    spans: list[Span]
    num_decoding: int
    moves: tuple[Move, ...] = ()

    @property
    def sampled(self) -> list[Sequence]:
        return [span.sequence for span in self.spans if span.is_sampled]

    @property
    def scoring(self) -> list[Span]:
        """The spans of those who ask how likely their prompt is."""
        return [span for span in self.spans if span.sequence.scores_prompt]


class Logits(Protocol):
    """What a forward pass gave for the sampled rows of its step. It stays on the device until it is sampled."""

    def sample(self, sequences: Seq[Sequence]) -> list[int]:
        """The next token of each sequence, in the order of `Step.sampled`, by its own `SamplingParams`."""
        ...

    def likelihoods(self, sequences: Seq[Sequence], tokens: Seq[int]) -> list[Likelihood | None]:
        """How likely each sampled token was, for the rows whose sequences ask for logprobs."""
        ...

    def prompt_likelihoods(self, spans: Seq[Span]) -> list[Likelihood]:
        """How likely the prompt's next token was at each `Span.scored` position of `Step.scoring`, in order."""
        ...


class Runner(Protocol):
    """Built by `load_runner` in the worker's engine thread, and used by that thread only, but for `device_bytes`."""

    kind: str  # for the status: ragged, toy, or padded and what kept the model from ragged
    tokenizer: Tokenizer
    max_step_tokens: int  # in one forward pass
    info: ModelInfo  # once `check` has run

    @property
    def room(self) -> KVRoom:
        """What its KV cache holds, known once `check` has run. Raises `InvalidRequest` if that is too little."""
        ...

    @property
    def device(self) -> str:
        """As torch names it: ``cpu``, ``cuda:0``."""
        ...

    def begin(self, sequence: Sequence) -> None:
        """Called once when a sequence gets its slot, before its first step. May refuse it with a `DSServeError`."""
        ...

    def forward(self, step: Step) -> Logits:
        """Run the model on the tokens of ``step`` and write their K and V into the cache."""
        ...

    def device_bytes(self) -> int:
        """Bytes of device memory (RAM on a machine without one) that this process holds now."""
        ...
