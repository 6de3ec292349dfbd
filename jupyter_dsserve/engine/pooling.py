"""From token vectors to one vector a text, as the model's own directory says.

The files are those of sentence-transformers: ``modules.json`` names the stages after the transformer, each with a
folder for its settings. A directory without it gets mean pooling, and says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
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
    """``modes`` side by side make the vector. ``max_length`` in tokens, 0: the files do not say. ``prompt`` stands
    before every text. ``note`` says where all this comes from."""

    modes: tuple[str, ...] = ("mean",)
    is_normalized: bool = False
    max_length: int = 0
    prompt: str = ""
    is_lower_case: bool = False
    note: str = "mean pooling, not normalised: the model has no modules.json that says otherwise"

    @staticmethod
    def read(model_path: str) -> Pooling:
        """What the files of a directory or hub name say. Raises `InvalidRequest` for a stage we do not compute."""
        modules = _json(model_path, "modules.json")
        if modules is None:
            return Pooling()
        modes: tuple[str, ...] = ()
        is_normalized = False
        for module in modules[1:]:
            kind = str(module["type"]).rpartition(".")[2]
            if kind == "Pooling" and not modes:
                modes = _modes(model_path, f"{module['path']}/config.json")
            elif kind == "Normalize" and modes:
                is_normalized = True
            else:
                raise _refused(model_path, f"a {kind} stage after the transformer, which is not computed here")
        if not modes:
            raise _refused(model_path, "no Pooling stage in its modules.json, so that it gives no vector a text")
        sizes = _json(model_path, "sentence_bert_config.json") or {}
        note = f"{' + '.join(modes)} pooling, {'' if is_normalized else 'not '}normalised, as the model's files say"
        max_length = int(sizes.get("max_seq_length") or 0)
        return Pooling(modes, is_normalized, max_length, _prompt(model_path), bool(sizes.get("do_lower_case")), note)

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
        return torch.nn.functional.normalize(vectors, dim=-1) if self.is_normalized else vectors


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


def _json(model_path: str, name: str) -> Any:
    """A file of the model, None if it has no such file."""
    try:
        found = cached_file(model_path, name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            return None
        with open(found, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as fault:
        raise InvalidRequest(f"{name} of model {model_path} cannot be read: {fault}", param="model") from fault


def _refused(model_path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"model {model_path} has {what}: choose another model", param="model")
