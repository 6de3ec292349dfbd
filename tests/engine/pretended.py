"""A GPU that is not there: tensors that say they lie on it, compute on the CPU, and refuse what CUDA refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only
from transformers import PreTrainedModel

GPU = torch.device("cuda:0")
_BYTES = 8 << 30
# What torch's own code takes the GPU for, as one of CUDA would have it ask a driver. Loading makes models there too.
_GPUS = ("cuda", "meta")

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


class WrongDevice(Exception):
    """What would be a RuntimeError, or a crash, on a GPU."""


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU. Its numbers are in ``held``, on the CPU, where nobody but this file looks."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):  # a view must be of the kind of what it is a view of
            made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **layout)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return GPU

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """What lies there already is not copied."""
        if kwargs.get("copy"):
            return super().to(*args, **kwargs)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        is_there = device is None or device.type in _GPUS
        return super().to(dtype or self.dtype) if is_there else super().to(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        """torch writes no numbers of a list where it sees no device."""
        return super().__getitem__(torch.tensor(key) if isinstance(key, list) else key)

    def tolist(self) -> Any:  # a copy to the host, as CUDA makes it
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise WrongDevice("numpy() of a tensor on a GPU")

    def data_ptr(self) -> NoReturn:
        raise WrongDevice("the address of a tensor on a GPU")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise WrongDevice("an array of a tensor on a GPU")


class _Watch(TorchDispatchMode):
    """Sees the calls that name the GPU and have none of its tensors too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # an operation made of others: the others are looked at
            out = func.decompose(*args, **(kwargs or {}))
        return out if out is not NotImplemented else _called(func, args, kwargs or {})


def _called(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    ours = [value for value in given if isinstance(value, OnGpu)]
    named = kwargs.get("device")
    on_gpu = named.type in _GPUS if named is not None else bool(ours)
    if func is _aten.copy_.default:
        on_gpu = isinstance(args[0], OnGpu)
    elif ours and func not in _COPIES and len(ours) < len(given):
        _refuse_mixture(func, args, given)
    if named is not None and named.type in _GPUS:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if ours and func is _aten._fused_sdp_choice.default:
        return 0  # the way that is written in plain operations: the CPU has none of CUDA's kernels
    if ours and func is _aten.histc.default:  # CUDA counts whole numbers too
        args = (args[0].float(), *args[1:])
    args_held, kwargs_held = tree_map_only(OnGpu, lambda value: value.held, (args, kwargs))
    out = func(*args_held, **kwargs_held)
    if not on_gpu:
        return out
    same = {id(value.held): value for value in ours}  # what works in place gives back what it was given
    return tree_map_only(torch.Tensor, lambda held: same[id(held)] if id(held) in same else OnGpu(held), out)


def _refuse_mixture(func: Any, args: Any, given: list[torch.Tensor]) -> None:
    """CUDA takes numbers of a CPU tensor without dimensions, and places to look at, and nothing else."""
    fine = set()
    if func in _INDEXING and isinstance(args[0], OnGpu):
        fine = {id(index) for index in args[1] if index is not None}
    for value in given:
        if not isinstance(value, OnGpu) and value.dim() and id(value) not in fine:
            raise WrongDevice(f"{func} has tensors of the GPU and one of the CPU, {list(value.shape)} of {value.dtype}")


_load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]


def _loaded(*args: Any, **kwargs: Any) -> Any:
    with _disable_current_modes():
        return _load(*args, **kwargs)


_apply = torch.nn.Module._apply


def _moved(module: Any, fn: Any, recurse: bool = True) -> Any:
    """CUDA changes what a parameter holds, which cannot be done to make it of another class: it becomes another one,
    with what was noted on it (a quantised weight's layout)."""
    noted = {name: vars(parameter) for name, parameter in module.named_parameters(recurse=False)}
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        _apply(module, fn, recurse)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    for name, parameter in module.named_parameters(recurse=False):
        vars(parameter).update((key, value) for key, value in noted[name].items() if key != "held")
    return module


@contextmanager
def gpu() -> Iterator[None]:
    """Inside, torch has one GPU."""
    with pytest.MonkeyPatch.context() as patch, _Watch():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (_BYTES, _BYTES))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        patch.setattr(torch.nn.Module, "_apply", _moved)
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(_loaded))
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes them on the CPU then, and copies in our sight
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
