"""From a directory or hub name to a runner: safetensors into a transformers model, wrapped by DeepSpeed.

Set ``OMP_WAIT_POLICY=passive`` in the environment of a process before it imports this (and so torch): OpenMP threads
that spin between steps take the cores from the notebook's own work.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jupyter_dsserve.engine import attention
from jupyter_dsserve.engine.attention import NotRagged
from jupyter_dsserve.engine.checkpoint import base_path, merged, tokenizer_path
from jupyter_dsserve.engine.device import named_device
from jupyter_dsserve.engine.equivalence import Least, least_agreement, reference
from jupyter_dsserve.engine.filed import filed_dtype, linears_filed
from jupyter_dsserve.engine.group import FollowerLaunch, RankGroup
from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
from jupyter_dsserve.engine.host import num_cores
from jupyter_dsserve.engine.linear import can_pack, pack_linears
from jupyter_dsserve.engine.memory import available_bytes
from jupyter_dsserve.engine.norm import fuse_norms
from jupyter_dsserve.engine.padded import PaddedRunner
from jupyter_dsserve.engine.pretrained import config_at, dtype_for, model_at, refuse_directory
from jupyter_dsserve.engine.quantize import quantise_linears
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.ranks import follow, lead, least_of_ranks
from jupyter_dsserve.engine.runner import Runner
from jupyter_dsserve.engine.zero import offloaded, offloaded_dtype
from jupyter_dsserve.protocol.combinations import check_combination, check_split
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec

with redirect_stdout(sys.__stderr__):  # its logger keeps the stdout it finds, and stdout is not for logs
    import deepspeed

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]  # stage, and the share of the load that is done, 0 to 1

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_DEFAULT_CONTEXT = 2048
_LEAST_CONTEXT = 8


def load_checked(spec: WorkerSpec, model_path: str, progress: Progress, seat: RankGroup | None = None) -> Runner:
    """Load what ``spec`` says from ``model_path`` and check it; ``progress`` hears of every stage and of every weight.

    The runner ``auto`` is ``ragged``, and ``padded`` for a model that ragged refuses. ``seat`` makes this process the
    first rank of a tensor-parallel group. Raises `InvalidRequest` with the reason if no runner serves the model.
    """
    why = ""
    if spec.runner != "padded":
        try:
            return _checked(load_runner(spec, model_path, progress, seat), progress)
        except NotRagged as refusal:
            why = str(refusal)
        _refuse_padded(spec, why)
        log.warning("%s: the padded runner serves it, more slowly: %s", spec.model, why)
    return _checked(load_padded(replace(spec, runner="padded"), model_path, progress, why), progress)


def _refuse_padded(spec: WorkerSpec, why: str) -> None:
    """Raises `InvalidRequest` if the padded runner must not stand in for the ragged one, which refused with ``why``."""
    try:
        check_combination(replace(spec, runner="padded"))
        instead = "leave the runner to auto" if spec.runner == "ragged" else ""
    except InvalidRequest as refusal:
        instead = refusal.message
    if instead:
        raise InvalidRequest(f"model {spec.model} cannot have the ragged runner: {why}: {instead}", param="runner")


def _checked(runner: RaggedRunner | PaddedRunner, progress: Progress) -> Runner:
    progress("warming", 1.0)
    runner.check()
    return runner


def load_runner(
    spec: WorkerSpec, model_path: str, progress: Progress, seat: RankGroup | FollowerLaunch | None = None
) -> RaggedRunner:
    """The ragged runner, loaded and not checked. ``seat`` is this process's place among the ranks of a group.

    Raises `NotRagged` where loading already shows that the model is not for this runner.
    """
    device, config, context, dtype = _prepared(spec, model_path, progress, seat.rank if seat else 0)
    _refuse_layers(config)
    if isinstance(seat, RankGroup):
        progress("ranks", 0.02)
        lead(seat, device)
    elif seat:
        follow(seat, device)
    is_own = base_path(model_path) == model_path  # an adapter is merged into weights as they will be
    with linears_filed(filed_dtype(model_path, config, dtype) if spec.quantize and is_own else None):
        model = _model(model_path, config, dtype, lambda done: progress("weights", 0.05 + 0.8 * done))
    _attend_ragged(model)
    tokenizer = _tokenizer(model_path, model, progress)
    least = None
    if (share := least_agreement(spec)) is not None and not isinstance(seat, FollowerLaunch):
        progress("comparing", 0.87)
        least = Least(share, reference(model, tokenizer, context))
    engine = _under_deepspeed(spec, model, device, dtype, progress)
    # So that a second version still fits beside it.
    kv_bytes = least_of_ranks(spec.kv_bytes // spec.tp or available_bytes(device) // (2 * _num_sharing(spec, device)))
    progress("loaded", 1.0)
    return RaggedRunner(
        engine,
        tokenizer,
        name=spec.model,
        max_sequences=spec.max_sequences,
        max_step_tokens=spec.max_step_tokens,
        max_context=context,
        kv_bytes=kv_bytes,
        group=seat if isinstance(seat, RankGroup) else None,
        least=least,
    )


def _under_deepspeed(spec: WorkerSpec, model: Any, device: torch.device, dtype: torch.dtype, progress: Progress) -> Any:
    """The engine of DeepSpeed's that the version asks for, around ``model``."""
    progress("deepspeed", 0.9)
    if spec.zero:
        return offloaded(model, spec.zero, spec.nvme_dir, device)
    if spec.quantize:
        quantise_linears(model, spec.quantize, dtype)
        return wrapped(model.to(device), dtype)
    # AutoTP takes each rank's part from the mapped weights, so that a device never holds more than its part.
    engine = wrapped(model if spec.tp > 1 else model.to(device), dtype, spec.tp)
    fuse_norms(engine.module)
    if can_pack(engine.module):
        progress("packing", 0.95)
        pack_linears(engine.module)
    return engine


def _num_sharing(spec: WorkerSpec, device: torch.device) -> int:
    """How many ranks take their memory from this device."""
    return spec.tp if device.type == "cpu" else 1


def load_padded(spec: WorkerSpec, model_path: str, progress: Progress, why: str = "") -> PaddedRunner:
    """The padded runner, loaded and not checked. ``why`` says what kept the model from the ragged one."""
    device, config, context, dtype = _prepared(spec, model_path, progress)
    model = _model(model_path, config, dtype, lambda done: progress("weights", 0.05 + 0.8 * done))
    tokenizer = _tokenizer(model_path, model, progress)
    progress("deepspeed", 0.9)
    engine = wrapped(model.to(device), dtype)
    progress("loaded", 1.0)
    return PaddedRunner(
        engine,
        tokenizer,
        name=spec.model,
        why=why,
        max_sequences=spec.max_sequences,
        max_step_tokens=spec.max_step_tokens,
        max_context=context,
    )


def _prepared(
    spec: WorkerSpec, model_path: str, progress: Progress, rank: int = 0
) -> tuple[torch.device, Any, int, torch.dtype]:
    """What is settled before a weight is read: device, config, tokens of the longest sequence, and dtype."""
    torch.set_num_threads(spec.num_threads or max(1, (num_cores() - 1) // spec.tp))
    progress("config", 0.0)
    device = named_device(spec.device, spec.tp, rank)
    config = _config(model_path)
    check_combination(spec)
    check_split(spec.model, config.to_dict(), spec.tp)
    dtype = offloaded_dtype(spec, config, device) if spec.zero else dtype_for(spec.dtype, config, device)
    return device, config, _context(spec, config), dtype


def _tokenizer(model_path: str, model: Any, progress: Progress) -> HFTokenizer:
    progress("tokenizer", 0.85)
    vocab_size = model.get_input_embeddings().num_embeddings
    return HFTokenizer.load(tokenizer_path(model_path), _eos_ids(model), vocab_size)


def _config(model_path: str) -> Any:
    """The model's config, if it is one of a causal language model."""
    model_path = base_path(model_path)
    refuse_directory(model_path)
    config = config_at(model_path)
    causal = _causal_architectures(config.model_type)
    named = config.architectures or sorted(causal)
    if not causal.intersection(named):
        raise InvalidRequest(
            f"model {model_path} is a {named[0] if named else config.model_type}, not a causal language model: "
            "choose one whose config names a …ForCausalLM architecture",
            param="model",
        )
    return config


def _refuse_layers(config: Any) -> None:
    if strange := set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES:
        name = (config.architectures or [config.model_type])[0]
        raise NotRagged(f"{name} has layers of type {', '.join(sorted(strange))}")


def _attend_ragged(model: Any) -> None:
    """Make the attention of ``model`` ours."""
    model.set_attn_implementation(attention.NAME)
    if model.config._attn_implementation != attention.NAME:
        raise NotRagged(f"{type(model).__name__} does not go through transformers' AttentionInterface")


def _causal_architectures(model_type: str) -> set[str]:
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ())
    return {names} if isinstance(names, str) else set(names)


def _context(spec: WorkerSpec, config: Any) -> int:
    """Tokens of the longest sequence: the model's own limit, or less where the version says so."""
    if 0 < spec.max_context < _LEAST_CONTEXT:
        raise InvalidRequest(
            f"max_context is {spec.max_context}: use {_LEAST_CONTEXT} tokens or more", param="max_context"
        )
    # A state-space model has no limit, nor has one that only counts distances: then the version's counts.
    own = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    own = own or spec.max_context or _DEFAULT_CONTEXT
    if short := _short_rope(config):
        # Beyond its original length LongRoPE turns to other frequencies for the whole row, by the longest sequence in
        # it: a long neighbour would change an answer. Dynamic RoPE does so only beyond max_position_embeddings, where
        # we never go.
        if spec.max_context > short:
            raise InvalidRequest(
                f"max_context is {spec.max_context}, but with LongRoPE sequences over {short} tokens change the "
                f"answers of others in the batch: use {short} or less",
                param="max_context",
            )
        own = min(own, short)
    return min(own, spec.max_context or own)


def _short_rope(config: Any) -> int:
    """The length up to which a LongRoPE model keeps its short frequencies; 0 for any other model."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in lengths if length), default=0)


def _model(model_path: str, config: Any, dtype: torch.dtype, progress: Callable[[float], None]) -> Any:
    """The model, with the adapter in its weights if it is one."""
    return merged(model_at(AutoModelForCausalLM, base_path(model_path), config, dtype, progress), model_path).eval()


def wrapped(model: torch.nn.Module, dtype: torch.dtype, num_ranks: int = 1) -> Any:
    """DeepSpeed's inference engine around ``model``.

    It casts the whole module, what transformers keeps in fp32 (rotary frequencies, some routers) included; that is put
    back, as positions beyond a few hundred would blur in bf16. ``keep_module_on_host`` says not to move it: it already
    lies on its device, unless each of several ranks is to take its part of it there.
    """
    exact = {
        name: tensor.data
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point() and tensor.dtype != dtype
    }
    with redirect_stdout(sys.stderr):
        engine = deepspeed.init_inference(
            model,
            dtype=dtype,
            tensor_parallel={"tp_size": num_ranks},
            replace_with_kernel_inject=False,
            keep_module_on_host=num_ranks == 1,
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in exact and tensor.shape == exact[name].shape:  # else it was split
            tensor.data = exact[name].to(tensor.device)
    return engine


def _eos_ids(model: Any) -> frozenset[int]:
    """End tokens as generation_config names them: none, one or several."""
    ids = model.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])
