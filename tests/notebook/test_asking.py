"""``%%dsserve`` in a real kernel: several answers side by side, conversations, and answers that are kept."""

from __future__ import annotations

import pytest

from jupyter_dsserve.notebook.asking import Beside, Part, prompt_of
from jupyter_dsserve.notebook.views import Answer
from tests.engine.test_loop import toy_text
from tests.notebook.conftest import Kernel
from tests.support import until


@pytest.fixture(scope="module")
def loaded(kernel: Kernel) -> Kernel:
    """demo@v1 and demo@v2 are READY."""
    for version in ("v1", "v2"):
        assert kernel.run(f"%dsserve load demo@{version} --model toy:step_s=0.001").shown
    return kernel


def test_a_cell_is_a_text_a_message_or_a_conversation() -> None:
    assert prompt_of("def f():\n", False) == "def f():"
    assert prompt_of("hi\nthere\n", True) == [{"role": "user", "content": "hi\nthere"}]
    assert prompt_of("hi", False, "Be short.") == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
    ]
    told = "user: What is a list?\nSay it in a line.\nassistant: A row of things.\nuser:\nAnd a tuple?\n"
    assert prompt_of(told, True) == [
        {"role": "user", "content": "What is a list?\nSay it in a line."},
        {"role": "assistant", "content": "A row of things."},
        {"role": "user", "content": "And a tuple?"},
    ]
    assert prompt_of("user: no turn here", False) == "user: no turn here"


def test_two_answers_have_their_differences_marked_once_both_are_whole() -> None:
    whole = [Answer(f"it is {word}", "demo", v, "stop", 1, 3, 0.5) for word, v in (("<so>", "v1"), ("not", "v2"))]
    parts = [Part("demo@v1", "v1", "it is <so>", whole[0].summary, whole[0]), Part("demo@v2", "v2", "it is not")]
    assert "<mark>" not in Beside(parts)._repr_mimebundle_()["text/html"]
    parts[1].answer = whole[1]
    shown = Beside(parts)._repr_mimebundle_()
    assert "<mark>&lt;so&gt;</mark>" in shown["text/html"]
    assert "it is <mark>not</mark>" in shown["text/html"]
    assert "0.50 s" in shown["text/plain"]


def test_two_versions_stand_side_by_side_and_are_kept(loaded: Kernel) -> None:
    said = loaded.run("%%dsserve demo --compare v1 v2 --max-tokens 8 --save both\nhello")
    assert not said.is_error, said.errors
    assert len(said.shown) == 1, "one picture, that moves on in its place"
    kept = loaded.run("[(a.version, a.text) for a in both]").shown[0]["text/plain"]
    assert kept == repr([(version, toy_text("hello", 8)) for version in ("v1", "v2")])


def test_several_answers_of_one_and_a_conversation_are_kept(loaded: Kernel) -> None:
    said = loaded.run("%%dsserve demo@v1 --n 3 --max-tokens 4 --seed 7 --save three\nhello")
    assert not said.is_error, said.errors
    assert loaded.run("len(three)").shown[0]["text/plain"] == "3"
    turns = "user: hi\nassistant: yes\nuser: so?"
    loaded.run(f"%%dsserve demo --chat --system 'Be short.' --max-tokens 4 --save one\n{turns}")
    kept = loaded.run("one.text").shown[0]["text/plain"]
    assert kept == repr(toy_text("system: Be short.\nuser: hi\nassistant: yes\nuser: so?\n", 4))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%%dsserve demo --compare v1 v2 --n 2", "leave --n out"),
        ("%%dsserve demo@v1 --compare v1 v2", "name the deployment alone, such as demo"),
        ("%%dsserve demo --n 99", "from 1 to 8"),
        ("%%dsserve demo --save 9", "--save 9: write the name of a variable"),
        ("%%dsserve demo --compare v8 v9", "'v8'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(loaded: Kernel, line: str, said: str) -> None:
    errors = loaded.run(f"{line}\nhello").errors.strip()
    assert errors.startswith("UsageError: ")
    assert said in errors
    assert "\n" not in errors


def test_of_two_one_may_fail_and_the_other_is_answered(loaded: Kernel) -> None:
    said = loaded.run("%%dsserve demo --compare v1 v9 --max-tokens 4 --save left\nhello")
    assert not said.is_error
    assert loaded.run("[a.version for a in left]").shown[0]["text/plain"] == "['v1']"


async def test_an_interrupt_cancels_all_of_them(loaded: Kernel) -> None:
    async with loaded.server.caller() as caller:

        async def in_flight() -> int:
            found = [await caller.version("demo", version) for version in ("v1", "v2")]
            return sum(int(v["replicas"][0]["in_flight"]) for v in found)

        loaded.begin("%%dsserve demo --compare v1 v2 --max-tokens 1000000\nhello")
        await until(in_flight, lambda n: n == 2)
        loaded.interrupt()
        assert "interrupted: what was being answered is cancelled" in loaded.finish().errors
        await until(in_flight, lambda n: n == 0)
