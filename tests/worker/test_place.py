"""What a worker sees of the machine's GPUs."""

from __future__ import annotations

import os

import pytest

from jupyter_dsserve.worker.__main__ import _keep_to


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user's environment says, and is again afterwards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_a_version_on_the_cpu_sees_no_gpu_and_takes_no_memory_of_one() -> None:
    _keep_to("cpu")
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"]) == ("", "cpu")


def test_a_version_on_a_gpu_has_deepspeed_work_there() -> None:
    _keep_to("cuda:0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "DS_ACCELERATOR" not in os.environ


def test_a_version_that_takes_what_there_is_finds_all_as_it_was() -> None:
    _keep_to("auto")
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"]) == ("3", "cpu")
