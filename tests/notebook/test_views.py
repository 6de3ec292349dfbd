"""What the client returns shows itself: a table for people, escaped, and never a JSON tree."""

from __future__ import annotations

import re
from dataclasses import replace

from jupyter_dsserve.notebook.views import (
    COLOURS,
    Answer,
    Deployment,
    History,
    Rollout,
    Status,
    Version,
    colour_of,
    ink,
)
from jupyter_dsserve.protocol.records import (
    Difference,
    Event,
    GatewayState,
    GatewayStatus,
    Measure,
    MirrorStatus,
    ReplicaStatus,
    RolloutState,
    VersionState,
)
from jupyter_dsserve.protocol.spec import WorkerSpec


def version(
    name: str = "v1",
    state: VersionState = VersionState.READY,
    weight: float = 100.0,
    reason: str = "",
    note: str = "",
    runner: str = "ragged",
    stage: str = "weights",
) -> Version:
    replicas = (
        [ReplicaStatus("demo@v1#0", VersionState.READY, "cpu", runner, 1, 0)] if state is VersionState.READY else []
    )
    return Version("demo", name, state, 0.4, stage, reason, weight, replicas, WorkerSpec("toy:"), note, 0.0)


def test_a_deployment_is_a_table_with_a_bar_of_its_traffic() -> None:
    two = Deployment("demo", {"v1": 90, "v2": 10}, 3, "", [version(weight=90), version("v2", weight=10)])
    shown = two._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"}
    assert shown["text/plain"].splitlines()[0] == "demo: v1=90 v2=10"
    assert [line.split()[0] for line in shown["text/plain"].splitlines()[2:]] == ["v1", "v2"]
    assert "width:90%" in shown["text/html"]
    assert f"background:{colour_of('v2')}" in shown["text/html"]
    assert f'<b style="color:{ink(colour_of("v2"))}">v2</b>' in shown["text/html"], "hard to read on a dark page"


def test_a_rollout_shows_its_reason_its_figures_and_where_answers_differ() -> None:
    measures = [
        Measure("per-token latency", 1.0, 1.2, 1.08, 1.05, 1.0),
        Measure("first-token latency", 1.0, 0.9, None, 1.05, 0.0),
        Measure("error rate", 0.01, 0.02, None, 0.01, 0.25),
    ]
    mirror = MirrorStatus(9, 8, 6, 1, 0, [Difference("<p>", "yes", "no")])
    rollout = Rollout(
        "demo", "v1", "v2", RolloutState.ROLLED_BACK, "too slow", 1, [5, 100], 5.0, 9.0, 60, 1, 0.0, measures, mirror
    )
    shown = rollout._repr_mimebundle_()
    assert shown["text/plain"].splitlines() == [
        "rollout of demo@v2 beside v1: ROLLED_BACK at 5 % of 5, 100",
        "too slow",
        "100 % of a rollback: per-token latency 1.20 × stable's (at least 1.08 ×, limit 1.05 ×)",
        "  0 % of a rollback: first-token latency 0.90 × stable's (no bound yet, limit 1.05 ×)",
        " 25 % of a rollback: error rate 0.020, stable's 0.010 (limit 0.01 worse)",
        "9 copies: 75.0 % of 8 greedy answers agree; 0 failed, 1 dropped",
        "  '<p>'",
        "    v1: 'yes'",
        "    v2: 'no'",
    ]
    assert "&lt;p&gt;" in shown["text/html"]
    held = Deployment("demo", {"v1": 100}, 3, "", [version()], rollout)._repr_mimebundle_()
    assert held["text/plain"].endswith("ROLLED_BACK at 5 % of 5, 100\ntoo slow")


def test_what_loads_says_how_far_it_is_and_what_failed_says_why() -> None:
    loading = version(state=VersionState.LOADING, weight=0)._repr_mimebundle_()
    assert "LOADING weights 40 %" in loading["text/plain"]
    warming = version(state=VersionState.WARMING, stage="warming", weight=0)._repr_mimebundle_()
    assert "WARMING 40 %" in warming["text/plain"]
    failed = version(state=VersionState.FAILED, weight=0, reason="no such file")._repr_mimebundle_()
    assert "FAILED: no such file" in failed["text/html"]


def test_what_a_slower_runner_serves_says_why() -> None:
    slow = version(runner="padded: FalconForCausalLM does not go through it")._repr_mimebundle_()
    assert "READY, padded: FalconForCausalLM does not go through it" in slow["text/plain"]
    assert "READY," not in version()._repr_mimebundle_()["text/plain"]


def test_nothing_of_a_users_becomes_html() -> None:
    for text in (
        version(note="<script>")._repr_mimebundle_()["text/html"],
        Answer("<script>", "demo", "v1", "stop", 1, 1, 0.1)._repr_mimebundle_()["text/html"],
    ):
        assert "<script>" not in text
        assert "&lt;script&gt;" in text


def test_a_status_says_how_the_gateway_is_before_anything_is_served() -> None:
    off = Status(GatewayStatus(GatewayState.OFF))._repr_mimebundle_()["text/plain"]
    assert off == "the gateway is OFF; it starts when a model is loaded"
    failed = Status(GatewayStatus(GatewayState.FAILED, reason="no space"))._repr_mimebundle_()["text/plain"]
    assert failed == "the gateway is FAILED: no space"
    empty = Status(GatewayStatus(GatewayState.RUNNING, "http://here"))._repr_mimebundle_()["text/plain"]
    assert "%dsserve load NAME --model MODEL" in empty


def test_an_answer_is_its_text_with_who_gave_it() -> None:
    answer = Answer("hello", "demo@v2", "v2", "length", 3, 7, 0.5, 0.031)
    assert str(answer) == "hello"
    assert answer.summary == "demo@v2 · 7 tokens · 0.50 s · first token 31 ms"


def test_a_version_has_its_colour_by_its_name() -> None:
    assert [colour_of(f"v{i}") for i in range(1, 8)] == [*COLOURS, COLOURS[0]]
    assert colour_of("main") == colour_of("main")


def test_history_is_a_table_with_times_and_reasons() -> None:
    events = [
        Event(1, 0.0, "registered", "demo", "v1", "", "builtin:demo-v1"),
        Event(2, 1.0, "ready", "demo", "v1", "demo@v1#0", "<b>"),
        Event(3, 2.0, "route", "demo", reason="v1=100"),
    ]
    shown = History(events)._repr_mimebundle_()
    lines = shown["text/plain"].splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1970-01-01"] * 3 or "1969-12-31" in lines[1]
    assert [line[21:].split() for line in lines] == [
        ["what", "of", "why"],
        ["registered", "demo@v1", "builtin:demo-v1"],
        ["ready", "demo@v1#0", "<b>"],
        ["route", "demo", "v1=100"],
    ]
    assert "&lt;b&gt;" in shown["text/html"]
    assert History()._repr_mimebundle_()["text/plain"] == "nothing has happened yet"


def test_what_is_known_of_a_versions_run_stands_beside_its_note() -> None:
    known = replace(version(note="first"), metadata={"run": "r7", "loss": 2.5})
    assert "first; run=r7, loss=2.5" in known._repr_mimebundle_()["text/plain"]


def test_a_long_path_breaks_and_leaves_the_note_its_room() -> None:
    path = "/home/ann/.local/share/jupyter/dsserve/saved/0123456789abcdef/LlamaForCausalLM-0123456789abcdef"
    html = replace(version(note="mine"), spec=WorkerSpec(path))._repr_mimebundle_()["text/html"]
    (style,) = re.findall(f'<td style="([^"]*)">{path}</td>', html)
    assert {"overflow-wrap:anywhere", "min-width:8em"} <= set(style.split(";"))


def test_what_is_printed_is_what_a_cell_shows_and_a_version_in_a_list_is_one_line() -> None:
    two = Deployment("demo", {"v1": 90, "v2": 10}, 3, "", [version(weight=90), version("v2", weight=10)])
    assert repr(two) == str(two) == two._repr_mimebundle_()["text/plain"]
    assert two._repr_html_() == two._repr_mimebundle_()["text/html"]
    assert str(two.versions[1:]) == "[<demo@v2: READY, 10 % of the traffic, toy:>]"
    assert repr(Status(GatewayStatus(GatewayState.OFF))).startswith("the gateway is OFF")
