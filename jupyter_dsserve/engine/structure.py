"""Answers of a given form: which tokens may come next, by a grammar (llguidance) that follows the answer's tokens."""

from __future__ import annotations

import json

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Structure, StructureKind

_WORD = 32  # tokens to a number of the mask
# The library's own, but for its state in every error.
_LIMITS = LLParserLimits(verbose_errors=False)


class Matcher:
    """The grammar of one answer. It depends on the answer's tokens only, not on the steps that gave them.

    Made in any thread, used by one at a time.
    """

    def __init__(self, tokens: LLTokenizer, structure: Structure) -> None:
        """Takes up to a second for a very large grammar, others may run meanwhile.

        Raises `InvalidRequest` with the library's reason if it is no grammar.
        """
        self._vocab_size = tokens.vocab_size
        self._param = structure.param
        self._num_consumed = 0
        try:
            self._matcher = LLMatcher(tokens, _grammar(structure), log_level=0, limits=_LIMITS)
            reason = self._error
        except ValueError as fault:
            reason = str(fault)
        if reason:
            raise InvalidRequest(
                f"the {structure.kind.value} for the answer cannot be used: {reason}", param=structure.param
            )

    def has_ended(self, sequence: Sequence) -> bool:
        """Take in the tokens of the answer that came since; whether nothing but an end may follow, or it failed."""
        new = sequence.tokens[sequence.num_prompt + self._num_consumed :]
        self._num_consumed += len(new)
        self._matcher.consume_tokens(new)
        return self._matcher.is_stopped()

    @property
    def failure(self) -> InvalidRequest | None:
        """Why the grammar can be followed no further (it grew too large), if so."""
        if not (why := self._error):
            return None
        return InvalidRequest(
            f"after {self._num_consumed} tokens the answer cannot be kept in its form any further ({why}): "
            "ask for a simpler one",
            param=self._param,
        )

    @property
    def _error(self) -> str:
        return self._matcher.get_error().replace("<non-verbose/>", "").strip()

    def allowed(self, vocab_size: int) -> np.ndarray:
        """1 for each token that may come next, 0 for the others, ``[vocab_size]`` of uint8."""
        mask = np.zeros(-(-max(vocab_size, self._vocab_size) // _WORD), np.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, -(-self._vocab_size // _WORD) * 4)
        return np.unpackbits(mask.view(np.uint8), count=vocab_size, bitorder="little")


def _grammar(structure: Structure) -> str:
    """As llguidance takes it. JSON gets no white space between its tokens. Raises ValueError."""
    source = structure.source
    if structure.kind is StructureKind.JSON:
        return LLMatcher.grammar_from_json_schema(source, defaults={"whitespace_flexible": False})
    if structure.kind is StructureKind.REGEX:
        return LLMatcher.grammar_from_regex(source)
    if structure.kind is StructureKind.CHOICE:
        # JSON's quoting is Lark's.
        source = "start: " + " | ".join(json.dumps(choice) for choice in json.loads(source))
    return LLMatcher.grammar_from_lark(source)
