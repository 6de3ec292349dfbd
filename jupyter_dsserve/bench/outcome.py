"""What became of one request, and how it is read from the lines of a streamed answer."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
End = Literal["answered", "failed", "cut"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All times are seconds of one monotonic clock.

    ``asked_s``: when it was asked (with arrivals at a rate: when it was to be asked). ``piece_s``: when each piece of
    text came. ``cut``: the load test ended before its answer did. The token counts are the server's own; None if it
    did not say. ``error`` is the kind, for counting, and ``detail`` what the server said.
    """

    asked_s: float
    ended_s: float
    end: End
    piece_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""
    detail: str = ""

    @property
    def num_tokens(self) -> int:
        """Of the answer. Where the server does not say, each piece counts as one."""
        return len(self.piece_s) if self.output_tokens is None else self.output_tokens

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.asked_s

    @property
    def first_token_s(self) -> float | None:
        """None for an answer without text."""
        return self.piece_s[0] - self.asked_s if self.piece_s else None

    @property
    def per_token_s(self) -> float | None:
        """A token after the first, on average; None for an answer of one."""
        return (self.piece_s[-1] - self.piece_s[0]) / (self.num_tokens - 1) if self.num_tokens > 1 else None


class Reading:
    """Reads the lines of a streamed answer of OpenAI's completions or chat. Time is an argument."""

    def __init__(self) -> None:
        self.piece_s: array[float] = array("d")
        self.error = ""
        self._usage: Json = {}
        self._has_ended = False

    def feed(self, line: bytes, now_s: float) -> None:
        """One line. Raises ValueError for one that is no JSON."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self._has_ended = True
            return
        raw = json.loads(data)
        if raw.get("error"):
            self.error = message_in(raw)
        self._usage = raw.get("usage") or self._usage
        for choice in raw.get("choices") or ():
            if _text(choice):
                self.piece_s.append(now_s)
            self._has_ended = self._has_ended or choice.get("finish_reason") is not None

    def outcome(
        self, asked_s: float, ended_s: float, error: str = "", detail: str = "", *, cut: bool = False
    ) -> Outcome:
        """All of what came, with ``error`` if something else than the answer itself went wrong."""
        if not cut and not error:
            if self.error:
                error, detail = "error in the stream", self.error
            elif not self._has_ended:
                error, detail = "broken off", f"the stream ended after {len(self.piece_s)} pieces without saying so"
        return Outcome(
            asked_s,
            ended_s,
            "cut" if cut else "failed" if error else "answered",
            self.piece_s,
            self._usage.get("prompt_tokens"),
            self._usage.get("completion_tokens"),
            error,
            detail,
        )


def message_in(raw: Any) -> str:
    """What an error's JSON says, in whatever shape."""
    found = raw.get("error", raw) if isinstance(raw, dict) else raw
    found = found.get("message", found) if isinstance(found, dict) else found
    return str(found)[:300]


def _text(choice: Json) -> str:
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    # Thinking models say it by one of two names first.
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
