"""Where the tests of this folder run: on the CPU in every run, on a GPU with ``-m gpu``."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Short tests, whose bodies are so tried without a GPU too."""
    return there(request.param)


@pytest.fixture
def gpu() -> str:
    return there("cuda:0")


def there(device: str) -> str:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU with CUDA here: install a CUDA build of torch on a machine that has one")
    return device
