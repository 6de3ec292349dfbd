"""From an answer's text to its calls of functions, as the text comes: the formats of `protocol.tools`.

What may still become a call is held back, all else goes on at once; arguments do once the name is known.
However the text is cut, the pieces say the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from jupyter_dsserve.gateway.tool_calls import Piece, PythonCall, XmlCall, overlap
from jupyter_dsserve.protocol.tools import CLOSE, OPEN, PYTHON_END, PYTHON_START, PYTHON_TAG, TOOL_CALLS, ToolFormat

_ARGUMENTS = ("arguments", "parameters")


class ToolParser:
    """Of one answer. ``types`` are the functions it may call, and of each the parameters with JSON's types: where a
    format has no mark of its own, a call of none of them is text."""

    def __init__(self, format: ToolFormat, types: Mapping[str, Mapping[str, Collection[str]]]) -> None:
        self.num_calls = 0
        self._format = format
        self._types = types
        self._open = {"llama3": PYTHON_TAG, "mistral": TOOL_CALLS, "pythonic": PYTHON_START}.get(format, OPEN)
        self._close = {OPEN: CLOSE, PYTHON_START: PYTHON_END}.get(self._open, "")
        self._between = {"llama3": ";", "mistral": ",", "pythonic": ","}.get(format, "")
        self._list_begins = {"mistral": [TOOL_CALLS], "pythonic": ["", PYTHON_START]}.get(format, [])
        self._held = ""  # text that was not read yet
        self._raw = ""  # of the call that is being read, to be given as text if it is none
        self._call: _Call | PythonCall | XmlCall | None = None
        self._state = self._at_start if format in ("llama3", "pythonic") else self._in_text
        self._pieces: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        self._held += text
        while self._state():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> list[Piece]:
        """What was held back. A call that is cut off keeps the arguments that came."""
        if not (self._call and self._call.has_begun):
            rest = self._raw + self._held
            self._say(rest if rest.strip() or not self.num_calls else "")
        pieces, self._pieces = self._pieces, []
        return pieces

    # ---- states: each reads some of what is held, and says whether there may be more to read

    def _at_start(self) -> bool:
        """Of a format whose call may be the whole answer, without a mark."""
        begin = self._held.lstrip()
        if not begin or self._open.startswith(begin):
            return False
        mark = "[" if self._list_begins else "{"
        self._state = self._before_call if begin.startswith(mark) else self._in_text
        return True

    def _in_text(self) -> bool:
        before, mark, after = self._held.partition(self._open)
        if mark:
            self._say(before.rstrip())
            self._raw, self._held = mark, after
            self._state = self._before_call
            return True
        # White space before a call is no part of the text.
        num_told = len(before[: len(before) - overlap(before, self._open)].rstrip())
        self._say(before[:num_told])
        self._held = before[num_told:]
        return False

    def _before_call(self) -> bool:
        """After the mark, up to the object of the first call."""
        begin = self._held.lstrip()
        if not begin:
            return False
        self._raw += self._held[: len(self._held) - len(begin)]
        self._held = begin
        if begin.startswith("[") and self._raw.strip() in self._list_begins:
            self._raw, self._held = self._raw + "[", begin[1:]
            return True
        if self._format == "qwen3_coder":
            self._call = XmlCall(self.num_calls, self._types)
        elif self._format == "pythonic" and self._raw.strip() not in self._list_begins:
            self._call = PythonCall(self.num_calls, self._types)
        elif begin.startswith("{") and self._format != "pythonic":
            self._call = _Call(self.num_calls, self._types if self._format == "llama3" else ())
        else:
            self._give_up()
            return True
        self._state = self._in_call
        return True

    def _in_call(self) -> bool:
        assert self._call
        num, pieces = self._call.read(self._held)
        if not self._call.has_begun:
            self._raw += self._held[:num]
        self._held = self._held[num:]
        self._pieces += pieces
        self.num_calls += any(piece.name for piece in pieces)
        if self._call.is_over:
            self._raw, self._call = "", None
            self._state = self._after_call
            return True
        if self._call.is_none:
            if self._call.has_begun:  # it was told already
                self._raw = ""
            self._call = None
            self._give_up()
            return True
        return False

    def _after_call(self) -> bool:
        """What stands between calls and after the last is dropped; what is none of that is text again."""
        begin = self._held.lstrip()
        for end in filter(None, (self._close, self._between, self._open)):
            if begin.startswith(end):
                self._raw, self._held = ("" if end == self._close else end), begin[len(end) :]
                self._state = self._in_text_after if end == self._close else self._before_call
                return True
            if end.startswith(begin):
                return False
        if begin.startswith("]") and self._list_begins:
            self._held = begin[1:]
            self._state = self._after_list
        else:
            self._held = begin
            self._state = self._in_text_after
        return True

    def _after_list(self) -> bool:
        begin = self._held.lstrip()
        if self._close and self._close.startswith(begin) and begin != self._close:
            return False
        self._held = begin.removeprefix(self._close)
        self._state = self._in_text_after
        return True

    def _in_text_after(self) -> bool:
        begin = self._held.lstrip()
        if not begin:
            return False
        self._held, self._state = begin, self._in_text
        return True

    def _give_up(self) -> None:
        """It was no call: it is text."""
        self._say(self._raw)
        self._raw, self._state = "", self._in_text

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(Piece(text))


class _Call:
    """Reads one object ``{"name": ..., "arguments": {...}}`` character by character, from its brace on.

    ``has_begun`` once name and arguments are known of; ``is_over`` at its last brace, or before a mark; ``is_none``
    when it is no call.
    """

    def __init__(self, index: int, names: Collection[str]) -> None:
        self.index = index
        self.has_begun = self.is_over = self.is_none = False
        self._names = names
        self._name = ""
        self._arguments = ""  # that were not told yet
        self._has_arguments = self._was_told = False
        self._key: str | None = None  # whose value is being read
        self._part = ""  # of the key or the value that is being read; not kept of arguments that are an object
        self._is_object = False  # it is such arguments
        self._depth = 0
        self._is_string = self._is_escaped = False

    def read(self, text: str) -> tuple[int, list[Piece]]:
        """How many characters belong to it, and what they tell."""
        num = 0
        while num < len(text) and not self.is_none and not self.is_over:
            if text[num] == "<" and not self._is_string:  # no JSON: the mark at its end came too early
                self.is_over, self.is_none = self.has_begun, not self.has_begun
                break
            self._take(text[num])
            num += 1
        pieces: list[Piece] = []
        if self.has_begun and not self._was_told:
            self._was_told = True
            pieces.append(Piece(call=self.index, name=self._name))
        if self.has_begun and self._arguments:
            pieces.append(Piece(call=self.index, arguments=self._arguments))
            self._arguments = ""
        return num, pieces

    def _take(self, char: str) -> None:
        if self._is_string:
            self._keep(char)
            self._is_string = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
        elif char == '"':
            self._is_string = True
            self._keep(char)
        elif char in "{[":
            self._depth += 1
            if self._depth > 1:
                if self._depth == 2 and char == "{" and self._key in _ARGUMENTS and not self._part:
                    self._is_object = self._has_arguments = True
                self._keep(char)
        elif char in "}]" and self._depth > 1:
            self._depth -= 1
            self._keep(char)
        elif char in "}]":
            self._end_value()
            if not self._has_arguments:
                self._arguments = "{}"
            self.is_over = char == "}" and bool(self._name)
            self.is_none = not self.is_over
        elif self._depth > 1:
            self._keep(char)
        elif char == ":" and self._key is None:
            self._key, self._part = str(_loaded(self._part)), ""
        elif char == ",":
            self._end_value()
        elif not char.isspace():
            self._keep(char)
        self.has_begun = self.has_begun or (bool(self._name) and (self._has_arguments or self.is_over))

    def _keep(self, char: str) -> None:
        if self._is_object:
            self._arguments += char
        else:
            self._part += char

    def _end_value(self) -> None:
        key, part, was_object = self._key, self._part, self._is_object
        self._key, self._part, self._is_object = None, "", False
        if key == "name":
            name = _loaded(part)
            self._name = name if isinstance(name, str) and (not self._names or name in self._names) else ""
            self.is_none = not self._name
        elif key in _ARGUMENTS and not was_object:
            value = _loaded(part)
            self._arguments = value if isinstance(value, str) else "{}"  # some models write the object as a string
            self._has_arguments = True


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
