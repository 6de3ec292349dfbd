"""PEFT adapter directories: what stands in their files. Read by the gateway before a load, and by the worker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jupyter_dsserve.protocol.errors import InvalidRequest

# Those that change weights. The others put tokens of their own before every prompt, which cannot be merged.
_MERGED = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "VBLORA")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in ``path``, for the model ``base``: a directory, or a hub name."""

    path: Path
    base: str

    @staticmethod
    def read(path: Path) -> Adapter | None:
        """The adapter in a directory; None if it holds none.

        A relative base is looked for from the adapter's own directory. Raises `InvalidRequest` for an adapter that
        cannot be merged, has pickled weights, or lies beside a whole model.
        """
        if not (path / "adapter_config.json").is_file():
            return None
        try:
            settings = json.loads((path / "adapter_config.json").read_text())
            kind, base = str(settings["peft_type"]), settings["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise _refused(path, f"its adapter_config.json cannot be read ({fault!r}): save it again") from None
        if (path / "config.json").is_file():
            raise _refused(path, "it holds a whole model too: give a directory with one of the two")
        if kind not in _MERGED:
            raise _refused(path, f"one of type {kind} cannot be merged into its base: use one of {', '.join(_MERGED)}")
        if not (path / "adapter_model.safetensors").is_file():
            raise _refused(path, "it holds no adapter_model.safetensors (pickled weights can run code): save it again")
        if not base:
            raise _refused(path, "its adapter_config.json names no base_model_name_or_path: write it there")
        beside = path / Path(base).expanduser()
        return Adapter(path, str(beside.resolve()) if beside.is_dir() else base)


def _refused(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"model {str(path)!r} is a PEFT adapter, and {why}", param="model")
