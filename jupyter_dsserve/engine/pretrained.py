"""A transformers config and model, from a directory, a hub name or a GGUF file: never by code that comes with them, and
with what is wrong with them in our words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from jupyter_dsserve.engine.checkpoint import checkpoint_at, refuse_unknown_quantization, weight_bytes
from jupyter_dsserve.protocol.errors import InvalidRequest

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def config_at(path: str) -> Any:
    """The config of a model. Raises `InvalidRequest` if there is none, or one whose weights would be taken wrongly."""
    try:
        config = AutoConfig.from_pretrained(**checkpoint_at(path), trust_remote_code=False)
    except _FAULTS as fault:
        raise InvalidRequest(f"model {path} has no config that loads: {fault}", param="model") from fault
    refuse_unknown_quantization(config, path)
    return config


def model_at(
    kind: Any, path: str, config: Any, dtype: torch.dtype, progress: Callable[[float], None], may_lack: str = ""
) -> Any:
    """The model of one of transformers' ``AutoModel…`` classes in memory-mapped weights, every one of them from the
    checkpoint but for those whose names begin with ``may_lack``."""
    try:
        with _reported(progress, path):
            model, found = kind.from_pretrained(
                **checkpoint_at(path),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except _FAULTS as fault:
        raise InvalidRequest(f"model {path} does not load: {fault}", param="model") from fault
    missing = sorted(name for name in found["missing_keys"] if not (may_lack and name.startswith(may_lack)))
    if missing:
        raise InvalidRequest(
            f"model {path} lacks {len(missing)} weights, {missing[0]} among them, and random ones would stand "
            "in: save the whole model again",
            param="model",
        )
    # It would refuse DeepSpeed's cast, which leaves whole numbers alone and after which `wrapped` puts the rest back.
    model.is_quantized = False
    return model.eval()


def refuse_directory(model_path: str) -> None:
    """Raises `InvalidRequest` for a directory that holds no model of safetensors; hub names pass."""
    path = Path(model_path)
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise InvalidRequest(
            f"model {path} has no config.json: give a directory that save_pretrained wrote", param="model"
        )
    if not any(path.glob("*.safetensors")):
        raise InvalidRequest(
            f"model {path} has no *.safetensors; weights in pickle files can run code when loaded: "
            "save the model again with save_pretrained",
            param="model",
        )


@contextmanager
def _reported(progress: Callable[[float], None], path: str) -> Iterator[None]:
    """Inside, ``progress`` hears the share of the weights at ``path`` that is loaded, in place of transformers'
    progress bar: of their bytes, or of their number where no file says how large they are."""

    def hook(make_bar: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") == "Loading weights":
            return counted(args[0])
        return make_bar(*args, **kwargs)

    def counted(weights: Iterable[Any]) -> Iterator[Any]:
        todo, sizes = list(weights), weight_bytes(path)
        # A weight of the model may be made of several of the file, such as the experts of a layer.
        parts = [getattr(made, "layer_targets", {}).values() for _, made in todo]
        steps = [sum(sizes.get(name, 0) for names in part for name in names) for part in parts]
        if not any(steps):
            steps = [1] * len(todo)
        for done, weight in zip(accumulate(steps, initial=0), todo, strict=False):
            progress(done / sum(steps))
            yield weight

    transformers_logging.disable_progress_bar()
    before = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def dtype_for(name: str, config: Any, device: torch.device) -> torch.dtype:
    """The numbers to compute with. ``auto`` is the checkpoint's own, where the device is not slow at it."""
    if name == "fp16" and device.type == "cpu":
        raise InvalidRequest(
            "dtype is fp16, which DeepSpeed does not compute on a CPU: use fp32 or bf16", param="dtype"
        )
    if name != "auto":
        return _DTYPES[name]
    own: torch.dtype = config.dtype or torch.float32
    # Measured at 16 sequences without bf16 instructions: the demo model gives half as many tokens in bf16 as in fp32,
    # one of 16 M parameters less than a third.
    if device.type == "cpu" and not (own == torch.bfloat16 and _has_fast_bf16()):
        return torch.float32
    return own


def _has_fast_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
