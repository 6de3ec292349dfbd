"""What a load will take, computed from files' headers before anything is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.headers import TensorHeader, narrow_dtype, tensors_in
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.export import FILE, is_onnx
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.toy import ToySettings

# What a worker holds besides weights and KV cache. On a CPU: memory of its own (not mapped files) of a worker that
# serves the built-in model of 7 MB, measured with torch 2.13: Python, torch, transformers, DeepSpeed, first passes.
TORCH_BYTES = 350_000_000
# On a GPU: the CUDA context and torch's kernels. A guess after NVIDIA's usual figures; what is measured replaces it.
CUDA_BYTES = 700_000_000
ONNX_BYTES = 150_000_000
UNLIMITED = 1 << 62

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_BITS = {"int8": 8, "int4": 4}
_GROUP = 64  # quantised weights that share a scale and a least value
_OFFLOADED = (
    5  # weights of the largest size in memory at once with ZeRO: three buffers, one that computes, one to spare
)
# A quantised layer makes its weight anew at each pass. glibc keeps some of what was freed, in pieces up to this size:
# as seen with a model of 56 M parameters whose largest weight has 21 MB, in several runs.
_REMADE = 6
_KEPT_BYTES = 32 * 2**20
_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
_DEFAULT_CONTEXT = 2048
_ALIGN_TOKENS = 64  # a sequence's place in the KV cache is a multiple of so many
_KV_UNKNOWN = 64 * 2**20  # the least for a model whose config does not tell how much a token takes
# A version that gets less than this part of the KV cache it could fill waits rather than crawl; but so many tokens for
# each of its sequences are enough for any, or a model of a long context would fit on no machine.
_KV_LEAST = 8
_KV_ENOUGH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one replica, all of its ranks together: ``fixed_bytes`` (weights and what the worker itself takes), and
    a KV cache between the two; ``load_bytes`` for a while as it loads, before there is a KV cache. With ``tells_kv``
    the worker is told how much it got. ``read_bytes`` are read before it is READY (`UNLIMITED`: nobody knows how many);
    ``builds``: DeepSpeed may build an operation first. ``host_bytes`` it takes of RAM besides, on a GPU. ``note`` says
    what is not known, or where the figures come from."""

    fixed_bytes: int
    kv_least_bytes: int = 0
    kv_most_bytes: int = 0
    tells_kv: bool = False
    num_ranks: int = 1
    load_bytes: int = 0
    host_bytes: int = 0
    read_bytes: int = 0
    builds: bool = False
    note: str = ""

    @property
    def kept_bytes(self) -> int:
        """Once it is loaded, at least."""
        return self.fixed_bytes + self.kv_least_bytes

    @property
    def least_bytes(self) -> int:
        """At any moment: with less it does not load."""
        return max(self.kept_bytes, self.load_bytes)


def need_of(spec: WorkerSpec, path: str, *, on_gpu: bool, measured_bytes: int = 0) -> Need:
    """What a replica of ``spec``, whose model lies at ``path``, will take. Reads headers and configs only.

    ``measured_bytes``: what an earlier load of this version took besides its KV cache; 0 if there was none.
    """
    if spec.runner == "toy":
        return Need(ToySettings.parse(spec.model).bytes)
    try:
        need = _need(spec, path, on_gpu)
    except (OSError, ValueError, KeyError, TypeError, InvalidRequest) as fault:
        # The worker says what is wrong with it, and better.
        need = replace(_unknown(spec, on_gpu), note=f"its files cannot be read ({fault}), so its need is not known")
    if measured_bytes:
        need = replace(need, fixed_bytes=measured_bytes, note="as much as its last load took")
    return need


def _need(spec: WorkerSpec, path: str, on_gpu: bool) -> Need:
    if spec.runner == "program":
        return _program(path, TORCH_BYTES if path.endswith(".pt2") else ONNX_BYTES)
    if spec.runner == "encoder" and is_onnx(path):
        return _program(str(Path(path) / FILE), TORCH_BYTES)
    return _checkpoint(spec, path, on_gpu)


def has_fast_bf16() -> bool:
    """Whether this machine's processor computes in bf16 itself: without it the dtype ``auto`` is fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_tile)\b", flags))


def _overhead(spec: WorkerSpec, on_gpu: bool) -> int:
    return (CUDA_BYTES if on_gpu else TORCH_BYTES) * spec.tp


def _program(path: str, own: int) -> Need:
    """An exported program: its file, and what lies beside an ONNX file under its name."""
    beside = (Path(f"{path}{end}") for end in ("", ".data", "_data"))
    size = sum(file.stat().st_size for file in beside if file.is_file())
    return Need(size + own, read_bytes=size + own, note="the size of its file, and its worker")


def _checkpoint(spec: WorkerSpec, path: str, on_gpu: bool) -> Need:
    if path.endswith(".gguf"):
        return _gguf(spec, Path(path), on_gpu)
    adapter = Adapter.read(Path(path))
    base = _folder(adapter.base if adapter else path)
    if base is None:
        name = adapter.base if adapter else path
        return replace(
            _unknown(spec, on_gpu), note=f"{name} is not in the hub's cache here, so what it takes is not known yet"
        )
    config = json.loads((base / "config.json").read_text())
    tensors = tensors_in(base)
    item_bytes = _item_bytes(spec, config, on_gpu)
    need = _weights(spec, config, tensors, item_bytes, on_gpu, is_merged=adapter is not None)
    if adapter:  # its own weights go once they are merged
        need = replace(need, read_bytes=need.read_bytes + sum(t.num_bytes for t in tensors_in(adapter.path)))
    return _with_kv(need, spec, config, item_bytes)


def _folder(path: str) -> Path | None:
    """Where a checkpoint lies: a directory itself, a hub name in the hub's cache; None for one that is not there."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache  # here: few versions are named so, and it takes a while

    name, _, revision = path.partition("@")
    config = try_to_load_from_cache(name, "config.json", revision=revision or None)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether all files with weights are there: a download may have been broken off."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in set(json.loads(index.read_text())["weight_map"].values()))


def _item_bytes(spec: WorkerSpec, config: Mapping[str, Any], on_gpu: bool) -> int:
    """Bytes of a weight in the dtype it is computed in, as the worker chooses it."""
    own = _ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), 4)
    if spec.zero:
        return own
    if spec.dtype != "auto":
        return _ITEM_BYTES[spec.dtype]
    is_bf16 = str(config.get("dtype") or config.get("torch_dtype")) == "bfloat16"
    return own if on_gpu or (is_bf16 and has_fast_bf16()) else 4


def _weights(
    spec: WorkerSpec,
    config: Mapping[str, Any],
    tensors: Sequence[TensorHeader],
    item_bytes: int,
    on_gpu: bool,
    *,
    is_merged: bool,
) -> Need:
    """The weights as they lie in memory, and what the worker takes besides; no KV cache yet. ``is_merged``: an adapter
    changes them."""
    overhead = _overhead(spec, on_gpu)
    in_memory = sum(t.num_elements * item_bytes if t.is_float else t.num_bytes for t in tensors)
    in_files = sum(t.num_bytes for t in tensors)
    largest = max((t.num_elements for t in tensors), default=0) * item_bytes
    # What may change numbers is compared with the plain model first, which reads the weights once more.
    compares = spec.tp > 1 or bool(spec.zero or spec.quantize or spec.min_agreement)
    need = Need(
        overhead + in_memory,
        num_ranks=spec.tp,
        read_bytes=overhead + in_files * (2 if compares else 1),
        builds=spec.tp > 1 or bool(spec.zero),
        note="from the headers of its files",
    )
    if spec.zero:
        return replace(need, fixed_bytes=overhead + _OFFLOADED * largest, host_bytes=in_memory if on_gpu else 0)
    if spec.quantize:
        remade = largest + _REMADE * min(largest, _KEPT_BYTES)
        need = replace(need, fixed_bytes=overhead + _quantised(spec, config, tensors, item_bytes) + remade)
        # Mapped files are nobody's memory, but what is made of them is, until the last layer is quantised. Weights that
        # become wider are made one by one.
        is_filed = item_bytes == 4 and narrow_dtype(tensors) and "quantization_config" not in config
        if is_filed and not is_merged:
            return need
        sizes = [(t.num_elements * item_bytes, t.num_bytes) for t in tensors if t.is_float]
        converted = sum(size for size, in_file in sizes if is_merged or size != in_file)
        return replace(need, load_bytes=overhead + converted + remade) if converted and not on_gpu else need
    if config.get("tie_word_embeddings", False) and spec.task == "generate" and not on_gpu:
        # Its linear layer is packed, and so is there twice.
        tied = sum(t.num_elements for t in tensors if _EMBEDDING.search(t.name)) * item_bytes
        return replace(need, fixed_bytes=need.fixed_bytes + tied)
    return need


def _quantised(spec: WorkerSpec, config: Mapping[str, Any], tensors: Sequence[TensorHeader], item_bytes: int) -> int:
    """The weights with those of linear layers in fewer bits, a scale and a least value for every group."""
    is_tied = config.get("tie_word_embeddings", False)
    total = 0
    for t in tensors:
        is_linear = len(t.shape) == 2 and not _EMBEDDING.search(t.name) and not (is_tied and "lm_head" in t.name)
        if is_linear and t.is_float:
            total += t.num_elements * _BITS[spec.quantize] // 8 + 2 * item_bytes * t.num_elements // _GROUP
        else:
            total += t.num_elements * item_bytes if t.is_float else t.num_bytes
    return total


def _gguf(spec: WorkerSpec, path: Path, on_gpu: bool) -> Need:
    """Its weights are dequantised: their number counts, and not their bytes in the file."""
    size, overhead = path.stat().st_size, _overhead(spec, on_gpu)
    try:
        from gguf import GGUFReader
    except ImportError:
        return replace(
            _unknown(spec, on_gpu), note="what a GGUF file takes is known with the extra gguf only: pip install gguf"
        )
    num_elements = sum(int(t.n_elements) for t in GGUFReader(path).tensors)
    item_bytes = _ITEM_BYTES.get(spec.dtype, 4)  # auto is fp32: its config names no dtype
    kv = _kv_unknown(spec)
    return Need(
        overhead + num_elements * item_bytes,
        *kv,
        tells_kv=not spec.kv_bytes,
        read_bytes=overhead + size,
        note="from the header of its file",
    )


def _unknown(spec: WorkerSpec, on_gpu: bool) -> Need:
    """Only what any worker takes is known."""
    overhead = _overhead(spec, on_gpu)
    tells_kv = spec.task == "generate" and not spec.kv_bytes
    return Need(overhead, *_kv_unknown(spec), tells_kv=tells_kv, num_ranks=spec.tp, read_bytes=UNLIMITED)


def _kv_unknown(spec: WorkerSpec) -> tuple[int, int]:
    if spec.task != "generate":
        return 0, 0
    return (spec.kv_bytes, spec.kv_bytes) if spec.kv_bytes else (_KV_UNKNOWN, UNLIMITED)


def _with_kv(need: Need, spec: WorkerSpec, config: Mapping[str, Any], item_bytes: int) -> Need:
    """With the KV cache: just ``kv_bytes`` if the version says so, else up to what all its sequences could fill."""
    if spec.task != "generate":
        return need
    if spec.kv_bytes:
        return replace(need, kv_least_bytes=spec.kv_bytes, kv_most_bytes=spec.kv_bytes)
    token = token_bytes(config, item_bytes)
    if token is None:
        return replace(need, kv_least_bytes=_KV_UNKNOWN, kv_most_bytes=UNLIMITED, tells_kv=True)
    one = token * -(-_context(spec, config) // _ALIGN_TOKENS) * _ALIGN_TOKENS
    full = one * max(2, spec.max_sequences)  # two stand beside one another in the check
    least = min(full // _KV_LEAST, token * _KV_ENOUGH_TOKENS * spec.max_sequences)
    return replace(need, kv_least_bytes=max(one, least), kv_most_bytes=full, tells_kv=True)


def token_bytes(config: Mapping[str, Any], item_bytes: int) -> int | None:
    """K and V of one token in all layers, rather too much than too little; None where the config does not tell."""
    text = config.get("text_config") or config
    if "kv_lora_rank" in text:  # MLA: what is kept has other shapes
        return None
    layers = _first(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(text, "num_attention_heads", "n_head")
    hidden = _first(text, "hidden_size", "n_embd")
    if not (layers and heads and hidden):
        return None
    named = [v for k, v in text.items() if re.search(r"key_value_heads$|kv_heads$", k) and isinstance(v, int)]
    dims = [v for k, v in text.items() if re.search(r"head_dim$", k) and isinstance(v, int)]
    return 2 * layers * max(named, default=heads) * max([*dims, math.ceil(hidden / heads)]) * item_bytes


def _context(spec: WorkerSpec, config: Mapping[str, Any]) -> int:
    """Tokens of the longest sequence, as the worker takes it."""
    text = config.get("text_config") or config
    own = _first(text, "max_position_embeddings", "max_seq_len", "n_positions") or spec.max_context or _DEFAULT_CONTEXT
    return min(own, spec.max_context or own)


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)
