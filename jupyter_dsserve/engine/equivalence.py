"""Does a version still say what its model says? Its logits on fixed texts against those of plain transformers.

For what can change numbers: several ranks, offloaded weights, fewer bits. The plain model answers first, from mapped
files and before DeepSpeed takes it apart, so that never two of them are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jupyter_dsserve.engine.attention import eager
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec

_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody in the village remembers when it was otherwise.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / count",
    "In 1905 four papers changed what we know of light, of atoms, of space and of time. The first of them",
    "Question: What is 17 times 3? Answer: 51. Question: What is the capital of France? Answer:",
)
_MAX_TOKENS = 32  # of each text


@dataclass(frozen=True, slots=True)
class Reference:
    """What the plain model said: the likeliest token after each of ``tokens``, and the logits after each text's last.

    ``last`` is ``[texts, vocabulary]`` in fp32, on the CPU.
    """

    tokens: list[list[int]]
    likeliest: list[list[int]]
    last: torch.Tensor


@dataclass(frozen=True, slots=True)
class Least:
    """The ``share`` of tokens, 0 to 1, on which a version must agree with the ``reference``."""

    share: float
    reference: Reference


@dataclass(frozen=True, slots=True)
class Agreement:
    """``share`` of the tokens whose likeliest successor is the same, 0 to 1; ``distance``: the largest difference of
    logits, as a share of the largest logit."""

    share: float
    distance: float
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"agrees with plain transformers on {self.share:.1%} of {self.num_tokens} tokens, logits off by at most "
            f"{self.distance:.1g} of the largest"
        )


# Ranks and offloading only round differently, so nothing but near ties may turn. Eight bits a weight turn some of the
# closer ones, four bits many.
_LEAST = {"int4": 0.7, "int8": 0.9, "": 0.99}

Logits = Callable[[list[int]], torch.Tensor]  # of every token of a text, [tokens, vocabulary]


def least_agreement(spec: WorkerSpec) -> float | None:
    """What a version must reach: what it says itself, or the default of what it does; None if it changes no numbers."""
    if spec.min_agreement is None and spec.tp == 1 and not spec.zero and not spec.quantize:
        return None
    return _LEAST[spec.quantize] if spec.min_agreement is None else spec.min_agreement


def reference(model: Any, tokenizer: Tokenizer, max_context: int) -> Reference:
    """What ``model`` itself, a transformers model that nothing has changed yet, says to the texts."""
    length = min(_MAX_TOKENS, max_context)
    texts = [tokens[:length] for tokens in tokenizer.encode_batch(list(_TEXTS))]
    with eager(model):
        return _said(lambda tokens: plain_logits(model, tokens, model.device), [text for text in texts if text])


@torch.inference_mode()
def plain_logits(model: Any, tokens: list[int], device: torch.device) -> torch.Tensor:
    """Logits of every token by one forward pass without a cache, ``[tokens, vocabulary]`` in fp32."""
    out = model(input_ids=torch.tensor([tokens], device=device), use_cache=False)
    return out.logits[0].float()


def agreement(expected: Reference, logits: Logits) -> Agreement:
    """How far ``logits`` are what is ``expected``."""
    said = _said(logits, expected.tokens)
    pairs = [
        pair
        for one, other in zip(expected.likeliest, said.likeliest, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    distance = (said.last - expected.last).abs().max() / expected.last.abs().max()
    return Agreement(sum(one == other for one, other in pairs) / len(pairs), float(distance), len(pairs))


def refuse_below(found: Agreement, least: float, model: str) -> None:
    """Raises `InvalidRequest` with the figures if ``found`` is less than ``least``, or no number."""
    if found.share >= least and found.distance == found.distance:
        return
    raise InvalidRequest(
        f"model {model} {found}: less than min_agreement {least:g}, so it is not served; choose other settings, or "
        "lower min_agreement if that is good enough",
        param="min_agreement",
    )


def _said(logits: Logits, texts: list[list[int]]) -> Reference:
    rows = [logits(tokens).cpu() for tokens in texts]
    return Reference(texts, [row.argmax(-1).tolist() for row in rows], torch.stack([row[-1] for row in rows]))
