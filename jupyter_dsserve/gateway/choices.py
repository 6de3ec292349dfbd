"""One choice of an answer in OpenAI's shapes: of completions, of a whole chat, of a streamed chat."""

from __future__ import annotations

from typing import Any

from jupyter_dsserve.protocol.request import Chunk, Likely, TokenLogprob

Json = dict[str, Any]


def text_choice(index: int, chunk: Chunk) -> Json:
    logprobs = _text_logprobs(chunk.logprobs) if chunk.logprobs else None
    return {"index": index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}


def message_choice(index: int, chunk: Chunk) -> Json:
    message: Json = {"role": "assistant", "content": chunk.text, "refusal": None, "annotations": []}
    return {"index": index, "message": message, **_chat_end(chunk)}


def delta_choice(index: int, chunk: Chunk) -> Json:
    return {"index": index, "delta": {"content": chunk.text} if chunk.text else {}, **_chat_end(chunk)}


def opening_choice(index: int) -> Json:
    """What a streamed chat begins with."""
    delta = {"role": "assistant", "content": "", "refusal": None}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _chat_end(chunk: Chunk) -> Json:
    content = [_chat_logprob(one) | {"top_logprobs": [_chat_logprob(t) for t in one.top]} for one in chunk.logprobs]
    return {
        "logprobs": {"content": content, "refusal": None} if content else None,
        "finish_reason": chunk.finish_reason,
    }


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
