"""One renderer of tables: aligned as text, escaped as HTML, and as a data frame."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jupyter_dsserve
from jupyter_dsserve.bench.table import Column, frame, html_table, text_table
from jupyter_dsserve.notebook.keys import KeyList
from jupyter_dsserve.notebook.views import Deployment, History, Status
from jupyter_dsserve.protocol.records import ApiKey, Event, GatewayState, GatewayStatus
from tests.notebook.test_ledger import ledger
from tests.notebook.test_views import version

HEAD = ("who", Column("holds", is_number=True, style="white-space:nowrap"), "")
ROWS = [("demo@v1", "2 GiB", "<b>"), ("x", "11 GiB", "")]


def test_text_is_aligned_and_numbers_stand_to_the_right() -> None:
    assert text_table(HEAD, ROWS).splitlines() == [
        "who       holds",
        "demo@v1   2 GiB  <b>",
        "x        11 GiB",
    ]


def test_html_is_escaped_and_has_no_colour_that_only_one_kind_of_page_shows() -> None:
    html = html_table(("<i>", *HEAD[1:]), ROWS, colours=("#0072B2", "#D55E00"))
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert html.count("text-align:right;white-space:nowrap") == 3
    assert re.findall("#[0-9a-fA-F]{3,6}|black|white(?!-)", html) == ["#0072B2", "#D55E00"]


def test_nothing_else_makes_tables() -> None:
    """Each cell that is made elsewhere is one that somebody may forget to escape."""
    made = [p.name for p in Path(jupyter_dsserve.__file__).parent.rglob("*.py") if "<td" in p.read_text()]
    assert made == ["table.py"]


@pytest.mark.parametrize(
    ("make", "columns", "first"),
    [
        (lambda: Deployment("demo", {"v1": 100}, 1, "", [version()]), {"state", "weight", "workers"}, "demo"),
        (
            lambda: Status(GatewayStatus(GatewayState.RUNNING), [Deployment("demo", {}, 1, "", [version()])]),
            {"state", "weight", "workers"},
            "demo",
        ),
        (lambda: History([Event(7, 0.5, "ready", "demo", "v1")]), {"kind", "at", "reason"}, 7),
        (lambda: KeyList([ApiKey("ab12", "app", rate=5.0)]), {"scope", "rate", "expires_at"}, "ab12"),
        (ledger, {"owner", "is_ours", "num_bytes"}, "cpu"),
    ],
)
def test_a_series_is_a_data_frame_too(make: Callable[[], Any], columns: set[str], first: object) -> None:
    found = make().to_frame()
    assert columns <= set(found.columns)
    assert found.iloc[0, 0] == first


def test_without_pandas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        frame([{"a": 1}])
