"""What a failed step says about those that come after it. Imports no torch, for the toy does without."""

from __future__ import annotations


def is_device_lost(fault: BaseException) -> bool:
    """Whether a GPU does nothing more for this process, as after an access out of bounds.

    CUDA then gives the same error to every call, and only another process can use it. Being out of memory passes.
    """
    if "out of memory" in str(fault):
        return False
    kinds = {kind.__name__ for kind in type(fault).__mro__}
    return "AcceleratorError" in kinds or (isinstance(fault, RuntimeError) and str(fault).startswith("CUDA error"))
