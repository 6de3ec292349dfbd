"""A streamed answer is read as OpenAI's servers write it; time is an argument."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jupyter_dsserve.bench.outcome import Reading


def fed(*lines: Any) -> Reading:
    """Each line at its own second, 1 on."""
    reading = Reading()
    for at, line in enumerate(lines, start=1):
        reading.feed(b"data: " + (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n", float(at))
    return reading


def piece(text: str, end: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": end}]}


def delta(end: str | None = None, **fields: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": end}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 6}}


def test_an_answer_has_its_times_and_the_servers_counts() -> None:
    outcome = fed(piece("a"), piece("bc"), piece("", "length"), USAGE, b"[DONE]").outcome(0.0, 5.0)
    assert outcome.end == "answered"
    assert list(outcome.piece_s) == [1, 2]
    assert (outcome.first_token_s, outcome.latency_s) == (1, 5)
    assert (outcome.prompt_tokens, outcome.num_tokens) == (7, 6)
    assert outcome.per_token_s == pytest.approx(1 / 5), "six tokens came in two pieces, a second apart"


def test_without_usage_each_piece_counts_as_a_token() -> None:
    outcome = fed(piece("a"), piece("b"), piece("c", "stop"), b"[DONE]").outcome(0.0, 4.0)
    assert (outcome.output_tokens, outcome.num_tokens, outcome.per_token_s) == (None, 3, 1)


def test_a_chats_opening_is_no_token_and_thinking_is() -> None:
    opening = delta(role="assistant", content="")
    outcome = fed(opening, delta(reasoning_content="hm"), delta(content="yes"), delta("stop"), b"[DONE]").outcome(0, 5)
    assert list(outcome.piece_s) == [2, 3]
    assert outcome.end == "answered"


def test_an_answer_of_one_token_has_no_time_a_token_and_one_of_none_no_first() -> None:
    assert fed(piece("a", "stop")).outcome(0.0, 2.0).per_token_s is None
    empty = fed(piece("", "stop"), b"[DONE]").outcome(0.0, 2.0)
    assert (empty.end, empty.first_token_s, empty.latency_s) == ("answered", None, 2)


def test_an_error_in_the_stream_and_a_silent_end_are_failures() -> None:
    failed = fed(piece("a"), {"error": {"message": "the worker died"}}, b"[DONE]").outcome(0.0, 3.0)
    assert (failed.end, failed.error, failed.detail) == ("failed", "error in the stream", "the worker died")
    silent = fed(piece("a"), piece("b")).outcome(0.0, 3.0)
    assert (silent.end, silent.error) == ("failed", "broken off")
    assert "after 2 pieces" in silent.detail


def test_what_was_cut_is_neither() -> None:
    cut = fed(piece("a")).outcome(0.0, 3.0, cut=True)
    assert (cut.end, cut.error, len(cut.piece_s)) == ("cut", "", 1)


def test_lines_that_are_no_data_are_passed_over() -> None:
    reading = Reading()
    for line in (b": keep-alive\n", b"\n", b"event: x\n"):
        reading.feed(line, 1.0)
    assert not reading.piece_s
