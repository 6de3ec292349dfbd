"""Between text and tokens: the `Tokenizer` contract, incremental detokenizing, stop strings."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

from jupyter_dsserve.protocol.request import Message, Structure, Tools
from jupyter_dsserve.protocol.tools import ToolFormat

if TYPE_CHECKING:
    from jupyter_dsserve.engine.structure import Matcher


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text as they come. Never gives half of a multi-byte character."""

    def push(self, token: int, *, shows_special: bool = False) -> str:
        """The text that ``token`` completes; empty while a character is unfinished. With ``shows_special`` a special
        token is its name."""
        ...

    def flush(self) -> str:
        """What is left at the end: the text of an unfinished character (a replacement sign), or nothing."""
        ...


class Tokenizer(Protocol):
    """``tool_format`` is how the chat template has functions called; ``markers`` are those of `protocol.tools.MARKERS`
    that are special tokens, with their ids."""

    eos_ids: frozenset[int]
    vocab_size: int
    tool_format: ToolFormat
    markers: Mapping[str, int]

    def copy(self) -> Tokenizer:
        """Another object for another thread."""
        ...

    def encode_batch(self, texts: Seq[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Tokens of each text; with ``add_special_tokens`` what the model wants around a plain prompt (BOS)."""
        ...

    def render_chat(self, messages: Seq[Message], tools: Tools | None = None) -> str:
        """The chat as the model's template writes it, special tokens included, up to where the answer begins.

        Raises `InvalidRequest` if the model has no template or the template refuses the messages.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for in UTF-8 text: it may be a part of a character; a special token is its name."""
        ...

    def matcher(self, structure: Structure) -> Matcher:
        """What keeps one answer in its form; made in any thread. Raises `InvalidRequest` if it cannot be."""
        ...

    def detokenizer(self, before: int | None = None, *, keeps_markers: bool = False) -> Detokenizer:
        """For a text that goes on after the token ``before``; None: that begins. Special tokens give no text, but
        for ``markers`` if it ``keeps_markers``."""
        ...


class StopStrings:
    """Holds text back while it could be the start of a stop string, and says when one is complete."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to send, and whether a stop string was met (it and what follows are dropped)."""
        if not self._stop:
            return text, False
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        safe, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return safe, False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that ``stop`` begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
