"""An echo is the prompt to the letter, special tokens that stand in it too, and its logprobs say where each begins."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI

pytestmark = pytest.mark.asyncio(loop_scope="package")
PROMPT = "<|user|>What is 'é'?<|end|>\n<|assistant|> It"


@pytest.mark.parametrize("stream", [False, True])
async def test_special_tokens_stand_in_an_echo_as_they_stood_in_the_prompt(client: AsyncOpenAI, stream: bool) -> None:
    asked = {"model": "demo", "prompt": PROMPT, "max_tokens": 4, "echo": True, "logprobs": 0, "temperature": 0}
    if stream:
        pieces = await client.completions.create(**asked, stream=True)  # type: ignore[call-overload]
        assert "".join([piece.choices[0].text async for piece in pieces]).startswith(PROMPT)
        return
    (choice,) = (await client.completions.create(**asked)).choices  # type: ignore[call-overload]
    assert choice.text.startswith(PROMPT)
    assert "<|" not in choice.text[len(PROMPT) :], "what the model adds has none"
    told = [(at, token) for at, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)]
    assert {token for _, token in told} >= {"<|user|>", "<|end|>", "<|assistant|>"}
    for at, token in told:
        assert token.startswith("bytes:") or choice.text[at:].startswith(token)
    ids = await client.completions.create(**{**asked, "prompt": [0, 3], "max_tokens": 0})  # type: ignore[call-overload]
    assert ids.choices[0].text == "<|endoftext|><|user|>"
