"""Serve models with DeepSpeed beside the notebook."""

__version__ = "0.1.0"
