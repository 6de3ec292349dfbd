"""Serve models with DeepSpeed beside the notebook."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from jupyter_dsserve.extension.app import DSServeExtension

    return [{"module": "jupyter_dsserve", "app": DSServeExtension}]
