"""What a runner proves in WARMING: two sequences that run together give the logits of plain forward passes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from jupyter_dsserve.engine.runner import Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams

# How far a runner's logits may lie from plain ones, as a share of the largest logit: rounding differs with the shapes
# of a call, wrong attention shows in the first digits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

MAX_TOKENS = 24  # of a sequence


def probes(vocab_size: int, max_context: int) -> tuple[list[int], list[int]]:
    """Two fixed sequences of random tokens, of different lengths."""
    draw = torch.Generator().manual_seed(0)
    length = min(MAX_TOKENS, max_context)
    tokens: list[int] = torch.randint(vocab_size, (2 * length,), generator=draw).tolist()
    return tokens[:length], tokens[length : length + max(3, length // 2)]


def together(forward: Callable[[Step], torch.Tensor], long: list[int], short: list[int]) -> torch.Tensor:
    """Logits of both probes' last three tokens, ``[6, vocabulary]``, as ``forward`` gives them for the sampled rows.

    ``long`` comes in two chunks, the second beside a decoding ``short``; then both decode, so that what one leaves
    behind would be met by the other.
    """
    a, b = (
        Sequence(name, tokens[:-2], SamplingParams(), slot=slot)
        for slot, (name, tokens) in enumerate([("a", long), ("b", short)])
    )
    cut, end_a, end_b = len(long) // 2, len(long) - 2, len(short) - 2
    (b0,) = forward(Step([Span(b, 0, end_b, True), Span(a, 0, cut, False)], 0))
    b.tokens.append(short[end_b])
    b1, a0 = forward(Step([Span(b, end_b, 1, True), Span(a, cut, end_a - cut, True)], 1))
    a.tokens.append(long[end_a])
    b.tokens.append(short[end_b + 1])
    a1, b2 = forward(Step([Span(a, end_a, 1, True), Span(b, end_b + 1, 1, True)], 2))
    a.tokens.append(long[end_a + 1])
    (a2,) = forward(Step([Span(a, end_a + 1, 1, True)], 1))
    return torch.stack([a0, a1, a2, b0, b1, b2]).float()


def difference(
    forward: Callable[[Step], torch.Tensor],
    plain: Callable[[list[int]], torch.Tensor],
    vocab_size: int,
    max_context: int,
) -> float:
    """How far ``forward`` is off the logits that ``plain`` gives for a sequence's tokens, ``[tokens, vocabulary]``.

    As a share of the largest logit; NaN where one of them has a NaN.
    """
    long, short = probes(vocab_size, max_context)
    packed = together(forward, long, short)
    alone = torch.cat([plain(long)[-3:], plain(short)[-3:]])
    return float((packed - alone).abs().max() / alone.abs().max())
