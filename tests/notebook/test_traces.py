"""A trace as a notebook shows it: a table with bars, a picture, and a list of calls."""

from __future__ import annotations

from jupyter_dsserve.notebook.traces import Trace, TraceList
from jupyter_dsserve.protocol.traces import Span

CALL = {
    "id": "cmpl-1",
    "trace_id": "a" * 32,
    "at": 1_700_000_000.0,
    "operation": "text_completion",
    "model": "demo",
    "deployment": "demo",
    "version": "v1",
    "outcome": "ok",
    "duration_s": 0.4,
    "first_token_s": 0.1,
    "input_tokens": 3,
    "output_tokens": 7,
    "num_attempts": 1,
}


def trace() -> Trace:
    spans = [
        Span("text_completion demo", "1", "f", 0.0, 0.4, {"http.response.status_code": 200}),
        Span("route", "2", "1", 0.0, 0.1),
        Span("replica", "3", "1", 0.1, 0.3, {"dsserve.replica": "demo@v1#<0>", "dsserve.batch_sequences": 2.5}),
        Span("decode", "4", "3", 0.2, 0.2),
    ]
    return Trace(**CALL, spans=spans)


def test_a_trace_is_a_table_of_its_spans_with_bars() -> None:
    lines = str(trace()).splitlines()
    assert lines[0] == "cmpl-1  demo@v1, 400 ms, 100 ms, 3 → 7, ok"
    assert [line.split()[0] for line in lines[2:]] == ["text_completion", "route", "replica", "decode"]
    assert lines[4].startswith("  replica")
    assert lines[5].startswith("    decode")
    assert lines[2].split()[2:] == ["0.0", "400.0", "█" * 40, "HTTP", "200"]
    assert lines[5].split()[1:] == ["200.0", "200.0", "·" * 20 + "█" * 20]
    html = trace()._repr_mimebundle_()["text/html"]
    assert "demo@v1#&lt;0&gt;, batch 2.5" in html
    assert '<td style="text-align:left;white-space:pre">    decode' in html


def test_its_picture_has_a_bar_for_each_span() -> None:
    [bars] = trace().figure().data
    assert list(bars.x) == [400.0, 100.0, 300.0, 200.0]
    assert list(bars.base) == [0.0, 0.0, 100.0, 200.0]
    assert trace().figure().layout.yaxis.ticktext[3] == "    decode"


def test_the_last_calls_are_a_line_each() -> None:
    calls = TraceList([trace()])
    assert calls[0].id == "cmpl-1"
    [_, row] = calls._repr_mimebundle_()["text/plain"].splitlines()
    assert row.split()[1:] == ["cmpl-1", "demo@v1", "400", "ms", "100", "ms", "3", "→", "7", "ok"]
    assert list(calls.to_frame()["output_tokens"]) == [7]
    assert TraceList()._repr_mimebundle_()["text/plain"] == "no calls yet"
