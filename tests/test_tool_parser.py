"""What an answer's text says of calls, in each format, however it is cut."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any, cast

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.gateway import tools
from jupyter_dsserve.gateway.choices import ChatChoices
from jupyter_dsserve.gateway.tool_bodies import checked_arguments
from jupyter_dsserve.gateway.tool_calls import Piece
from jupyter_dsserve.gateway.tool_parser import ToolParser
from jupyter_dsserve.gateway.tools import gathered
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, Structure, StructureKind, Tools
from jupyter_dsserve.protocol.tools import ToolFormat, structure_with, tool_format_of, types_of

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
    ("pythonic", ' [f(city="Köln )], ", days=3)]', "", [("f", '{"city": "Köln )], ", "days": 3}')]),
    (
        "pythonic",
        "[f(), g(a=[1, -2.5, (3,), (4)], b = {'x': None, 'y': {1: True}}, c=false,)]\n",
        "",
        [("f", "{}"), ("g", '{"a": [1, -2.5, [3], 4], "b": {"x": null, "y": {"1": true}}, "c": false}')],
    ),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>", "", [("f", '{"a": 1}')]),
    ("pythonic", "I call:<|python_start|>[f(a=1)]<|python_end|> so ", "I call:so", [("f", '{"a": 1}')]),
    (
        "pythonic",
        r"""[f(a='it\'s "\x41\n\d"' "b", b='''x', "y''', c=r'\n', d='', e=0x1F, f=1_000, g=1e-3)]""",
        "",
        [("f", r"""{"a": "it's \"A\n\\d\"b", "b": "x', \"y", "c": "\\n", "d": "", "e": 31, "f": 1000, "g": 0.001}""")],
    ),
    ("pythonic", r'[f(a="\ud83d")]', "", [("f", r'{"a": "\ud83d"}')]),
    *(
        ("pythonic", text, text, [])
        for text in (
            "[1, 2]",
            "[]",
            "[h(a=1)]",
            "[f(a=b)]",
            "[f(1)]",
            "[f(**{})]",
            "[f(a=1+1)]",
            "[f(a={1})]",
            "[f(a=b'x')]",
            "[f(a=1e999)]",
            "[f(a=007)]",
            "[f(a=)]",
            "[f(a={[]: 1})]",
            "[f(a='x\ny')]",
            "[f(a=1",
            "So [f(a=1)]",
        )
    ),
    ("pythonic", "[f(a=1, b='x", "", [("f", '{"a": 1')]),
    (
        "qwen3_coder",
        'I look.\n<tool_call>\n<function=f>\n<parameter=city>\nKöln "</b>\n\n</parameter>\n<parameter=days>\n3\n'
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        "I look.",
        [("f", '{"city": "Köln \\"</b>\\n", "days": 3}'), ("g", "{}")],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=f><parameter=list>[1, {}]</parameter><parameter=is>True</parameter><parameter=maybe>"
        "None</parameter><parameter=maybe>no</parameter><parameter=days>three</parameter><parameter=other>5"
        "</parameter></function></tool_call> more",
        "more",
        [
            (
                "f",
                '{"list": [1, {}], "is": true, "maybe": null, "maybe": "no", "days": "three", "other": "5"}',
            )
        ],
    ),
    ("qwen3_coder", "<tool_call><function=f></tool_call>", "", [("f", "{}")]),
    ("qwen3_coder", "<tool_call><function=f><parameter=city>\nKö", "", [("f", '{"city": "Kö')]),
    *(
        ("qwen3_coder", text, text, [])
        for text in (
            '<tool_call>{"name": "f"}</tool_call>',
            "<tool_call><function=f g></function></tool_call>",
            "<tool_call><function=f> oh </function></tool_call>",
            "<function=f></function>",
            "<tool_call><function=f",
        )
    ),
]
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "list": {"$ref": "#/$defs/list"},
    "is": {"type": "boolean"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
}
PARAMETERS = {"properties": PROPERTIES, "required": ["city", "list"], "$defs": {"list": {"type": "array"}}}
TYPED = json.dumps(
    [
        {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": "g"}},
    ]
)
TYPES = types_of(Tools(TYPED))


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
        parser = ToolParser(format, TYPES)
        pieces = [piece for part in cut for piece in parser.push(part)]
        assert read(pieces + parser.end()) == (text, calls), cut
        assert parser.num_calls == len(calls)


def test_arguments_go_on_as_they_come_and_so_does_text() -> None:
    parser = ToolParser("hermes", TYPES)
    assert parser.push("a < b") == [Piece("a < b")]
    assert parser.push(" <tool") == []
    assert parser.push("box>") == [Piece(" <toolbox>")]
    assert parser.push('<tool_call>{"name": "f", "arguments": {"a') == [
        Piece(call=0, name="f"),
        Piece(call=0, arguments='{"a'),
    ]
    assert parser.push('": 1') == [Piece(call=0, arguments='": 1')]


def test_much_white_space_is_read_quickly() -> None:
    parser = ToolParser("hermes", TYPES)
    began = time.process_time()
    assert gathered(parser.push(" " * 20_000 + "x") + parser.end())[0] == " " * 20_000 + "x"
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("format", "before", "after"),
    [
        ("pythonic", "[f(a=", ")]"),
        ("pythonic", "[f(a='", "')]"),
        ("pythonic", "[f(", ""),
        ("qwen3_coder", "<tool_call><function=f><parameter=city>", "</parameter></function></tool_call>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=list>", "</parameter></function></tool_call>"),
        ("qwen3_coder", "<tool_call><function=", ">"),
        ("qwen3_coder", "<tool_call><function=f><parameter=", ">"),
    ],
)
def test_endless_calls_are_read_quickly(format: ToolFormat, before: str, after: str) -> None:
    """Those that are one piece, and those of many."""
    began = time.process_time()
    for many in ("[", "(", "-", "1", "{1:", "x", '"', "'", "\\", "<", "\n", "</parameter", "'a' ", "[1,"):
        for size in (1, 10**6):
            text = before + many * (5_000 // len(many)) + after
            parser = ToolParser(format, TYPES)
            for at in range(0, len(text), size):
                parser.push(text[at : at + size])
            parser.end()
    assert time.process_time() - began < 4


def test_a_text_streams_while_it_is_written_and_what_is_no_text_comes_whole() -> None:
    parser = ToolParser("qwen3_coder", TYPES)
    assert parser.push("<tool_call>\n<function=f>\n<parameter=city>\nK") == [
        Piece(call=0, name="f"),
        Piece(call=0, arguments='{"city": "K'),
    ]
    assert parser.push('ö"\n') == [Piece(call=0, arguments='ö\\"')]
    assert parser.push("</parameter>") == [Piece(call=0, arguments='"')]
    assert parser.push("<parameter=days>1") == [Piece(call=0, arguments=', "days": ')]
    assert parser.push("2</parameter>") == [Piece(call=0, arguments="12")]
    parser = ToolParser("pythonic", TYPES)
    assert parser.push("[f(city='K") == []
    assert parser.push("', da") == [Piece(call=0, name="f"), Piece(call=0, arguments='{"city": "K"')]


def test_lists_too_deep_to_be_read_are_no_arguments() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    parser = ToolParser("hermes", TYPES)
    pieces = parser.push('<tool_call>{"name": "f", "arguments": ' + deep + "}</tool_call>")
    assert gathered(pieces + parser.end()) == ("", [("f", "{}")])
    with pytest.raises(InvalidRequest, match="send the JSON object"):
        checked_arguments(deep, "messages.0")


def test_an_answer_has_one_reader_and_the_functions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_read, num_made = 0, 0

    def counted(tools: Tools) -> dict[str, dict[str, frozenset[str]]]:
        nonlocal num_read
        num_read += 1
        return types_of(tools)

    def made() -> tools.Reader:
        nonlocal num_made
        num_made += 1
        return new_reader()

    monkeypatch.setattr(tools, "types_of", counted)
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
        (QWEN + "<function=f>\n<parameter=a>", "qwen3_coder"),
        ("{{ tools }} [func_name1(params_name1=params_value1...), func_name2(params)]", "pythonic"),
        ("{{ tools }} <TOOLCALL>[func_name1(params_name1=params_value1...)]</TOOLCALL>", ""),
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


RICH = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 1},
        "text": {"type": "string"},
        "kind": {"enum": ["a", "b c", None]},
        "short": {"type": "string", "maxLength": 3},
        "is": {"type": "boolean"},
        "part": {"$ref": "#/$defs/part"},
    },
    "required": ["text", "part"],
    "$defs": {"part": {"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": False}},
}


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        (
            "pythonic",
            [
                '[f(text="a\\n)", part={"x":null}, n=3, kind="b c", short="abc", is=True), g()]',
                '[f(text="", part={}, is=False)]',
            ],
            ["[h()]", "[f()]", '[f(text="a", part={}, n=0)]', '[f(text="a", part={}, kind="c")]', "[g()", "text"],
        ),
        (
            "qwen3_coder",
            [
                "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n<parameter=text>\n<b>\n\n</parameter>\n"
                "<parameter=kind>\nb c\n</parameter>\n<parameter=short>\nabc\n</parameter>\n<parameter=is>\ntrue\n"
                '</parameter>\n<parameter=part>\n{"x":null}\n</parameter>\n</function>\n</tool_call>',
                "<tool_call>\n<function=g>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
            ],
            [
                "<tool_call>\n<function=f>\n</function>\n</tool_call>",
                "<tool_call>\n<function=h>\n</function>\n</tool_call>",
                "<tool_call>\n<function=f>\n<parameter=n>\n0\n</parameter>\n",
                "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=short>\nabcd\n</parameter>\n",
                "<tool_call>\n<function=f>\n<parameter=text>\na</parameter>b\n</parameter>\n",
            ],
        ),
    ],
)
def test_the_grammar_leaves_calls_that_fit_and_they_are_read_back(
    format: ToolFormat, good: list[str], bad: list[str]
) -> None:
    functions = [{"name": "f", "parameters": RICH}, {"name": "g"}]
    told = Tools(json.dumps([{"type": "function", "function": one} for one in functions]), ("f", "g"))
    structure = structure_with(told, format, {}, None)
    assert structure
    grammar = LLMatcher.grammar_from_lark(structure.source)

    def fits(text: str) -> bool:
        matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
        assert not matcher.get_error()
        return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()

    for answer in good:
        assert fits(answer), answer
        parser = ToolParser(format, types_of(told))
        text, calls = read(parser.push(answer) + parser.end())
        assert not text
        assert calls
        for name, arguments in calls:
            if name == "f":
                jsonschema.validate(json.loads(arguments), RICH)
    assert not [answer for answer in bad if fits(answer)]


@pytest.mark.parametrize("format", ["pythonic", "qwen3_coder"])
@pytest.mark.parametrize("large", [{"anyOf": [{}] * 5_000}, {"enum": list(range(5_000))}, {"enum": ["a"] * 5_000}])
def test_schemas_that_refer_to_a_large_one_many_times_are_bounded(format: ToolFormat, large: Any) -> None:
    parameters = {"properties": {f"p{n}": {"$ref": "#/$defs/x"} for n in range(5_000)}, "$defs": {"x": large}}
    told = Tools(json.dumps([{"type": "function", "function": {"name": "f", "parameters": parameters}}]), ("f",))
    began = time.process_time()
    assert types_of(told)
    with contextlib.suppress(InvalidRequest):
        assert len(structure_with(told, format, {}, None).source) < 10_000_000  # type: ignore[union-attr]
    assert time.process_time() - began < 5


@pytest.mark.parametrize("format", ["pythonic", "qwen3_coder"])
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"anyOf": [{}]}, "anyOf cannot be enforced"),
        ({"properties": {"a <>=": {}}}, "'a <>='"),
        ({"type": 5}, "no object's"),
        ({"properties": []} | {"required": "a"}, "no object's"),
    ],
)
def test_parameters_that_cannot_be_written_apart_are_refused(format: ToolFormat, parameters: Any, named: str) -> None:
    told = json.dumps([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    with pytest.raises(InvalidRequest, match=named):
        structure_with(Tools(told, ("f",)), format, {}, None)
