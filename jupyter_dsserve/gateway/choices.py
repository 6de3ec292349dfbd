"""One choice of an answer in OpenAI's shapes: of completions, of a whole chat, of a streamed chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jupyter_dsserve.gateway.tool_calls import Piece
from jupyter_dsserve.gateway.tools import Reader, gathered
from jupyter_dsserve.protocol.request import Chunk, Likely, TokenLogprob

Json = dict[str, Any]


def text_choice(index: int, chunk: Chunk) -> Json:
    logprobs = _text_logprobs(chunk.logprobs) if chunk.logprobs else None
    reason = None if chunk.error else chunk.finish_reason
    return {"index": index, "text": chunk.text, "logprobs": logprobs, "finish_reason": reason}


def text_choices(index: int, chunk: Chunk) -> list[Json]:
    """Of a streamed completion: none if there is nothing to tell, because a token may complete no character."""
    has_ended = chunk.finish_reason and not chunk.error
    return [text_choice(index, chunk)] if chunk.text or chunk.logprobs or has_ended else []


class ChatChoices:
    """The choices of a chat."""

    def __init__(self, new_reader: Callable[[], Reader]) -> None:
        self._new_reader = new_reader
        self._readers: dict[int, Reader] = {}

    def whole(self, index: int, chunk: Chunk) -> Json:
        reader = self._new_reader()
        text, calls = gathered(reader.read(chunk))
        message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {"id": reader.new_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in calls
            ]
        choice = {"index": index, "message": message, "logprobs": chat_logprobs(chunk)}
        return {**choice, "finish_reason": reader.finish_reason(chunk)}

    def opening(self, index: int) -> Json:
        """What a streamed choice begins with."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, chunk: Chunk) -> list[Json]:
        """What a chunk tells, in OpenAI's pieces: maybe nothing yet. The end is one of its own."""
        if (reader := self._readers.get(index)) is None:
            reader = self._readers[index] = self._new_reader()
        deltas = [_delta(piece, reader) for piece in reader.read(chunk)]
        reason = reader.finish_reason(chunk)
        if reason or (chunk.logprobs and not deltas):
            deltas.append({})
        choices: list[Json] = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if choices:
            choices[0]["logprobs"] = chat_logprobs(chunk)
            choices[-1]["finish_reason"] = reason
        return choices


def _delta(piece: Piece, reader: Reader) -> Json:
    if piece.call < 0:
        return {"content": piece.text}
    call: Json = {"index": piece.call}
    if piece.name:
        call |= {"id": reader.new_id(), "type": "function", "function": {"name": piece.name, "arguments": ""}}
    else:
        call |= {"function": {"arguments": piece.arguments}}
    return {"tool_calls": [call]}


def chat_logprobs(chunk: Chunk) -> Json | None:
    content = [_chat_logprob(one) | {"top_logprobs": [_chat_logprob(t) for t in one.top]} for one in chunk.logprobs]
    return {"content": content, "refusal": None} if content else None


def _chat_logprob(one: TokenLogprob | Likely) -> Json:
    return {"token": one.text.decode(errors="replace"), "logprob": one.logprob, "bytes": list(one.text)}


def _text_logprobs(logprobs: tuple[TokenLogprob, ...]) -> Json:
    """The token that came is always among the likeliest, as one more if it was not. The first of a prompt has none."""
    return {
        "tokens": [_token_text(one.text) for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [_top(one, one.logprob) if one.logprob is not None else None for one in logprobs],
        "text_offset": [one.offset for one in logprobs],
    }


def _top(one: TokenLogprob, own: float) -> dict[str, float]:
    # The likeliest last, so that of two tokens with the same text the likelier one stays.
    likely = {_token_text(t.text): t.logprob for t in reversed(one.top)}
    return dict(reversed(likely.items())) | {_token_text(one.text): own}


def _token_text(text: bytes) -> str:
    """A token as text; one that holds a part of a character as ``bytes:\\xe2``, as OpenAI does."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
