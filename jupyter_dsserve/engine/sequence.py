"""`Sequence`: a request inside the engine, from its tokens to its last chunk."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jupyter_dsserve.protocol.request import SamplingParams, Times

if TYPE_CHECKING:
    from jupyter_dsserve.engine.structure import Matcher


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The logprob of a token in the model's own distribution, and the likeliest tokens there with theirs.

    The first token of a prompt has none.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...]


class TokenCounts:
    """How often each token stands in a list that grows, from place ``start`` on. Counts only what came since it was
    asked last."""

    __slots__ = ("_counts", "_ids", "_num_read", "_places")

    def __init__(self, start: int) -> None:
        self._num_read = start
        self._places: dict[int, int] = {}  # of a token in the arrays, which have room for more
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float32)

    def of(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens, each once, int64, and how often, float32."""
        new = tokens[self._num_read :]
        self._num_read += len(new)
        for token in new:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty(place + 16, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(place + 16, np.float32)])
            self._ids[place] = token
            self._counts[place] += 1
        return self._ids[: len(self._places)], self._counts[: len(self._places)]


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of a request and how far they are computed.

    ``tokens`` is prompt plus answer; the first ``num_computed`` of them are in the KV cache, and
    ``num_cached`` were when it came. ``slot`` is the
    sequence's place there, given by the scheduler while it runs and -1 before and after. Lower ``priority`` goes first;
    ``arrived_s``, ``tokenized_s``, ``admitted_s``, ``first_token_s`` (`protocol.request.Times`) and ``deadline_s`` are
    monotonic seconds. With ``reuses_prefix`` it may start from what an earlier one
    computed for the same beginning. ``matcher`` keeps the answer in its form, if it has one.
    If it ``continues``, its text goes on from the prompt's; a turn of a chat begins anew. With ``keeps_markers`` its
    text has the special tokens in it that begin a call of a function. The first ``num_added`` tokens stand in no text
    of the caller's: the tokenizer has put them before it.
    ``prompt_likelihoods`` are of the prompt's tokens from the first, as far as known, if it asks for them.
    """

    id: str
    tokens: list[int]
    sampling: SamplingParams
    num_prompt: int = 0
    num_computed: int = 0
    num_cached: int = 0
    slot: int = -1
    was_admitted: bool = False
    priority: int = 0
    arrived_s: float = 0.0
    deadline_s: float = math.inf
    tokenized_s: float = 0.0
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    num_steps: int = 0
    reuses_prefix: bool = True
    continues: bool = True
    keeps_markers: bool = False
    num_added: int = 0
    matcher: Matcher | None = None
    prompt_likelihoods: list[Likelihood] = field(default_factory=list)
    random: random.Random = field(init=False)
    scores_prompt: bool = field(init=False)
    _seen: TokenCounts = field(init=False)
    _said: TokenCounts = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)
        self.random = random.Random(self.sampling.seed)
        self._seen, self._said = TokenCounts(0), TokenCounts(self.num_prompt)
        self.scores_prompt = self.sampling.echo and self.sampling.logprobs is not None
        if self.scores_prompt:
            self.prompt_likelihoods.append(Likelihood(None, ()))
            self.reuses_prefix = False  # what is not computed has no logits

    def times(self, ended_s: float) -> Times:
        """What became of it when, once it has ended."""
        told = self.arrived_s, self.tokenized_s, self.admitted_s, self.first_token_s
        return Times(*told, ended_s, self.num_steps)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    def unscored(self, start: int, end: int) -> range:
        """Those of the positions from ``start`` to ``end`` whose next token is of the prompt and has no likelihood."""
        if not self.scores_prompt:
            return range(0)
        return range(max(start, len(self.prompt_likelihoods) - 1), min(end, self.num_prompt - 1))

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of prompt and answer, each once, and how often."""
        return self._seen.of(self.tokens)

    @property
    def said(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the answer, each once, and how often."""
        return self._said.of(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether all but the newest token is computed, so that one step gives one token."""
        return self.num_computed == len(self.tokens) - 1
