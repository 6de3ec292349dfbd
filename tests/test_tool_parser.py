"""What an answer's text says of calls, in each format, however it is cut."""

from __future__ import annotations

import json
import random
import time
from typing import Any, cast

import pytest

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.gateway import tools
from jupyter_dsserve.gateway.choices import ChatChoices
from jupyter_dsserve.gateway.openai_bodies import checked_arguments
from jupyter_dsserve.gateway.tool_parser import Piece, ToolParser
from jupyter_dsserve.gateway.tools import gathered
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, Structure, StructureKind, Tools
from jupyter_dsserve.protocol.tools import ToolFormat, names_of, structure_with, tool_format_of

Read = tuple[str, list[tuple[str, str]]]
BOTH = '{"city": "Köln \\"}]\\" <", "days": [1, {"a": 2}]}'

CASES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    ("hermes", "just <b>text</b>\n", "just <b>text</b>\n", []),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": ' + BOTH + "}\n</tool_call>", "", [("f", BOTH)]),
    (
        "hermes",
        'I look.\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"arguments": {"x": 1}, '
        '"id": 7, "name": "g"}</tool_call>\n',
        "I look.",
        [("f", "{}"), ("g", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call> and more ', "and more", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call> and text', "and text", [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": </tool_call>', '<tool_call>{"name": </tool_call>', []),
    ("hermes", '<tool_call>{"name": "f', '<tool_call>{"name": "f', []),
    ("hermes", "<tool_call> none </tool_call>", "<tool_call> none </tool_call>", []),
    ("hermes", '<tool_call>{"named": "f"}', '<tool_call>{"named": "f"}', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}] what', " what", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}', "", [("f", "{}"), ("g", "{}")]),
    ("hermes", '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
    ("llama3", ' {"name": "f", "parameters": ' + BOTH + "}", "", [("f", BOTH)]),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    ("llama3", '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
    ("llama3", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    ("llama3", '{"a": {"name": "f"}}', '{"a": {"name": "f"}}', []),
    ("llama3", "  No call {", "  No call {", []),
    ("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": ' + BOTH + "}]", "", [("f", BOTH)]),
    (
        "mistral",
        'So:[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "a"}, {"name": "g", "arguments": {"x": []}}]',
        "So:",
        [("f", "{}"), ("g", '{"x": []}')],
    ),
    ("mistral", "[1, 2] [TOOL", "[1, 2] [TOOL", []),
    ("mistral", "[TOOL_CALLS] oh", "[TOOL_CALLS] oh", []),
]


def read(pieces: list[Piece]) -> Read:
    """Asserts that each piece tells one thing, and names come first and once."""
    num_calls = 0
    for piece in pieces:
        assert bool(piece.text) + bool(piece.name) + bool(piece.arguments) == 1
        num_calls += bool(piece.name)
        assert piece.text or piece.call == num_calls - 1
    return gathered(pieces)


@pytest.mark.parametrize(("format", "answer", "text", "calls"), CASES)
def test_an_answer_says_the_same_however_it_is_cut(format: ToolFormat, answer: str, text: str, calls: Any) -> None:
    cuts = [[answer], list(answer)]
    rng = random.Random(answer)
    for _ in range(200):
        places = sorted(rng.choices(range(len(answer) + 1), k=rng.randrange(8)))
        cuts.append([answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)])
    for cut in cuts:
        parser = ToolParser(format, ["f", "g"])
        pieces = [piece for part in cut for piece in parser.push(part)]
        assert read(pieces + parser.end()) == (text, calls), cut
        assert parser.num_calls == len(calls)


def test_arguments_go_on_as_they_come_and_so_does_text() -> None:
    parser = ToolParser("hermes", ["f"])
    assert parser.push("a < b") == [Piece("a < b")]
    assert parser.push(" <tool") == []
    assert parser.push("box>") == [Piece(" <toolbox>")]
    assert parser.push('<tool_call>{"name": "f", "arguments": {"a') == [
        Piece(call=0, name="f"),
        Piece(call=0, arguments='{"a'),
    ]
    assert parser.push('": 1') == [Piece(call=0, arguments='": 1')]


def test_much_white_space_is_read_quickly() -> None:
    parser = ToolParser("hermes", ["f"])
    began = time.monotonic()
    assert gathered(parser.push(" " * 20_000 + "x") + parser.end())[0] == " " * 20_000 + "x"
    assert time.monotonic() - began < 0.2


def test_lists_too_deep_to_be_read_are_no_arguments() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    parser = ToolParser("hermes", ["f"])
    pieces = parser.push('<tool_call>{"name": "f", "arguments": ' + deep + "}</tool_call>")
    assert gathered(pieces + parser.end()) == ("", [("f", "{}")])
    with pytest.raises(InvalidRequest, match="send the JSON object"):
        checked_arguments(deep, "messages.0")


def test_an_answer_has_one_reader_and_the_functions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_read, num_made = 0, 0

    def counted(tools: Tools) -> tuple[str, ...]:
        nonlocal num_read
        num_read += 1
        return names_of(tools)

    def made() -> tools.Reader:
        nonlocal num_made
        num_made += 1
        return new_reader()

    monkeypatch.setattr(tools, "names_of", counted)
    new_reader = tools.readers(Answering(None, "", cast(Any, None)), Tools(TOOLS))
    choices = ChatChoices(made)
    for index in (0, 1, 0, 1, 0):
        choices.deltas(index, Chunk("a", num_tokens=1))
    assert (num_read, num_made) == (1, 2)


QWEN = "{% if tools %}<tools>{{ tools }}</tools> return <tool_call></tool_call>{% endif %}"


@pytest.mark.parametrize(
    ("template", "format"),
    [
        (QWEN, "hermes"),
        ("{{ tools }}[TOOL_CALLS] [", "mistral"),
        ("{{ tools }}[TOOL_CALLS]f[ARGS]{", ""),
        ('{{ tools }} {"name": function name, "parameters": dictionary of arguments}', "llama3"),
        ("{{ tools }}<|python_tag|>", "llama3"),
        (QWEN + "<function=f>", ""),
        ("<tool_call>", ""),
        ("{{ messages }}", ""),
    ],
)
def test_a_template_tells_its_format(template: str, format: str) -> None:
    assert tool_format_of(template) == format


TOOLS = json.dumps([{"type": "function", "function": {"name": name}} for name in ("f", "g")])


def test_calls_that_must_come_have_a_grammar_and_others_none() -> None:
    assert structure_with(Tools(TOOLS), "hermes", {}, None) is None
    named = structure_with(Tools(TOOLS, ("g",), is_parallel=False), "mistral", {"[TOOL_CALLS]": 5}, None)
    assert named is not None
    assert named.kind is StructureKind.GRAMMAR
    assert "<[5]>" in named.source
    assert '\\"g\\"' in named.source
    assert '\\"f\\"' not in named.source
    assert ")*" not in named.source
    assert ")*" in str(structure_with(Tools(TOOLS, ("g",)), "mistral", {}, None))
    form = Structure(StructureKind.JSON, '{"type": "object"}', "response_format")
    assert "start: calls | answer" in str(structure_with(Tools(TOOLS), "hermes", {}, form))
    with pytest.raises(InvalidRequest, match="not with a regex"):
        structure_with(Tools(TOOLS), "hermes", {}, Structure(StructureKind.REGEX, "a"))
