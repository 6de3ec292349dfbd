"""Where two texts differ, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

_MAX_WORDS = 2000  # difflib takes time by their square


def marked(one: str, other: str) -> tuple[str, str]:
    """Both texts as HTML, the words in which they differ within ``<mark>`` (Ratcliff and Obershelp's matching, as
    difflib has it)."""
    words, others = _words(one), _words(other)
    if max(len(words), len(others)) > _MAX_WORDS:
        return escape(one), escape(other)
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        left.append(_run(words[a:b], kind != "equal"))
        right.append(_run(others[c:d], kind != "equal"))
    return "".join(left), "".join(right)


def _words(text: str) -> list[str]:
    """Words, and what stands between them."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _run(words: Sequence[str], is_marked: bool) -> str:
    text = escape("".join(words))
    return f"<mark>{text}</mark>" if is_marked and text else text
