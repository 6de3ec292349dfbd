"""Calls that are no JSON, read into JSON arguments as they come: Python's, and the XML of Qwen3-Coder."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jupyter_dsserve.protocol.tools import CLOSE, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END

_MAX_DEPTH = 64  # of lists in lists
_MAX_NAME = 256  # letters of what names a function or a parameter
_LITERAL = re.compile(
    r"""\s*(?:
    (?P<text>[uUrR]?(?:
        '''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*''' | \"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"{3}
        | '[^'\\\r\n]*(?:\\.[^'\\\r\n]*)*' | "[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*"))
    | (?P<word>[+-]?[\w.]+(?:(?<=[eE])[+-]\d+)?)
    | (?P<mark>[][(){},:]))\s*""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = set("\n\\'\"abfnrtvxuUN01234567")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer; or of call number ``call`` its name, first and once, or some of its arguments."""

    text: str = ""
    call: int = -1
    name: str = ""
    arguments: str = ""


class _Told:
    """``has_begun`` once there is no doubt that it is a call; ``is_over`` at its end; ``is_none`` when it is no call,
    or no more."""

    def __init__(self, index: int) -> None:
        self.has_begun = self.is_over = self.is_none = False
        self._index = index
        self._name = ""
        self._new: list[str] = []  # of the arguments, that were not told yet
        self._num_told = 0
        self._num_arguments = 0

    def _begin_argument(self, key: str) -> None:
        self._new.append(("{" if not self._num_arguments else ", ") + _dumped(key) + ": ")
        self._num_arguments += 1
        self.has_begun = True

    def _end(self) -> None:
        self._new.append("}" if self._num_arguments else "{}")
        self.has_begun = self.is_over = True

    def _pieces(self) -> list[Piece]:
        if not self.has_begun:
            return []
        pieces = [] if self._num_told else [Piece(call=self._index, name=self._name)]
        self._num_told += 1
        arguments, self._new = "".join(self._new), []
        return [*pieces, Piece(call=self._index, arguments=arguments)] if arguments else pieces


class PythonCall(_Told):
    """Reads ``name(key=literal, ...)`` of one of ``names``, from the name on. An argument is told when it is whole."""

    def __init__(self, index: int, names: Collection[str]) -> None:
        super().__init__(index)
        self._names = names
        self._key = ""  # whose value is being read
        self._part: list[str] = []  # of the name, the key or the value that is being read
        self._depth = 0
        self._quote = ""  # that ends the string that is being read
        self._num_quotes = self._num_quoted = 0
        self._was_empty = ""  # the quote of the empty string that ended just now: a third makes it a long one
        self._is_escaped = False

    def read(self, text: str) -> tuple[int, list[Piece]]:
        """How many characters belong to it, and what they tell."""
        num = 0
        while num < len(text) and not self.is_none and not self.is_over:
            self._take(text[num])
            num += 1
        return num, self._pieces()

    def _take(self, char: str) -> None:
        if self._quote:
            self._take_quoted(char)
        elif not self._name:
            self._take_name(char)
        elif not self._key:
            self._take_key(char)
        elif char in ",)" and not self._depth:
            self._end_value(char)
        else:
            self._take_value(char)

    def _take_name(self, char: str) -> None:
        begin = "".join(self._part)
        if char == "(":
            self._name, self._part = begin if begin in self._names else "", []
            self.is_none = not self._name
        else:
            self._part.append(char)
            self.is_none = not any(name.startswith(begin + char) for name in self._names)

    def _take_key(self, char: str) -> None:
        key = "".join(self._part)
        if char == "=":
            self._key, self._part = key.strip(), []
            self.is_none = not is_python_key(self._key)
        elif char == ")" and not key.strip():
            self._end()
        else:
            self._part.append(char)
            self.is_none = char in "()[]{},:'\"" or len(key) > _MAX_NAME

    def _take_value(self, char: str) -> None:
        self._part.append(char)
        if char in "'\"":
            self._quote = char * 3 if self._was_empty == char else char
            self._num_quotes = self._num_quoted = 0
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
        self._was_empty = ""
        self.is_none = not 0 <= self._depth <= _MAX_DEPTH

    def _take_quoted(self, char: str) -> None:
        self._part.append(char)
        if self._is_escaped or char == "\\":
            self._is_escaped, self._num_quotes = not self._is_escaped, 0
        elif char == self._quote[0]:
            self._num_quotes += 1
            if self._num_quotes == len(self._quote):
                self._was_empty = char if not self._num_quoted and self._num_quotes == 1 else ""
                self._quote = ""
        else:
            self._num_quotes = 0
        self._num_quoted += 1

    def _end_value(self, char: str) -> None:
        try:
            value = _dumped(_Literal("".join(self._part)).read())
        except (ValueError, SyntaxError):
            self.is_none = True
            return
        self._begin_argument(self._key)
        self._new.append(value)
        self._key, self._part, self._was_empty = "", [], ""
        if char == ")":
            self._end()


class XmlCall(_Told):
    """Reads ``<function=NAME>``, its ``<parameter=KEY>`` values and ``</function>``.

    ``types`` are those of JSON that each parameter of each function may have: others than texts are told when they
    are whole.
    """

    def __init__(self, index: int, types: Mapping[str, Mapping[str, Collection[str]]]) -> None:
        super().__init__(index)
        self._types = types
        self._own: Collection[str] = ()  # of the value that is being read
        self._part: list[str] = []  # of it
        self._is_first = False  # nothing of it came yet
        self._text, self._at = "", 0
        self._state = self._before_name

    def read(self, text: str) -> tuple[int, list[Piece]]:
        """How many characters belong to it, and what they tell. The others are to come again, with more."""
        self._text, self._at = text, 0
        while not self.is_none and not self.is_over and self._state():
            pass
        return self._at, self._pieces()

    # ---- states: each reads some of the text, and says whether there may be more to read

    def _before_name(self) -> bool:
        if (found := self._comes(FUNCTION)) is None:
            return False
        self.is_none = not found
        self._at += len(FUNCTION)
        self._state = self._in_name
        return True

    def _in_name(self) -> bool:
        if (name := self._upto_bracket()) is None:
            return False
        self._name, self.is_none = name, not name
        self._state = self._between
        return True

    def _between(self) -> bool:
        """Before a parameter or the end."""
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        if self._at == len(self._text):
            return False
        parameter, end, close = (self._comes(tag) for tag in (PARAMETER, FUNCTION_END, CLOSE))
        if parameter:
            self._at += len(PARAMETER)
            self._state = self._in_key
        elif end or close:  # who reads the mark before the call reads that after it
            self._at += len(FUNCTION_END) if end else 0
            self._end()
        elif None in (parameter, end, close):
            return False
        else:
            self.is_none = True
        return True

    def _in_key(self) -> bool:
        if (key := self._upto_bracket()) is None:
            return False
        if not key:
            self.is_none = True
            return True
        self._begin_argument(key)
        self._own = self._types.get(self._name, {}).get(key, ())
        if self._is_text:
            self._new.append('"')
        self._is_first = True
        self._state = self._in_value
        return True

    def _in_value(self) -> bool:
        end = self._text.find(PARAMETER_END, self._at)
        upto = end if end >= 0 else len(self._text) - overlap(self._text, PARAMETER_END)
        more = self._text[self._at : upto]
        self._at = upto
        if more and self._is_first:
            more, self._is_first = more.removeprefix("\n"), False
        self._part.append(more)
        if end >= 0:
            self._at += len(PARAMETER_END)
            whole = "".join(self._part).removesuffix("\n")
            self._new.append(_dumped(whole)[1:] if self._is_text else _json_of(whole, self._own))
            self._part = []
            self._state = self._between
        elif self._is_text:
            told = "".join(self._part)
            kept = "\n" if told.endswith("\n") else ""  # no part of the value, if it ends here
            self._new.append(_dumped(told.removesuffix("\n"))[1:-1])
            self._part = [kept]
        return end >= 0

    @property
    def _is_text(self) -> bool:
        return set(self._own) <= {"string"}

    def _comes(self, tag: str) -> bool | None:
        """Whether ``tag`` comes next; None if too little came to tell."""
        begin = self._text[self._at : self._at + len(tag)]
        return begin == tag or (None if tag.startswith(begin) else False)

    def _upto_bracket(self) -> str | None:
        """A name; empty if it is none, None if too little came."""
        end = self._text.find(">", self._at, self._at + _MAX_NAME)
        if end < 0:
            return None if len(self._text) - self._at < _MAX_NAME else ""
        name = self._text[self._at : end]
        self._at = end + 1
        return name if is_xml_key(name) else ""


class _Literal:
    """Text of Python's literals, without their operators, sets and bytes: JSON has none of these."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []  # what they are and what they say, the last first
        at = 0
        while at < len(text):
            if not (found := _LITERAL.match(text, at)):
                raise ValueError(f"no literal: {text[at : at + 20]}")
            kind = found.lastgroup or ""
            self._tokens.append((kind, found[kind]))
            at = found.end()
        self._tokens.reverse()

    def read(self) -> Any:
        """Raises ValueError or SyntaxError. Lists are no deeper in each other than `PythonCall` lets them be."""
        value = self._value()
        if self._tokens:
            raise ValueError("more than a literal")
        return value

    def _value(self) -> Any:
        kind, token = self._next()
        if kind == "text":
            parts = [_string(token)]
            while self._tokens and self._tokens[-1][0] == "text":
                parts.append(_string(self._next()[1]))
            return "".join(parts)
        if kind == "word":
            return _WORDS[token] if token in _WORDS else _number(token)
        if token == "{":
            return self._dict()
        if token in "[(":
            return self._list(token)
        raise ValueError(f"no literal: {token}")

    def _list(self, opening: str) -> Any:
        closing = "]" if opening == "[" else ")"
        values: list[Any] = []
        while not self._took(closing):
            values.append(self._value())
            if self._took(closing):
                return values[0] if opening == "(" and len(values) == 1 else values
            self._need(",")
        return values

    def _dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self._took("}"):
            key = self._value()
            if isinstance(key, list | dict):
                raise ValueError("no key of a dict")
            self._need(":")
            values[key if isinstance(key, str) else _dumped(key)] = self._value()
            if not self._took("}"):
                self._need(",")
                continue
            break
        return values

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError("half a literal")
        return self._tokens.pop()

    def _took(self, mark: str) -> bool:
        if self._tokens and self._tokens[-1] == ("mark", mark):
            self._tokens.pop()
            return True
        return False

    def _need(self, mark: str) -> None:
        if not self._took(mark):
            raise ValueError(f"no {mark}")


def is_python_key(key: str) -> bool:
    return 0 < len(key) <= _MAX_NAME and not re.search(r"[\s()\[\]{},:=*'\"]", key)


def is_xml_key(key: str) -> bool:
    return 0 < len(key) < _MAX_NAME and not re.search(r"[\s<>]", key)


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that ``mark`` begins with."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def _string(token: str) -> str:
    if "\\" not in token and token[0] in "'\"":
        num = 3 if len(token) >= 6 and token[:3] in ("'''", '"""') else 1
        return token[num:-num]
    if token[0] not in "rR":  # Python keeps the backslash of an escape that it does not know, and warns
        token = _ESCAPE.sub(lambda found: found[0] if found[1] in _ESCAPES else "\\" + found[0], token)
    value = ast.literal_eval(token)
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _number(word: str) -> int | float:
    digits = word.lstrip("+-")
    if not digits or digits[0] not in "0123456789.":
        raise ValueError(f"no number: {word[:20]}")
    try:
        return int(word, 0)
    except ValueError:
        if digits.isdigit() and digits.strip("0"):  # too long, or 007
            raise
        return float(word)


def _dumped(value: Any) -> str:
    """As JSON. Half a surrogate pair is escaped: it has no UTF-8. Raises ValueError for infinite numbers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def _json_of(text: str, types: Collection[str]) -> str:
    """A value of one of ``types`` if it is written as JSON or as Python writes its words; else the text."""
    plain = text.strip()
    word = {"True": "true", "False": "false", "None": "null"}.get(plain, plain)
    try:
        value = json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _dumped(text)
    own = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    name = own.get(type(value), "")
    fits = name in types or (name == "integer" and "number" in types)
    fits = fits or (isinstance(value, float) and value.is_integer() and "integer" in types)
    return word if fits else _dumped(text)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
