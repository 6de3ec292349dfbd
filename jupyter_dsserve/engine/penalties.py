"""What a request changes in its logits before a token is taken: penalties, bias, and no end before `min_tokens`."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq

import torch

from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams


def adjusted(logits: torch.Tensor, sequences: Seq[Sequence], eos_ids: Collection[int]) -> torch.Tensor:
    """``logits``, ``[rows, vocabulary]``, as their rows' sequences want them; the same tensor if none wants a change.

    In this order: repetition penalty (Keskar et al. 2019, over prompt and answer), presence and frequency penalty (as
    OpenAI defines them, over the answer), bias, and -inf for all that would end an answer too early.
    """
    changed = [row for row, sequence in enumerate(sequences) if _is_changed(sequence)]
    if not changed:
        return logits
    logits = logits.float() if logits.dtype != torch.float32 else logits.clone()
    for row in changed:
        _adjust(logits[row], sequences[row], eos_ids)
    return logits


def _is_changed(sequence: Sequence) -> bool:
    s = sequence.sampling
    is_penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    return is_penalised or bool(s.logit_bias) or sequence.num_output < s.min_tokens


def _adjust(row: torch.Tensor, sequence: Sequence, eos_ids: Collection[int]) -> None:
    """In place. ``row`` is ``[vocabulary]``."""
    s: SamplingParams = sequence.sampling

    def ids(of: Collection[int]) -> torch.Tensor:
        return torch.tensor(list(of), dtype=torch.long, device=row.device)

    if s.repetition_penalty != 1:
        seen = ids(set(sequence.tokens))
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / s.repetition_penalty, scores * s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and sequence.num_output:
        counts = sequence.output_counts
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids(counts)] -= s.presence_penalty + s.frequency_penalty * times
    if s.logit_bias:
        row[ids([token for token, _ in s.logit_bias])] += torch.tensor(
            [bias for _, bias in s.logit_bias], dtype=row.dtype, device=row.device
        )
    if sequence.num_output < s.min_tokens:
        ends = {*s.stop_token_ids} if s.ignore_eos else {*s.stop_token_ids, *eos_ids}
        row[ids(ends)] = -torch.inf
