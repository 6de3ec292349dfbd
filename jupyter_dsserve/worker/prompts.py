"""From a `Request` to the engine's `Sequence`: its prompt as tokens, and the form of its answer."""

from __future__ import annotations

import math

from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Features, Message, Prompt, Request, Structure, Texts, Tools, text_size
from jupyter_dsserve.protocol.tools import structure_with


def sequence_of(tokenizer: Tokenizer, request: Request, now: float) -> Sequence:
    """``now`` is monotonic seconds. Raises `InvalidRequest` for what is no prompt."""
    if isinstance(request.prompt, Texts | Features):
        raise InvalidRequest("this version generates text: send it a prompt")
    return Sequence(
        request.id,
        _tokens(tokenizer, request.prompt, request.tools),
        request.sampling,
        priority=request.priority,
        arrived_s=now,
        deadline_s=math.inf if request.timeout_s is None else now + request.timeout_s,
        continues=not any(isinstance(part, Message) for part in request.prompt[:1]),
        keeps_markers=request.tools is not None,
        num_added=_num_added(tokenizer, request.prompt) if request.sampling.echo else 0,
    )


def structure_of(tokenizer: Tokenizer, request: Request) -> Structure | None:
    """The form of the answer: what is asked for, and what calls of functions must look like."""
    asked, tools = request.sampling.structure, request.tools
    return structure_with(tools, tokenizer.tool_format, tokenizer.markers, asked) if tools else asked


def num_chars_of(request: Request) -> int:
    """About what there is to tokenize; a chat counts as short."""
    prompt = request.prompt
    if isinstance(prompt, Texts):
        return sum(map(text_size, prompt.texts))
    return len(prompt) if isinstance(prompt, str) else 0


def _num_added(tokenizer: Tokenizer, prompt: Prompt) -> int:
    """How many tokens the tokenizer puts before a text."""
    if not isinstance(prompt, str):
        return 0
    whole, own = (tokenizer.encode_batch([prompt], added)[0] for added in (True, False))
    return next((num for num in range(len(whole) - len(own) + 1) if whole[num : num + len(own)] == own), 0)


def _tokens(
    tokenizer: Tokenizer, prompt: str | tuple[int, ...] | tuple[Message, ...], tools: Tools | None
) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode_batch([prompt])[0]
    if prompt and isinstance(prompt[0], Message):
        turns = [m for m in prompt if isinstance(m, Message)]
        return tokenizer.encode_batch([tokenizer.render_chat(turns, tools)], add_special_tokens=False)[0]
    return [t for t in prompt if isinstance(t, int)]
