"""Tab after ``%dsserve``: what it offers, in a real kernel too, and that it never holds the kernel up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from jupyter_dsserve.notebook import completion
from jupyter_dsserve.notebook.completion import Glance, Known, Served, offered
from jupyter_dsserve.notebook.magics import VERBS, DSServeMagics
from jupyter_dsserve.protocol.errors import Unavailable
from tests.notebook.conftest import Kernel
from tests.support import Json

PARSERS = {verb: getattr(DSServeMagics, verb).parser for verb in VERBS} | {"": DSServeMagics.ask.parser}
KNOWN = Known({"demo": ["v1", "v2"], "other": ["main"]}, ["model", "tok"])
NAMES = ["demo", "other", "demo@v1", "demo@v2", "other@main"]


def words(line: str) -> list[str]:
    return [each.text for each in offered(line, PARSERS, KNOWN)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%dsserve lo", ["load", "logs"]),
        ("%dsserve status ", NAMES),
        ("%dsserve unload demo@", ["demo@v1", "demo@v2"]),
        ("%dsserve activate demo ", ["v1", "v2"]),
        ("%dsserve activate demo v2 --strategy ", ["beside", "recreate"]),
        ("%dsserve route demo ", ["v1=", "v2="]),
        ("%dsserve route demo v1=90 ", ["v2="]),
        ("%dsserve rollout demo v2 --m", ["--max-error-rate", "--max-latency-ratio", "--min-requests", "--mirror"]),
        ("%dsserve rollout demo v2 --mirror 5 --mi", ["--min-requests"]),
        ("%dsserve load new --obj", ["--object"]),
        ("%dsserve load new --object ", ["model", "tok"]),
        ("%dsserve load new --model built", ["builtin:demo-v1", "builtin:demo-v2"]),
        ("%dsserve load new --metadata a=1 --meta", ["--metadata"]),
        ("%dsserve policy demo --fallback ", ["v1", "v2"]),
        ("%dsserve key ", ["create", "list", "revoke"]),
        ("%dsserve ledger ", []),
        ("%dsserve nonsense ", []),
        ("%%dsserve ", NAMES),
        ("%%dsserve demo --max-tokens 9 --te", ["--temperature"]),
        ("%%dsserve demo --seed ", []),
    ],
)
def test_what_may_come_next_is_offered(line: str, expected: list[str]) -> None:
    assert words(line) == expected


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("%dsserve lo", {"load": "verb", "logs": "verb"}),
        ("%dsserve unload demo", {"demo": "deployment", "demo@v1": "version", "demo@v2": "version"}),
        ("%dsserve rollout demo v", {"v1": "version", "v2": "version"}),
        ("%dsserve route demo v1", {"v1=": "version"}),
        ("%dsserve load x --obj", {"--object": "flag"}),
        ("%dsserve load x --object mo", {"model": "variable"}),
        ("%dsserve load x --dtype bf", {"bf16": "value"}),
        ("%dsserve load x --python ker", {"kernel": "value"}),
        ("%dsserve load x --model builtin:demo-v1", {"builtin:demo-v1": "model"}),
        ("%dsserve load x --model note", {"notes/": "path"}),
    ],
)
def test_each_word_is_told_with_what_it_is(
    line: str, kinds: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert {each.text: each.kind for each in offered(line, PARSERS, KNOWN)} == kinds


def test_paths_are_offered_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/last").mkdir(parents=True)
    (tmp_path / "runs/.hidden").touch()
    (tmp_path / "runs/list.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert words("%dsserve apply ") == ["runs/"]
    assert words("%dsserve apply ./runs/l") == ["./runs/last/", "./runs/list.yaml"]
    assert words("%dsserve load x --model ~/runs/la") == ["~/runs/last/"]
    assert words("%dsserve load x --model runs/") == ["runs/last/", "runs/list.yaml"]
    assert words("%dsserve apply no/such/") == []


def test_what_is_served_is_asked_once_a_second_and_never_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, answer = [0.0], [], threading.Event()

    def look() -> Served:
        asked.append(now[0])
        answer.wait(30)
        return {"demo": ["v1"]}

    glance = Glance(look, clock=lambda: now[0])
    started = time.monotonic()
    assert glance() == glance() == {}
    assert time.monotonic() - started < 10, "it waited for the answer, which takes 30 s"
    assert asked == [0.0], "it was asked again although nothing came yet"
    monkeypatch.setattr(completion, "_WAIT_S", 30.0)  # on a busy machine even an answer at once takes its time
    answer.set()
    assert glance() == {"demo": ["v1"]}
    now[0] = 0.9
    assert glance() == {"demo": ["v1"]}
    assert asked == [0.0]
    now[0] = 1.1
    assert glance() == {"demo": ["v1"]}
    assert asked == [0.0, 1.1]


def test_without_a_gateway_nothing_is_known() -> None:
    def look() -> Served:
        raise Unavailable("no gateway")

    assert Glance(look)() == {}


def completed(kernel: Kernel, code: str) -> Json:
    """What the kernel answers to Tab at the end of ``code``."""
    kernel.client.complete(code, len(code))
    while True:
        reply = kernel.client.get_shell_msg(timeout=30)
        if reply["msg_type"] == "complete_reply":
            return reply["content"]


def complete(kernel: Kernel, code: str) -> list[str]:
    """As a notebook does: the whole text with each match in its place."""
    content = completed(kernel, code)
    return [code[: content["cursor_start"]] + each for each in content["matches"]]


def completes_at_last(kernel: Kernel, code: str, expected: list[str]) -> None:
    """On a busy machine a glance may come too late for its Tab; it is there at a later one."""
    deadline = time.monotonic() + 30
    while (found := complete(kernel, code)) != expected:
        assert time.monotonic() < deadline, found


def test_a_kernel_completes_both_magics(kernel: Kernel) -> None:
    kernel.run("trained = 1")
    assert complete(kernel, "%dsserve load x --obj") == ["%dsserve load x --object"]
    assert complete(kernel, "%dsserve load x --object tra") == ["%dsserve load x --object trained"]
    kernel.run("%dsserve load demo --model toy:")
    assert complete(kernel, "%dsserve unlo") == ["%dsserve unload"]
    completes_at_last(kernel, "%dsserve unload de", ["%dsserve unload demo", "%dsserve unload demo@v1"])
    completes_at_last(kernel, "%dsserve unload demo@", ["%dsserve unload demo@v1"])
    completes_at_last(kernel, "x = 1\n%dsserve route demo ", ["x = 1\n%dsserve route demo v1="])
    assert complete(kernel, "%%dsserve demo --max-t") == ["%%dsserve demo --max-tokens"]
    told = completed(kernel, "%dsserve unlo")["metadata"]["_jupyter_types_experimental"]
    assert [(each["text"], each["type"]) for each in told] == [("unload", "verb")], "what JupyterLab shows beside it"
    assert "import" in complete(kernel, "impor")[0]


def test_a_gateway_that_hangs_does_not_hold_up_the_kernel(kernel: Kernel) -> None:
    kernel.run(
        "from jupyter_dsserve.notebook import session\n"
        "import time\n"
        "quick = session.session().quick\n"
        "status, quick.status = quick.status, lambda: time.sleep(30)\n"
        "time.sleep(1.1)"
    )
    started = time.monotonic()
    complete(kernel, "%dsserve unload de")
    took_s = time.monotonic() - started
    kernel.run("quick.status = status")
    assert took_s < 15, "it waited for what takes 30 s"
