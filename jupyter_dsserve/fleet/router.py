"""Which version and which replica answer: pure choices over numbers, without a clock and without I/O."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from jupyter_dsserve.protocol.policy import Rule
from jupyter_dsserve.protocol.request import Features, Message, Pair, Request, Text, Texts

# Beyond so many replicas two drawn at random are looked at instead of all: nearly as even (Mitzenmacher 2001), and the
# cost of a request no longer grows with their number.
_MANY = 16
# Of a prompt, as much as says whether it begins as another one did; of shorter ones there is little to reuse.
_PREFIX_CHARS = 256
_MIN_PREFIX_CHARS = 64
_CHARS_PER_TOKEN = 4  # of English under today's vocabularies; it is only an estimate
_UNKNOWN_ANSWER = 256  # tokens, of a request that names no limit
# A replica that holds the prompt's beginning is taken as long as its load is not much higher than the least.
_SPILL_RATIO = 1.5
_SPILL_TOKENS = 1024


class Loaded(Protocol):
    """A replica, as far as the choice looks at it: what is still to be computed on it, in tokens."""

    @property
    def id(self) -> str: ...

    @property
    def outstanding_tokens(self) -> int: ...


R = TypeVar("R", bound=Loaded)


class SmoothShares:
    """Smooth weighted round robin, as nginx does it: picks follow the weights exactly, and evenly spread.

    With whole percents every version gets exactly its weight of any 100 picks in a row. A change of the weights, and of
    which versions can be picked, starts it anew.
    """

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._credit: dict[str, float] = {}

    def next(self, weights: dict[str, float]) -> str | None:
        """The name whose turn it is among those of ``weights`` (all above 0); None if there are none."""
        if len(weights) < 2:
            return next(iter(weights), None)
        if weights != self._weights:
            self._weights, self._credit = weights, dict.fromkeys(weights, 0.0)
        credit, total, best = self._credit, 0.0, ""
        for name, weight in weights.items():
            credit[name] += weight
            total += weight
            if not best or credit[name] > credit[best]:
                best = name
        credit[best] -= total
        return best


def ruled(rules: Sequence[Rule], headers: Mapping[str, str], takes: Collection[str]) -> str | None:
    """The version that the first fitting rule names, among those that take requests; None if no rule fits."""
    return next((r.version for r in rules if headers.get(r.header) == r.value and r.version in takes), None)


def least_loaded(
    replicas: Sequence[R], turn: int, prefix: str = "", draw: Callable[[int], int] = random.randrange
) -> R:
    """The replica with the least outstanding work; equals take turns (``turn`` counts up).

    With a ``prefix`` it is the one that prompts with this beginning always go to, unless much more work is on that.
    ``draw(n)`` gives a number below n. ``replicas`` holds at least one.
    """
    if len(replicas) == 1:
        return replicas[0]
    looked_at = replicas if len(replicas) <= _MANY else _two_of(replicas, draw)
    least = min(r.outstanding_tokens for r in looked_at)
    if prefix:
        home = max(replicas, key=lambda r: hashlib.blake2b(f"{r.id}\0{prefix}".encode(), digest_size=8).digest())
        if home.outstanding_tokens <= _SPILL_RATIO * least + _SPILL_TOKENS:
            return home
    equals = [r for r in looked_at if r.outstanding_tokens == least]
    return equals[turn % len(equals)]


def _two_of(replicas: Sequence[R], draw: Callable[[int], int]) -> Sequence[R]:
    first, other = draw(len(replicas)), draw(len(replicas) - 1)
    return replicas[first], replicas[other + (other >= first)]


def prefix_of(request: Request) -> str:
    """What says whether a prompt begins as another one did; empty for prompts too short for that to matter."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt[:_PREFIX_CHARS] if len(prompt) >= _MIN_PREFIX_CHARS else ""
    if isinstance(prompt, Texts | Features) or not prompt:
        return ""
    if isinstance(prompt[0], Message):
        said = request.tools.functions[:_PREFIX_CHARS] if request.tools else ""  # where templates write them
        for turn in prompt:
            assert isinstance(turn, Message)
            said += f"{turn.role}: {turn.content[:_PREFIX_CHARS]}\n"
            if len(said) >= _PREFIX_CHARS:
                break
        return said[:_PREFIX_CHARS] if len(said) >= _MIN_PREFIX_CHARS else ""
    ids = prompt[: _PREFIX_CHARS // _CHARS_PER_TOKEN]
    return str(ids) if len(ids) * _CHARS_PER_TOKEN >= _MIN_PREFIX_CHARS else ""


def estimated_tokens(request: Request) -> tuple[int, int]:
    """About how many tokens a request has and may get: of its prompt, and at most of its answer.

    Only the worker knows the tokens of a text, so it is estimated from its length; what really comes corrects it.
    """
    prompt = request.prompt
    if isinstance(prompt, Texts):
        return sum(map(_num_text_tokens, prompt.texts)), 0
    if isinstance(prompt, Features):
        return 1, 0
    answer = _UNKNOWN_ANSWER if request.sampling.max_tokens is None else request.sampling.max_tokens
    if prompt and isinstance(prompt, tuple) and isinstance(prompt[0], Message):
        tools = _num_tokens(request.tools.functions) if request.tools else 0
        return tools + sum(_num_tokens(turn.content) for turn in prompt if isinstance(turn, Message)), answer
    return _num_tokens(prompt), answer


def _num_text_tokens(text: Text) -> int:
    return _num_tokens(text.first) + _num_tokens(text.second) if isinstance(text, Pair) else _num_tokens(text)


def _num_tokens(text: str | Sequence[object]) -> int:
    return 1 + (len(text) // _CHARS_PER_TOKEN if isinstance(text, str) else len(text))
