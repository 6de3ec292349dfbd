"""One attention function that makes any transformers model continuously batched.

All rows (tokens) of a step go through the model as one sequence ``[1, T]``. Linear layers and norms do not care whose
row is whose; only attention does. Registered with transformers under our name, `ragged_attention` writes the rows' K
and V into the cache and lets each row see its own sequence's history there. The idea of one ragged batch is from Orca
(Yu et al. 2022) and DeepSpeed-FastGen (Holmes et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from jupyter_dsserve.engine.decode import Decoding, can_decode
from jupyter_dsserve.engine.kv_cache import KVCache
from jupyter_dsserve.engine.paged_cache import PagedCache

NAME = "dsserve_ragged"

# What one more call costs, as the number of K's elements that a call reads in the same time. CPU, measured: 10 µs a
# call against 0.13 µs a position of 2 heads of 64. CUDA, estimated: 30 µs of launches at 2 TB/s, in half precision.
_CALL_COST = {"cpu": 10_000, "cuda": 30_000_000}
# K's elements that are copied together for one call at most (V has as many): 256 MB in half precision.
_MOST_COPIED = 1 << 27


class NotRagged(Exception):
    """The model does something that the ragged runner does not compute; the message says what. Another runner may."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One sequence's rows in a step, from row ``first`` on: tokens at positions from ``start`` on."""

    slot: int
    start: int
    first: int
    num_rows: int

    @property
    def end(self) -> int:
        return self.start + self.num_rows

    def keys_seen(self, window: int | None) -> tuple[int, int]:
        """The positions that any of the rows attends to, as a half-open range."""
        return max(0, self.start + 1 - window) if window else 0, self.end


@dataclass(frozen=True, slots=True)
class Group:
    """Decoding sequences that follow one another in the step, or one chunk of a prompt: what attends in one call.

    ``where`` and ``keys`` are what the cache's ``seen`` gave. ``mask`` is added to the scores,
    ``[sequences, 1, queries, keys]``; None hides nothing.
    """

    rows: slice
    where: slice | torch.Tensor
    keys: slice
    mask: torch.Tensor | None

    def of(self, kept: torch.Tensor) -> torch.Tensor:
        """The group's part of a layer's K or V, ``[sequences, kv_heads, keys, head_dim]``."""
        if isinstance(self.where, torch.Tensor) and self.where.dim() == 2:  # blocks
            return kept[:, self.where].flatten(2, 3)[:, :, self.keys].transpose(0, 1)
        return kept[:, self.where, self.keys].transpose(0, 1)


class PackedStep:
    """What every layer of one forward pass needs to know, made once: where rows go, and who attends to what.

    Groups depend on the window, and a model has one or two of those: they are made when a layer first asks.
    """

    def __init__(self, cache: KVCache | PagedCache, places: torch.Tensor, rows: list[Rows]) -> None:
        self.cache = cache
        self.places = places
        self._rows = rows
        self._groups: dict[tuple[int | None, int, int, bool], list[Group]] = {}
        self._decoding: Decoding | None = None

    @property
    def decoding(self) -> Decoding | None:
        """The sequences with one row each that come first; None if none do."""
        if self._decoding is None and self._num_single:
            single = self._rows[: self._num_single]
            self._decoding = Decoding([row.slot for row in single], [row.start for row in single])
        return self._decoding

    @cached_property
    def _num_single(self) -> int:
        return sum(1 for _ in takewhile(lambda row: row.num_rows == 1, self._rows))

    def groups(
        self, window: int | None, query: torch.Tensor, keys: torch.Tensor, *, with_decoding: bool
    ) -> list[Group]:
        """The groups for a layer with this window whose query is ``[1, heads, T, head_dim]``; of all rows, or of those
        that are not `decoding`."""
        num_heads, num_kv_heads = query.shape[1], keys.shape[0]
        shape = window, num_heads, num_kv_heads, with_decoding
        if shape not in self._groups:
            position = num_kv_heads * keys.shape[3]
            most = 0 if query.device.type == "cpu" else _MOST_COPIED // position
            rows = self._rows if with_decoding else self._rows[self._num_single :]
            runs = split(rows, window, _CALL_COST[query.device.type] // position, most)
            self._groups[shape] = [_group(self.cache, run, window, num_heads // num_kv_heads, query) for run in runs]
        return self._groups[shape]


_step: ContextVar[PackedStep] = ContextVar("dsserve_step")


@contextmanager
def attending(step: PackedStep) -> Iterator[None]:
    """Forward passes inside attend as ``step`` says.

    A context variable and not a keyword of the model's call, because only some models hand unknown keywords down to
    their attention; not an attribute of a module, because the function is registered once for all models of a process.
    """
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Inside, ``model`` attends by transformers' own code, without our cache."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def split(rows: list[Rows], window: int | None, call_cost: int, most_copied: int) -> list[list[Rows]]:
    """Cut a step's rows into runs that attend in one call each.

    In a call everybody pays for the longest history in it, so decoding sequences join only where that costs less than
    ``call_cost`` positions, the price of another call. Up to ``most_copied`` positions may be copied together for a
    call; with 0 their slots must follow one another: copying K and V costs three times what reading them does.
    """
    runs: list[list[Rows]] = []
    spent = low = high = 0
    for row in rows:
        seen = row.keys_seen(window)
        if runs and row.num_rows == runs[-1][-1].num_rows == 1 and (most_copied or row.slot == runs[-1][-1].slot + 1):
            joint_low, joint_high = min(low, seen[0]), max(high, seen[1])
            joint = (len(runs[-1]) + 1) * (joint_high - joint_low)
            if joint <= min(spent + call_cost + seen[1] - seen[0], most_copied or joint):
                runs[-1].append(row)
                spent, low, high = joint, joint_low, joint_high
                continue
        runs.append([row])
        low, high = seen
        spent = high - low
    return runs


def _group(
    cache: KVCache | PagedCache, run: list[Rows], window: int | None, group_size: int, query: torch.Tensor
) -> Group:
    first, num_rows = run[0], run[0].num_rows
    ranges = [row.keys_seen(window) for row in run]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    where, keys = cache.seen([row.slot for row in run], low, high)
    return Group(
        rows=slice(first.first, first.first + len(run) * num_rows),
        where=where,
        keys=keys,
        mask=None if len(run) == num_rows == 1 else _mask(run, window, low, high, group_size, query),
    )


def _mask(
    run: list[Rows], window: int | None, low: int, high: int, group_size: int, query: torch.Tensor
) -> torch.Tensor:
    """Zero where a query sees a key and -inf elsewhere, ``[sequences, 1, group_size × rows (or 1), keys]``."""
    starts = torch.tensor([[row.start] for row in run], device=query.device)
    asking = (starts + torch.arange(run[0].num_rows, device=query.device))[:, None, :, None]
    key = torch.arange(low, high, device=query.device)
    hidden = key > asking
    if window:
        hidden |= key <= asking - window
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
    return mask if run[0].num_rows == 1 else mask.repeat(1, 1, group_size, 1)


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: int | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within a `PackedStep`: takes ``[1, heads, T, head_dim]`` and gives ``[1, T, heads, head_dim]``.

    The signature is transformers'. ``attention_mask`` is the window that `ragged_mask` gave. ``softcap`` bounds the
    scores (Gemma 2), ``s_aux`` holds one attention sink a head (GPT-OSS). Whatever else a model asks for would change
    the numbers, so it is refused.
    """
    _refuse_unknown(module, attention_mask, sliding_window, dropout, is_causal, others)
    step = _step.get()
    keys, values = step.cache.write(module.layer_idx, step.places, key[0], value[0])  # type: ignore[arg-type]
    # Query heads that share a K head stand as so many queries of it: [T, kv_heads, queries, head_dim]. So neither K
    # nor V is repeated.
    queries = query[0].unflatten(0, (keys.shape[0], -1)).permute(2, 0, 1, 3)
    answer = query.new_empty(query.shape[2], query.shape[1], values.shape[3])
    decoding = step.decoding if can_decode(query, keys, values) else None
    if decoding:
        decoding.attend(query, keys, values, answer, attention_mask, scaling, softcap, s_aux)
    groups = step.groups(attention_mask, query, keys, with_decoding=decoding is None)
    grouped = answer.unflatten(1, (keys.shape[0], -1))
    for group in groups:
        grouped[group.rows] = _attend_group(group, queries, keys, values, scaling, softcap, s_aux)
    return answer[None], None


def _attend_group(
    group: Group,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """What the rows of ``group`` see, ``[rows, kv_heads, queries, head_dim]`` like their ``queries``."""
    q, k, v = queries[group.rows], group.of(keys), group.of(values)
    num_rows = len(q) // len(k)  # of each sequence
    if num_rows > 1:
        q = q.permute(1, 2, 0, 3).flatten(1, 2)[None]
    if softcap or sinks is not None:
        answer = _attend(q, k, v, group.mask, scaling, softcap, sinks)
    else:
        answer = scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scaling)
    return answer if num_rows == 1 else answer[0].unflatten(1, (-1, num_rows)).permute(2, 0, 1, 3)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`scaled_dot_product_attention` written out, for the two things it does not know.

    A soft cap bends the scores before the mask; a sink is one more score, of a key without a value.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scaling or query.shape[-1] ** -0.5)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)
    sinks = sinks.view(key.shape[1], -1).repeat_interleave(query.shape[2] // (len(sinks) // key.shape[1]), 1)
    scores = torch.cat([scores, sinks.expand(query.shape[0], -1, -1)[..., None].to(scores.dtype)], -1)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32)[..., :-1].to(value.dtype), value)


def _refuse_unknown(
    module: torch.nn.Module,
    mask: object,
    window: int | None,
    dropout: float,
    is_causal: bool | None,
    others: dict[str, Any],
) -> None:
    """Raise for an attention we do not compute. What is None or False asks for nothing."""
    unknown = [
        name for name, given in others.items() if name != "position_ids" and given is not None and given is not False
    ]
    if unknown:
        raise _not_ours(module, f"brings the unknown argument {unknown[0]}")
    if is_causal is False:
        raise _not_ours(module, "is not causal")
    if dropout:
        raise _not_ours(module, f"has a dropout of {dropout}")
    if not (mask is None or isinstance(mask, int)):
        raise _not_ours(module, "brings a mask of its own")
    # Where both are given, transformers' eager attention goes by the mask and its flash attention by the keyword.
    if window is not None and window != mask:
        raise _not_ours(module, f"names a window of {window}, but its mask has {mask or 'none'}")


def _not_ours(module: torch.nn.Module, what: str) -> NotRagged:
    return NotRagged(f"{type(module).__name__} {what}")


def ragged_mask(
    local_size: int | None = None, use_vmap: bool = False, allow_is_causal_skip: bool = True, **others: Any
) -> int | None:
    """In place of a mask, the window of a layer (None: all of the past), which then arrives at the attention.

    Some models (Qwen2-MoE, PhiMoE) name their window nowhere else. transformers passes ``use_vmap``, or forbids the
    causal shortcut, for masks that are more than causal.
    """
    if use_vmap or not allow_is_causal_skip or "allow_is_bidirectional_skip" in others:
        raise NotRagged("the model's attention mask is more than causal with a window")
    return local_size


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, ragged_mask)
