"""Calls of functions in the answers to a chat: who may be asked for them, and reading them out of the chunks."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import cast

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.tool_calls import Piece
from jupyter_dsserve.gateway.tool_parser import ToolParser
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Tools
from jupyter_dsserve.protocol.tools import ToolFormat, types_of

_LETTERS = string.ascii_letters + string.digits


def check_tools(tools: Tools | None) -> Callable[[Version], None]:
    """For `generate.start`: raises `InvalidRequest` for a version whose model cannot be told of functions."""

    def check(version: Version) -> None:
        if tools and not tools.required and not version.info.tool_format:
            raise InvalidRequest(
                f"the chat template of {version.id} knows no functions, or writes their calls in a way that is not "
                "known here: leave tools out, or have one called with tool_choice 'required' or a function's name",
                param="tools",
            )

    return check


class Reader:
    """Of one answer: gives its chunks as pieces of text and of calls of the functions in ``types``. Without any
    there is text only."""

    def __init__(self, types: Mapping[str, Mapping[str, Collection[str]]], format: ToolFormat) -> None:
        self._parser = ToolParser(format, types) if types else None
        self._format = format

    def read(self, chunk: Chunk) -> list[Piece]:
        if not self._parser:
            return [Piece(chunk.text)] if chunk.text else []
        return self._parser.push(chunk.text) + (self._parser.end() if chunk.finish_reason else [])

    def finish_reason(self, chunk: Chunk) -> str | None:
        """As OpenAI says it; None too for an answer that ends with an error."""
        if chunk.error or chunk.finish_reason is None:
            return None
        has_called = self._parser is not None and self._parser.num_calls > 0
        return "tool_calls" if has_called and chunk.finish_reason is FinishReason.STOP else chunk.finish_reason.value

    def new_id(self) -> str:
        """Of a call. Mistral's templates take no others than nine letters."""
        prefix, length = ("", 9) if self._format == "mistral" else ("call_", 24)
        return prefix + "".join(secrets.choice(_LETTERS) for _ in range(length))


def readers(answering: Answering, tools: Tools | None) -> Callable[[], Reader]:
    """Makes the `Reader` of each answer of a call."""
    format = cast(ToolFormat, answering.version.info.tool_format) if answering.version else ""
    types = types_of(tools) if tools else {}  # once: it reads all schemas
    return lambda: Reader(types, format)


def gathered(pieces: Iterable[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and of each call the function's name and the arguments."""
    text, calls = "", list[tuple[str, str]]()
    for piece in pieces:
        text += piece.text
        if piece.name:
            calls.append((piece.name, ""))
        elif piece.arguments:
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + piece.arguments)
    return text, calls
