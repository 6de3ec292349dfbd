"""What a request changes in its logits before a token is taken: penalties, bias, and no end before `min_tokens`.

The rows that ask for something are changed together: one operation a kind of change, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Seq

import numpy as np
import torch

from jupyter_dsserve.engine.sequence import Sequence

# Of a row: its number, the ids of the tokens, and a value for each (or one for all).
_Change = tuple[int, np.ndarray, "np.ndarray | float"]
_Rows = list[tuple[int, Sequence]]


def adjusted(logits: torch.Tensor, sequences: Seq[Sequence], eos_ids: Collection[int]) -> torch.Tensor:
    """``logits``, ``[rows, vocabulary]``, as their rows' sequences want them; the same tensor if none wants a change.

    In this order: repetition penalty (Keskar et al. 2019, over prompt and answer), presence and frequency penalty (as
    OpenAI defines them, over the answer), bias, and -inf for all that would end an answer too early.
    """
    rows = [(row, sequence) for row, sequence in enumerate(sequences) if _is_changed(sequence)]
    if not rows:
        return logits
    logits = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    flat = logits.view(-1)
    if found := _places(logits, _repetitions(rows)):
        places, penalty = found
        scores = flat[places]
        flat[places] = torch.where(scores > 0, scores / penalty, scores * penalty)
    for changes in (_penalties(rows), _biases(rows), _early_ends(rows, eos_ids)):
        if found := _places(logits, changes):
            flat.index_add_(0, *found)
    return logits


def _is_changed(sequence: Sequence) -> bool:
    s = sequence.sampling
    is_penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    return is_penalised or bool(s.logit_bias) or sequence.num_output < s.min_tokens


def _places(logits: torch.Tensor, changes: Iterable[_Change]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Where in the flat logits, and the value there, for all rows; None if there is no change."""
    found = list(changes)
    if not found:
        return None
    places = np.concatenate([row * logits.shape[-1] + ids for row, ids, _ in found])
    values = np.concatenate([np.broadcast_to(np.asarray(value, np.float32), ids.shape) for _, ids, value in found])
    return torch.from_numpy(places).to(logits.device), torch.from_numpy(values).to(logits.device)


def _repetitions(rows: _Rows) -> Iterator[_Change]:
    for row, sequence in rows:
        if sequence.sampling.repetition_penalty != 1:
            yield row, sequence.seen[0], sequence.sampling.repetition_penalty


def _penalties(rows: _Rows) -> Iterator[_Change]:
    for row, sequence in rows:
        s = sequence.sampling
        if s.presence_penalty or s.frequency_penalty:
            ids, counts = sequence.said
            yield row, ids, -(s.presence_penalty + s.frequency_penalty * counts)


def _biases(rows: _Rows) -> Iterator[_Change]:
    for row, sequence in rows:
        if bias := sequence.sampling.logit_bias:
            yield row, np.array([token for token, _ in bias]), np.array([value for _, value in bias])


def _early_ends(rows: _Rows, eos_ids: Collection[int]) -> Iterator[_Change]:
    for row, sequence in rows:
        s = sequence.sampling
        if sequence.num_output < s.min_tokens:
            ends = {*s.stop_token_ids} if s.ignore_eos else {*s.stop_token_ids, *eos_ids}
            yield row, np.array(sorted(ends), np.int64), -np.inf
