"""Linear layers that keep their weights as the files have them, in mapped memory, until each is quantised.

A model that lies in bf16 and is computed in fp32 would else be in memory whole, at twice its size, before the first of
its layers is quantised; and a fraction of that is what stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jupyter_dsserve.headers import narrow_dtype, tensors_in

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


class FiledLinear(torch.nn.Linear):
    """Computes in the dtype of what it is given, with a weight that it makes anew for each call."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return torch.nn.functional.linear(input, self.weight.to(input.dtype), bias)

    def settle(self, dtype: torch.dtype) -> None:
        """Be a linear layer like any other from now on, with weights of ``dtype``."""
        self.__class__ = torch.nn.Linear  # type: ignore[assignment]
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)


def filed_dtype(path: str, config: Any, dtype: torch.dtype) -> torch.dtype | None:
    """What the weights of linear layers have in the directory ``path``, if they are to become wider; else None, and for
    those in fewer bits, which are no numbers by themselves."""
    if dtype != torch.float32 or getattr(config, "quantization_config", None):
        return None
    return _DTYPES.get(narrow_dtype(tensors_in(Path(path))))


@contextmanager
def linears_filed(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, transformers makes every linear layer a `FiledLinear` of ``dtype`` (None: as ever), and loads its weight
    as it is. All else has the dtype that the model is made in, what is no weight but computed from the config too."""
    make = torch.nn.Linear.__init__

    def made(self: torch.nn.Linear, *args: Any, **kwargs: Any) -> None:
        if type(self) is torch.nn.Linear:
            self.__class__ = FiledLinear
            kwargs.setdefault("dtype", dtype)
        make(self, *args, **kwargs)

    if dtype is None:
        yield
        return
    torch.nn.Linear.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Linear.__init__ = make  # type: ignore[method-assign]
