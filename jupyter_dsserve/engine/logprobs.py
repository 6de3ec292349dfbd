"""Logprobs on their way to the reader: kept back with the text of their tokens, and sent with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from jupyter_dsserve.engine.sequence import Likelihood
from jupyter_dsserve.protocol.request import Likely, TokenLogprob


@dataclass(frozen=True, slots=True)
class _Held:
    logprob: TokenLogprob
    end: int  # where the token's text ends in the answer's


class HeldLogprobs:
    """One answer's logprobs. A token without text of its own (the start of a character) goes with the next one.

    ``text_of`` gives a token's bytes.
    """

    def __init__(self, text_of: Callable[[int], bytes]) -> None:
        self._text_of = text_of
        self._held: deque[_Held] = deque()

    def push(self, token: int, likelihood: Likelihood, begin: int, end: int) -> None:
        """Keep a token's; its text goes from ``begin`` to ``end`` in the answer's, in characters."""
        top = tuple(Likely(self._text_of(one), logprob) for one, logprob in likelihood.top)
        self._held.append(_Held(TokenLogprob(self._text_of(token), likelihood.logprob, begin, top), end))

    def sent(self, length: int) -> tuple[TokenLogprob, ...]:
        """Those of the text up to ``length``, when more may follow."""
        whole = sum(1 for one in self._held if one.end <= length)
        while whole and self._held[whole - 1].logprob.offset == self._held[whole - 1].end:
            whole -= 1
        return tuple(self._held.popleft().logprob for _ in range(whole))

    def ended(self, length: int, *, is_cut: bool) -> tuple[TokenLogprob, ...]:
        """All that is left, when the answer has ended at ``length``; if it was cut there, only what began before."""
        left = tuple(one.logprob for one in self._held if one.logprob.offset < length or not is_cut)
        self._held.clear()
        return left
