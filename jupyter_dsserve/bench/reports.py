"""Files that a verdict is written to: JSON, Markdown or JUnit, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jupyter_dsserve.bench.verdict import Verdict
from jupyter_dsserve.protocol.errors import InvalidRequest

_WRITTEN = {".json": Verdict.to_json, ".md": Verdict.to_markdown, ".xml": Verdict.to_junit}


def report_paths(names: Sequence[str | Path]) -> list[Path]:
    """Before minutes are spent on what cannot be written. Raises `InvalidRequest` naming the file."""
    paths = [Path(name).expanduser().absolute() for name in names]
    for name, path in zip(names, paths, strict=True):
        if path.suffix not in _WRITTEN:
            raise InvalidRequest(f"report {name}: name a file that ends in {', '.join(_WRITTEN)}", param="report")
        if not path.parent.is_dir():
            raise InvalidRequest(f"report {name}: there is no such directory", param="report")
    return paths


def write_reports(verdict: Verdict, paths: Sequence[Path]) -> None:
    """Raises `InvalidRequest` naming the file."""
    for path in paths:
        try:
            path.write_text(_WRITTEN[path.suffix](verdict))
        except OSError as fault:
            raise InvalidRequest(
                f"report {path} cannot be written ({fault.strerror}): give another path", param="report"
            ) from None


def file_text(name: str | Path) -> str:
    """Raises `InvalidRequest` naming the file that cannot be read."""
    try:
        return Path(name).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as fault:
        raise InvalidRequest(f"{name} cannot be read ({getattr(fault, 'strerror', None) or fault})") from None
