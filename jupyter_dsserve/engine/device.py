"""The device a version runs on, as torch sees it."""

from __future__ import annotations

import torch

from jupyter_dsserve.protocol.errors import InvalidRequest


def named_device(name: str, num_ranks: int = 1, rank: int = 0) -> torch.device:
    """The device of one rank, which becomes the current one: GPUs follow one another from the named one on.

    ``name`` is ``auto``, ``cpu`` or ``cuda:N``. Raises `InvalidRequest` if it is not there.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise InvalidRequest(f"device is {name!r}: use auto, cpu or cuda:N", param="device")
    if int(number) + num_ranks > torch.cuda.device_count():
        many = f" and tp is {num_ranks}" if num_ranks > 1 else ""
        raise InvalidRequest(
            f"device is {name!r}{many}, but torch sees {torch.cuda.device_count()} GPUs here: use cpu or lower numbers",
            param="device",
        )
    device = torch.device("cuda", int(number) + rank)
    torch.cuda.set_device(device)  # DeepSpeed works on the current one
    return device
