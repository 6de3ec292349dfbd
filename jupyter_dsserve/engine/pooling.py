"""From token vectors to one vector a text, as the model's own directory says.

The files are those of sentence-transformers: ``modules.json`` names the stages after the transformer, each with a
folder for its settings. A directory without it gets mean pooling, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import cached_file

from jupyter_dsserve.protocol.errors import InvalidRequest

_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# As older files name them, one switch each.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """``modes`` side by side make the vector, which goes through ``stages``. ``max_length`` in tokens, 0: the files do
    not say. ``prompt`` stands before every text. ``note`` says where all this comes from."""

    modes: tuple[str, ...] = ("mean",)
    stages: tuple[torch.nn.Module, ...] = ()
    max_length: int = 0
    prompt: str = ""
    is_lower_case: bool = False
    note: str = "mean pooling, not normalised: the model has no modules.json that says otherwise"

    @staticmethod
    def read(model_path: str) -> Pooling:
        """What the files of a directory or hub name say. Raises `InvalidRequest` for a stage we do not compute."""
        named = named_stages(model_path)
        if named is None:
            return Pooling()
        modes: tuple[str, ...] = ()
        stages: list[torch.nn.Module] = []
        for kind, folder in named[1:]:
            if kind == "Pooling" and not modes:
                modes = _modes(model_path, str(folder / "config.json"))
            elif kind in _STAGES and modes:
                stages.append(_STAGES[kind](model_path, folder))
            else:
                raise _refused(model_path, f"a {kind} stage after the transformer, which is not computed here")
        if not modes:
            raise _refused(model_path, "no Pooling stage in its modules.json, so that it gives no vector a text")
        sizes = _json(model_path, "sentence_bert_config.json") or {}
        said = [f"{' + '.join(modes)} pooling", *(str(stage) for stage in stages)]
        return Pooling(
            modes,
            tuple(stages),
            int(sizes.get("max_seq_length") or 0),
            _prompt(model_path),
            bool(sizes.get("do_lower_case")),
            f"{', '.join(said)}, as the model's files say",
        )

    def size(self, hidden_size: int) -> int:
        """Of a vector, for a model of ``hidden_size``."""
        widths = [stage.width for stage in self.stages if isinstance(stage, Dense)]
        return widths[-1] if widths else hidden_size * len(self.modes)

    def to(self, device: torch.device) -> Pooling:
        return replace(self, stages=tuple(stage.to(device) for stage in self.stages))

    def written(self, text: str) -> str:
        """``text`` as the model wants it."""
        return (self.prompt + text).lower() if self.is_lower_case else self.prompt + text

    def __call__(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """One vector for each text, ``[texts, modes × size]`` in fp32, of ``hidden`` states ``[texts, tokens, size]``;
        a text fills the first ``lengths`` of its row."""
        hidden = hidden.float()
        places = torch.arange(hidden.shape[1], device=hidden.device)
        mask = (places < lengths[:, None]).unsqueeze(-1)
        vectors = torch.cat([_pooled(mode, hidden, mask, lengths) for mode in self.modes], dim=-1)
        for stage in self.stages:
            vectors = stage(vectors)
        return vectors


def named_stages(model_path: str) -> list[tuple[str, PurePosixPath]] | None:
    """The kind and the folder of each stage that ``modules.json`` names, the transformer first; None without the file.

    Raises `InvalidRequest` for a folder outside the model's own."""
    modules = _json(model_path, "modules.json")
    if modules is None:
        return None
    named = [(str(module["type"]).rpartition(".")[2], PurePosixPath(module["path"])) for module in modules]
    for kind, folder in named:
        if folder.is_absolute() or ".." in folder.parts:
            raise _refused(model_path, f"a {kind} stage whose path in modules.json, {folder}, leads out of the model")
    return named


class Normalize(torch.nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors, dim=-1)

    def __str__(self) -> str:
        return "normalised"


class Dense(torch.nn.Module):
    """A linear layer in fp32 and an activation."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        super().__init__()
        self.width = weight.shape[0]
        self._weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        self._bias = None if bias is None else torch.nn.Parameter(bias.float(), requires_grad=False)
        self._activation = _ACTIVATIONS[activation]

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._activation(torch.nn.functional.linear(vectors, self._weight, self._bias))

    def __str__(self) -> str:
        return f"a dense layer to {self.width}"


def _dense(model_path: str, folder: PurePosixPath) -> Dense:
    settings = _json(model_path, str(folder / "config.json")) or {}
    activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
    is_plain = settings.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if activation not in _ACTIVATIONS or not is_plain or settings.get("use_residual"):
        raise _refused(
            model_path,
            f"a Dense stage of a kind that is not computed here; its activation may be {', '.join(_ACTIVATIONS)}",
        )
    found = _file(model_path, str(folder / "model.safetensors"))
    if found is None:
        raise _refused(model_path, f"no model.safetensors in {folder} (pickled weights can run code)")
    weights = load_file(found)
    return Dense(weights["linear.weight"], weights.get("linear.bias"), activation)


def _normalize(_model_path: str, _folder: PurePosixPath) -> Normalize:
    return Normalize()


_ACTIVATIONS = {
    "Identity": torch.nn.Identity(),
    "Tanh": torch.nn.Tanh(),
    "GELU": torch.nn.GELU(),
    "ReLU": torch.nn.ReLU(),
}
# By the class that modules.json names.
_STAGES: Mapping[str, Callable[[str, PurePosixPath], torch.nn.Module]] = {"Dense": _dense, "Normalize": _normalize}


def _pooled(mode: str, hidden: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~mask, -torch.inf).amax(dim=1)
    if mode == "weightedmean":  # later tokens count more (SGPT, Muennighoff 2022)
        weights = mask * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    divisor = lengths[:, None] if mode == "mean" else lengths[:, None].sqrt()
    return hidden.masked_fill(~mask, 0).sum(dim=1) / divisor


def _modes(model_path: str, name: str) -> tuple[str, ...]:
    settings = _json(model_path, name) or {}
    given = settings.get("pooling_mode")
    if given is None:
        given = [mode for switch, mode in _SWITCHES.items() if settings.get(switch)]
    modes = (given,) if isinstance(given, str) else tuple(given)
    if not modes or (strange := set(modes) - set(_MODES)):
        named = ", ".join(sorted(strange)) if modes else "no mode"
        raise _refused(model_path, f"{named} in {name}; computed here are {', '.join(_MODES)}")
    if settings.get("include_prompt") is False and _prompt(model_path):
        raise _refused(model_path, f"include_prompt false in {name}, and prompts are always pooled here")
    return modes


def _prompt(model_path: str) -> str:
    """What the model wants before a text whose caller names no prompt."""
    settings = _json(model_path, "config_sentence_transformers.json") or {}
    return str((settings.get("prompts") or {}).get(settings.get("default_prompt_name"), ""))


def activation_named(model_path: str, config: Any) -> str | None:
    """The class of torch that makes a cross-encoder's score of its logit, such as ``Identity``; None: no file says.

    Its name stood in three places in the course of sentence-transformers' versions.
    """
    settings = _json(model_path, "config_sentence_transformers.json") or {}
    own = getattr(config, "sentence_transformers", None) or {}
    old = getattr(config, "sbert_ce_default_activation_function", None)
    name = settings.get("activation_fn") or own.get("activation_fn") or old
    return str(name).rpartition(".")[2] if name else None


def _file(model_path: str, name: str) -> str | None:
    found: str | None = cached_file(model_path, name, _raise_exceptions_for_missing_entries=False)
    return found


def _json(model_path: str, name: str) -> Any:
    """A file of the model, None if it has no such file."""
    try:
        found = _file(model_path, name)
        if found is None:
            return None
        with open(found, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as fault:
        raise InvalidRequest(f"{name} of model {model_path} cannot be read: {fault}", param="model") from fault


def _refused(model_path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"model {model_path} has {what}: choose another model", param="model")
