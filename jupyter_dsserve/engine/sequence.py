"""`Sequence`: a request inside the engine, from its tokens to its last chunk."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jupyter_dsserve.protocol.request import SamplingParams

if TYPE_CHECKING:
    from jupyter_dsserve.engine.structure import Matcher


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The logprob of a token in the model's own distribution, and the likeliest tokens there with theirs.

    The first token of a prompt has none.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of a request and how far they are computed.

    ``tokens`` is prompt plus answer; the first ``num_computed`` of them are in the KV cache, and
    ``num_cached`` were when it came. ``slot`` is the
    sequence's place there, given by the scheduler while it runs and -1 before and after. Lower ``priority`` goes first;
    ``arrived_s`` and ``deadline_s`` are monotonic seconds. With ``reuses_prefix`` it may start from what an earlier one
    computed for the same beginning. ``matcher`` keeps the answer in its form, if it has one.
    ``prompt_likelihoods`` are of the prompt's tokens from the first, as far as known, if it asks for them.
    """

    id: str
    tokens: list[int]
    sampling: SamplingParams
    num_prompt: int = 0
    num_computed: int = 0
    num_cached: int = 0
    slot: int = -1
    priority: int = 0
    arrived_s: float = 0.0
    deadline_s: float = math.inf
    reuses_prefix: bool = True
    matcher: Matcher | None = None
    prompt_likelihoods: list[Likelihood] = field(default_factory=list)
    random: random.Random = field(init=False)
    _counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)
        self.random = random.Random(self.sampling.seed)
        if self.scores_prompt:
            self.prompt_likelihoods.append(Likelihood(None, ()))
            self.reuses_prefix = False  # what is not computed has no logits

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def scores_prompt(self) -> bool:
        return self.sampling.echo and self.sampling.logprobs is not None

    def unscored(self, start: int, end: int) -> range:
        """Those of the positions from ``start`` to ``end`` whose next token is of the prompt and has no likelihood."""
        if not self.scores_prompt:
            return range(0)
        return range(max(start, len(self.prompt_likelihoods) - 1), min(end, self.num_prompt - 1))

    @property
    def output_counts(self) -> Mapping[int, int]:
        """How often each token stands in the answer. Counts only what came since it was asked last."""
        self._counts.update(self.tokens[self.num_prompt + self._counts.total() :])
        return self._counts

    @property
    def is_decoding(self) -> bool:
        """Whether all but the newest token is computed, so that one step gives one token."""
        return self.num_computed == len(self.tokens) - 1
