"""A streamed answer, line by line."""

from __future__ import annotations

import json

import pytest

from jupyter_dsserve.notebook.answers import Pieces, asked
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure


def line(text: str = "", end: str | None = None, **more: object) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": end}], **more})


def test_the_text_of_each_line_and_the_whole_with_its_times() -> None:
    pieces = Pieces("demo", {"X-DSServe-Version": "v2", "X-Request-Id": "r-1"}, started=10.0)
    assert [pieces.feed(text, now) for text, now in ((line("he"), 10.5), ("", 10.6), (line("llo"), 11.0))] == [
        "he",
        "",
        "llo",
    ]
    pieces.feed(line("", "length"), 12.0)
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    pieces.feed("data: " + json.dumps({"choices": [], "usage": usage}), 12.0)
    pieces.feed("data: [DONE]", 12.0)
    answer = pieces.answer()
    assert (answer.text, answer.version, answer.finish_reason) == ("hello", "v2", "length")
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 5)
    assert (answer.first_token_s, answer.latency_s, answer.request_id) == (0.5, 2.0, "r-1")


def test_a_chat_comes_as_deltas() -> None:
    pieces = Pieces("demo", {}, 0.0)
    first = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    second = {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}
    assert [pieces.feed(f"data: {json.dumps(raw)}", 1.0) for raw in (first, second)] == ["", "hi"]
    assert pieces.answer().text == "hi"


def test_an_error_within_is_raised_and_a_missing_end_too() -> None:
    pieces = Pieces("demo", {}, 0.0)
    pieces.feed(line("hel"), 1.0)
    with pytest.raises(DSServeError, match="broke off after 3 characters"):
        pieces.answer()
    with pytest.raises(EngineFailure, match="after 3 characters: the worker ended"):
        pieces.feed('data: {"error": {"message": "the worker ended"}}', 2.0)


def test_a_text_goes_to_completions_and_messages_to_chat() -> None:
    assert asked("m", "hi", {"seed": None, "top_k": 3}) == (
        "/v1/completions",
        {"model": "m", "prompt": "hi", "top_k": 3},
    )
    assert asked("m", [1, 2], {})[1]["prompt"] == [1, 2]
    path, body = asked("m", [{"role": "user", "content": "hi"}], {})
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hi"}]
