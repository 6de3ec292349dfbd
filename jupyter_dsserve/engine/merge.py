"""PEFT adapters: merged into their base when they are loaded, so that they cost nothing afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.protocol.errors import InvalidRequest


def base_path(model_path: str) -> str:
    """Where the weights lie that an adapter is for; ``model_path`` itself if it is no adapter."""
    adapter = Adapter.read(Path(model_path))
    return adapter.base if adapter else model_path


def tokenizer_path(model_path: str) -> str:
    """Where the tokenizer lies: an adapter may bring its own."""
    return model_path if (Path(model_path) / "tokenizer_config.json").is_file() else base_path(model_path)


def merged(model: Any, model_path: str) -> Any:
    """``model`` with the adapter of ``model_path`` in its weights; as it is if that is no adapter.

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
        return PeftModel.from_pretrained(model, str(adapter.path)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as fault:
        raise InvalidRequest(
            f"adapter {model_path} does not fit its base {adapter.base}: {fault}", param="model"
        ) from fault
