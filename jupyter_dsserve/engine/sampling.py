"""From logits to tokens: greedy, or temperature, top-k, top-p and min-p with one random number a token."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq

import numpy as np
import torch

from jupyter_dsserve.engine.penalties import adjusted
from jupyter_dsserve.engine.runner import Span
from jupyter_dsserve.engine.sequence import Likelihood, Sequence

# Likely tokens looked at first: the nucleus of a trained model nearly always lies within, and a full sort of a
# large vocabulary takes longer than a step of a small model.
_NUCLEUS_GUESS = 1024
# What stands for the logprob of what cannot come, as in OpenAI's API: JSON has no infinity.
_LEAST_LOGPROB = -9999.0
# Rows of a prompt looked at together: in single precision each is a copy of the vocabulary's length.
_SCORED_BLOCK = 256


class TorchLogits:
    """Logits of the sampled rows of a step, ``[rows, vocabulary]``, on their device, and of its `Span.scored` rows."""

    def __init__(
        self, logits: torch.Tensor, eos_ids: Collection[int] = (), of_prompts: torch.Tensor | None = None
    ) -> None:
        self.logits = logits
        self._eos_ids = eos_ids
        self._of_prompts = logits[:0] if of_prompts is None else of_prompts

    @torch.inference_mode()
    def sample(self, sequences: Seq[Sequence]) -> list[int]:
        """The next token of each row's sequence.

        A row's token depends on its logits, its sampling parameters and its sequence's random numbers, never on the
        other rows: so a seed gives the same answer in any company.
        """
        wanted = constrained(adjusted(self.logits, sequences, self._eos_ids), sequences)
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if drawn and len(drawn) == len(sequences):
            return _draw(wanted, sequences)  # without a greedy row nobody waits for a GPU twice
        tokens: list[int] = wanted.argmax(-1).tolist()
        if drawn:
            for row, token in zip(drawn, _draw(wanted[drawn], [sequences[row] for row in drawn]), strict=True):
                tokens[row] = token
        return tokens

    @torch.inference_mode()
    def likelihoods(self, sequences: Seq[Sequence], tokens: Seq[int]) -> list[Likelihood | None]:
        """Of the logits as the model gave them, before penalties, temperature and filters."""
        asked = [(row, num) for row, s in enumerate(sequences) if (num := s.sampling.logprobs) is not None]
        found: list[Likelihood | None] = [None] * len(sequences)
        if asked:
            rows = [row for row, _ in asked]
            told = likelihoods_of(self.logits[rows], [tokens[row] for row in rows], [num for _, num in asked])
            for row, one in zip(rows, told, strict=True):
                found[row] = one
        return found

    @torch.inference_mode()
    def prompt_likelihoods(self, spans: Seq[Span]) -> list[Likelihood]:
        places = [(span.sequence, at + 1) for span in spans for at in span.scored]
        asked = [(sequence.tokens[at], sequence.sampling.logprobs or 0) for sequence, at in places]
        found: list[Likelihood] = []
        for block in range(0, len(asked), _SCORED_BLOCK):
            tokens, num_top = zip(*asked[block : block + _SCORED_BLOCK], strict=True)
            found += likelihoods_of(self._of_prompts[block : block + _SCORED_BLOCK], list(tokens), list(num_top))
        return found


def likelihoods_of(logits: torch.Tensor, tokens: list[int], num_top: list[int]) -> list[Likelihood]:
    """Of a token in each row of ``logits``, ``[rows, vocabulary]``, and of the row's ``num_top`` likeliest."""
    scores = logits.float()
    total = scores.logsumexp(-1, keepdim=True)
    best = scores.topk(min(max(num_top), scores.shape[-1]))
    own = scores.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    # One copy from a GPU instead of two.
    logprobs = (torch.cat([own, best.values], -1) - total).clamp(min=_LEAST_LOGPROB).tolist()
    return [
        Likelihood(row[0], tuple(zip(ids[:num], row[1 : num + 1], strict=True)))
        for row, ids, num in zip(logprobs, best.indices.tolist(), num_top, strict=True)
    ]


def constrained(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """``logits`` with -inf for what would break the form of a row's answer; the same tensor if none has a form.

    A form goes before all else: where nothing it allows has a finite score, what it allows is equally likely.
    """
    rows = {row: s.matcher for row, s in enumerate(sequences) if s.matcher}
    if not rows:
        return logits
    masks = np.stack([matcher.allowed(logits.shape[-1]) for matcher in rows.values()])
    allowed = torch.from_numpy(masks).to(logits.device).bool()
    index = torch.tensor(list(rows), device=logits.device)
    scores = logits[index].float().masked_fill_(~allowed, -torch.inf)
    scores.masked_fill_(allowed & scores.isneginf().all(-1, keepdim=True), 0.0)
    return logits.float().index_copy(0, index, scores)


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
    """One token a row, by the inverse of the cumulated probabilities in the order of the vocabulary."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    scores = logits.float()
    # The best score is moved to 0 first: dividing by a tiny temperature then gives -inf, never NaN.
    scores = (scores - scores.amax(-1, keepdim=True)) / column([s.sampling.temperature for s in sequences]).float()
    scores = keep_likely(scores, [s.sampling.top_k for s in sequences], [s.sampling.top_p for s in sequences])
    if any(s.sampling.min_p > 0 for s in sequences):
        # The likeliest has score 0, so a share of its probability is a distance from 0.
        scores = scores.masked_fill(scores < column([s.sampling.min_p for s in sequences]).log(), -torch.inf)
    # Single precision would lose the tail of a large vocabulary in the sum.
    cumulated = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    total = cumulated[:, -1:]
    target = torch.minimum(column([s.random.random() for s in sequences]) * total, total.nextafter(total.new_zeros(())))
    tokens: list[int] = torch.searchsorted(cumulated, target, right=True)[:, 0].tolist()
    return tokens


def keep_likely(scores: torch.Tensor, top_k: list[int], top_p: list[float]) -> torch.Tensor:
    """``scores``, ``[rows, vocabulary]``, with -inf where a row's top-k and then its top-p leave a token out.

    Each row gets the least score it keeps, and tokens as likely as the last one stay: the choice does not depend on how
    a sort orders equals. 0 and 1 switch a filter off.
    """
    vocabulary = scores.shape[-1]
    if any(0 < k < vocabulary for k in top_k):
        best = scores.topk(min(max(top_k), vocabulary)).values
        last = torch.tensor([min(k, vocabulary) - 1 if k > 0 else -1 for k in top_k], device=scores.device)[:, None]
        least = best.gather(-1, last.clamp(min=0)).masked_fill_(last < 0, -torch.inf)
        scores = scores.masked_fill(scores < least, -torch.inf)
    if any(p < 1 for p in top_p):
        share = torch.tensor([p if p < 1 else 2.0 for p in top_p], dtype=torch.float64, device=scores.device)[:, None]
        scores = scores.masked_fill(scores < _least_of_nucleus(scores, share), -torch.inf)
    return scores


def _least_of_nucleus(scores: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The least score of the fewest tokens whose probabilities together reach ``share``; -inf where it is over 1."""
    total = scores.double().logsumexp(-1, keepdim=True)
    for num_likely in (min(_NUCLEUS_GUESS, scores.shape[-1]), scores.shape[-1]):
        best = scores.topk(num_likely).values
        reached = (best.double() - total).exp().cumsum(-1)
        if bool(((reached[:, -1:] >= share) | (share > 1)).all()):
            break
    last = (reached < share).sum(-1, keepdim=True).clamp(max=num_likely - 1)
    return best.gather(-1, last).masked_fill_(share > 1, -torch.inf)
