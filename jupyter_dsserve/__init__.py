"""Serve models with DeepSpeed beside the notebook."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from jupyter_dsserve.extension.app import DSServeExtension

    return [{"module": "jupyter_dsserve", "app": DSServeExtension}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """For ``jupyter labextension develop``."""
    return [{"src": "labextension", "dest": "jupyter-dsserve"}]


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext jupyter_dsserve``."""
    from jupyter_dsserve.notebook import magics

    magics.load_ipython_extension(shell)


# In the kernel: imported when they are asked for, so that workers and the gateway do without widgets.
_FROM = {
    "Client": "jupyter_dsserve.notebook.client",
    "AsyncClient": "jupyter_dsserve.notebook.client",
    "panel": "jupyter_dsserve.notebook.panel",
}
__all__ = ["AsyncClient", "Client", "panel"]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'jupyter_dsserve' has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)
