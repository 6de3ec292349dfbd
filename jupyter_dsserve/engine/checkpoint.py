"""Where the parts of a checkpoint lie: a directory, a hub name, a GGUF file, or a PEFT adapter and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.engine.memory import return_freed
from jupyter_dsserve.headers import tensors_in
from jupyter_dsserve.protocol.errors import InvalidRequest


def checkpoint_at(path: str) -> dict[str, str]:
    """``path`` as the arguments that transformers' ``from_pretrained`` takes for it."""
    if path.endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    return {"pretrained_model_name_or_path": path}


def refuse_unknown_quantization(config: Any, model_path: str) -> None:
    """Raises `InvalidRequest` for weights in fewer bits of a kind that transformers does not know: it would only warn,
    and take the numbers without their scales.

    What it knows and cannot load here (a library or a GPU is missing) it says itself, before it reads a weight.
    """
    settings = getattr(config, "quantization_config", None) or {}
    kind = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    if not settings and (Path(model_path) / "hf_quant_config.json").is_file():
        kind = "modelopt"  # whose older versions wrote nothing into config.json
    kind = str(getattr(kind, "value", kind or ""))
    known = AUTO_QUANTIZER_MAPPING
    if kind and not any(name in known for name in (kind, f"{kind}_4bit")):
        raise InvalidRequest(
            f"model {model_path} is quantised by {kind}, which transformers does not load (it loads "
            f"{', '.join(sorted(known))}): take the model unquantised, or in one of these",
            param="model",
        )


def weight_bytes(path: str) -> dict[str, int]:
    """The bytes of each weight in the safetensors of a directory, as their headers say; empty for anything else."""
    return {tensor.name: tensor.num_bytes for tensor in tensors_in(Path(path))}


def base_path(model_path: str) -> str:
    """Where the weights lie that an adapter is for; ``model_path`` itself if it is no adapter."""
    adapter = Adapter.read(Path(model_path))
    return adapter.base if adapter else model_path


def tokenizer_path(model_path: str) -> str:
    """Where the tokenizer lies: an adapter may bring its own."""
    return model_path if (Path(model_path) / "tokenizer_config.json").is_file() else base_path(model_path)


def merged(model: Any, model_path: str) -> Any:
    """``model`` with the adapter of ``model_path`` in its weights, where it costs nothing any more; as it is if that is
    no adapter.

    Raises `InvalidRequest` if the adapter does not fit, or peft is not there.
    """
    adapter = Adapter.read(Path(model_path))
    if adapter is None:
        return model
    try:
        from peft import PeftModel
    except ImportError:
        raise InvalidRequest(
            f"model {model_path} is a PEFT adapter: pip install 'jupyter_dsserve[peft]' in the worker's environment",
            param="model",
        ) from None
    try:
        whole = PeftModel.from_pretrained(model, str(adapter.path)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as fault:
        raise InvalidRequest(
            f"adapter {model_path} does not fit its base {adapter.base}: {fault}", param="model"
        ) from fault
    return_freed()  # the weights as they were before
    return whole
