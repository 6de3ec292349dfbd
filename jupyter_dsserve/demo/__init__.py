"""The built-in models, `builtin:demo-v1` and `builtin:demo-v2`, and the script that trained them."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).parent / "models"
_NAMES = ("demo-v1", "demo-v2")


def builtin_names() -> list[str]:
    """The names of the models that come with the package."""
    return list(_NAMES)


def builtin_path(name: str) -> Path:
    """The folder of a built-in model, as `from_pretrained` reads it; LookupError for a name that is none."""
    if name not in _NAMES:
        raise LookupError(f"no built-in model {name!r}; there are: {', '.join(_NAMES)}")
    return _MODELS / name
