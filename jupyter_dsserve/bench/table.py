"""Tables, once for all that shows any: as text, as HTML, as a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Bundle = dict[str, str]  # by MIME type, as IPython displays


@dataclass(frozen=True, slots=True)
class Column:
    """``style`` is CSS of its cells. It names no black and no white: pages are light or dark."""

    name: str
    is_number: bool = False
    style: str = ""


Head = Sequence[Column | str]
Rows = Sequence[Sequence[str]]


def text_table(head: Head, rows: Rows) -> str:
    """Columns two blanks apart, numbers to the right."""
    columns = [_column(each) for each in head]
    cells = [[c.name for c in columns], *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    )


def html_table(head: Head, rows: Rows, colours: Sequence[str] = ()) -> str:
    """Escaped. ``colours``: one for each row, of its first cell, which is then bold."""
    columns = [_column(each) for each in head]
    names = [f"<th {_style(c)}>{escape(c.name)}</th>" for c in columns]
    lines = ["".join(names)]
    for index, row in enumerate(rows):
        cells = [escape(cell) for cell in row]
        if colours:
            cells[0] = f'<b style="color:{colours[index]}">{cells[0]}</b>'
        lines.append("".join(f"<td {_style(c)}>{cell}</td>" for c, cell in zip(columns, cells, strict=True)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def table(head: Head, rows: Rows, colours: Sequence[str] = ()) -> Bundle:
    return {"text/plain": text_table(head, rows), "text/html": html_table(head, rows, colours)}


def frame(records: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas DataFrame with a row for each record. Raises ImportError where pandas, which is no dependency of ours,
    is not installed."""
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "to_frame makes a pandas DataFrame, and pandas is not installed: pip install pandas"
        ) from None
    return pandas.DataFrame([dict(each) for each in records])


def _column(named: Column | str) -> Column:
    return Column(named) if isinstance(named, str) else named


def _style(column: Column) -> str:
    side = "right;white-space:nowrap" if column.is_number else "left"  # a number keeps its unit beside it
    return f'style="text-align:{side}{f";{column.style}" if column.style else ""}"'
