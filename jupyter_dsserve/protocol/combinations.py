"""What does not go together in one version, by name: checked before anything is started.

The table in docs/architecture.md says the same; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec

# The field that asks for something special, and whether a spec does so.
_ASKED: Mapping[str, tuple[str, Callable[[WorkerSpec], bool]]] = {
    "toy": ("runner", lambda spec: spec.runner == "toy"),
    "padded": ("runner", lambda spec: spec.runner == "padded"),
    "other tasks": ("task", lambda spec: spec.task != "generate"),
    "tp": ("tp", lambda spec: spec.tp > 1),
    "zero": ("zero", lambda spec: bool(spec.zero)),
    "quantize": ("quantize", lambda spec: bool(spec.quantize)),
    "min_agreement": ("min_agreement", lambda spec: spec.min_agreement is not None),
}

CANNOT_BE: Mapping[tuple[str, str], str] = {
    ("toy", "tp"): "a toy has no weights to split",
    ("toy", "zero"): "a toy has no weights to offload",
    ("toy", "quantize"): "a toy has no weights",
    ("toy", "min_agreement"): "a toy answers by a formula",
    ("padded", "tp"): "only the ragged runner is split",
    ("padded", "zero"): "only the ragged runner is offloaded",
    ("padded", "quantize"): "only the ragged runner is quantised",
    ("padded", "min_agreement"): "only the ragged runner is compared so",
    ("other tasks", "tp"): "only models that generate text are split",
    ("other tasks", "zero"): "only models that generate text are offloaded",
    ("other tasks", "quantize"): "only models that generate text are quantised",
    ("other tasks", "min_agreement"): "only models that generate text are compared",
    ("tp", "zero"): "AutoTP and ZeRO both take every layer apart",
    ("tp", "quantize"): "AutoTP does not split quantised layers",
    ("zero", "quantize"): "ZeRO brings weights as they are in the checkpoint",
}

# By model_type: those whose answers over several ranks were seen to be those of one. Others are refused, because AutoTP
# fails on some without a good word (it divides by zero on Phi-3, and forgets GPT-OSS's sinks) and hangs on others.
SPLITS = ("gemma2", "gpt_neox", "llama", "mistral", "mixtral", "opt", "qwen2", "qwen2_moe", "qwen3")


def check_combination(spec: WorkerSpec) -> None:
    """Raises `InvalidRequest` for two settings that cannot be in one version, naming both."""
    for (one, other), why in CANNOT_BE.items():
        if all(_ASKED[name][1](spec) for name in (one, other)):
            fields = [_ASKED[name][0] for name in (one, other)]
            shown = " and ".join(f"{field} {getattr(spec, field)!r}" for field in fields)
            raise InvalidRequest(f"{shown} do not go together: {why}; leave one of them out", param=fields[1])
    if spec.nvme_dir and spec.zero != "nvme":
        raise InvalidRequest(
            f"nvme_dir is {spec.nvme_dir!r}, but zero is {spec.zero!r}: it goes with zero 'nvme' only", param="nvme_dir"
        )


def check_split(model: str, config: Mapping[str, Any], num_ranks: int) -> None:
    """Raises `InvalidRequest` if the model of this ``config`` (as in config.json) cannot be split over the ranks."""
    kind = config.get("model_type")
    if num_ranks == 1:
        return
    if kind not in SPLITS:
        raise InvalidRequest(
            f"tp is {num_ranks}, but model {model!r} is of type {kind}, which DeepSpeed's AutoTP is not known to split "
            f"right: use tp=1, or a model of type {', '.join(SPLITS)}",
            param="tp",
        )
    num_heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or num_ranks
    if num_heads % num_ranks:
        raise InvalidRequest(
            f"tp is {num_ranks}, but model {model!r} has {num_heads} heads of keys and values, which do not divide by "
            "that: use a tp that divides them",
            param="tp",
        )
