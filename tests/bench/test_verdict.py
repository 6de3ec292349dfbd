"""Prompts and thresholds as numbers and words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from jupyter_dsserve.bench.measure import Point, Quantiles
from jupyter_dsserve.bench.plan import Load, Plan
from jupyter_dsserve.bench.prompts import Expectation, problems, read_prompts
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.bench.trial import trial_of
from jupyter_dsserve.bench.validate import validate
from jupyter_dsserve.bench.verdict import Case, Thresholds, Verdict, compared, judged
from jupyter_dsserve.protocol.errors import InvalidRequest, Unavailable

NONE = Quantiles()
POINT = Point(
    load=Load("concurrency", 1),
    window_s=1.0,
    answered=10,
    errors={},
    unfinished=0,
    output_tokens_per_s=100.0,
    requests_per_s=10.0,
    goodput_per_s=None,
    first_token_s=Quantiles(0.1),
    per_token_s=Quantiles(0.01),
    gap_s=NONE,
    latency_s=Quantiles(0.5),
    in_flight=1.0,
    prompt_tokens=None,
    output_tokens=None,
    lag_s=0.0,
    is_warm=True,
)
GOOD, BAD = Case("a", 0.1, "yes"), Case("b", 0.2, "no", ("it is not 'yes': 'no'",))


def slower(times: float, **fields: Any) -> Point:
    return replace(POINT, latency_s=Quantiles(0.5 * times), output_tokens_per_s=100 / times, **fields)


@pytest.mark.parametrize(
    ("expect", "answer", "num_problems"),
    [
        ({}, "anything", 0),
        ({"contains": "cat"}, "a cat", 0),
        ({"contains": ["cat", "dog"]}, "a cat", 1),
        ({"regex": r"\d+$"}, "it is 42", 0),
        ({"regex": r"^\d+$"}, "it is 42", 1),
        ({"equals": "yes"}, " yes\n", 0),
        ({"equals": "yes"}, "yes!", 1),
        ({"json_schema": {"type": "object", "required": ["a"]}}, '{"a": 1}', 0),
        ({"json_schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', 1),
        ({"json_schema": {"type": "object"}}, "{", 1),
        ({"max_latency_s": 1}, "", 0),
        ({"max_latency_s": 0.4}, "", 1),
        ({"contains": "x", "regex": "y", "equals": "z", "max_latency_s": 0.1}, "", 4),
    ],
)
def test_an_answer_is_held_against_what_is_expected(expect: dict[str, Any], answer: str, num_problems: int) -> None:
    assert len(problems(Expectation.read(expect), answer, 0.5)) == num_problems


def test_an_answer_that_nests_too_deep_is_a_problem_of_its_own() -> None:
    (problem,) = problems(Expectation.read({"json_schema": {"type": "array"}}), "[" * 100_000, 0.5)
    assert "too deep" in problem


def test_a_schema_whose_reference_leads_nowhere_is_a_fault_of_the_file() -> None:
    for schema in ({"$ref": "#/$defs/none"}, {"properties": {"a": {"$ref": "urn:nowhere"}}}):
        with pytest.raises(InvalidRequest, match="leads nowhere"):
            problems(Expectation.read({"json_schema": schema}), '{"a": 1}', 0.5)


def test_prompts_are_read_a_line_each_and_pass_on_what_is_not_ours() -> None:
    lines = ['{"prompt": "a", "max_tokens": 5}', "", '{"name": "n", "messages": [], "temperature": 1, "expect": {}}']
    first, second = read_prompts("\n".join(lines))
    assert (first.name, first.body, first.is_chat) == (
        "line 1",
        {"temperature": 0, "prompt": "a", "max_tokens": 5},
        False,
    )
    assert (second.name, second.body, second.is_chat) == ("n", {"temperature": 1, "messages": []}, True)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 1"),
        ("[]", "JSON object"),
        ("{}", "a prompt or messages"),
        ('{"prompt": "a", "messages": []}', "a prompt or messages"),
        ('{"prompt": "a", "model": "m"}', "model"),
        ('{"prompt": "a", "expect": {"contain": "x"}}', "did you mean contains"),
        ('{"prompt": "a", "expect": {"regex": "("}}', r"regex '\('"),
        ('{"prompt": "a", "expect": {"json_schema": {"type": "no"}}}', "json_schema"),
        ('{"prompt": "a", "expect": {"max_latency_s": 0}}', "over 0"),
        ('{"prompt": "a", "expect": 1}', "give an object"),
        (" ", "has no prompts"),
    ],
)
def test_a_line_that_cannot_be_is_named(line: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read_prompts(line, "p.jsonl")


def test_ratios_are_of_each_round_and_their_median_counts() -> None:
    # The machine was three times as slow in the last round: that is not the candidate's.
    rounds = [(slower(1), slower(1.1)), (slower(1), slower(1.3)), (slower(3), slower(3.3))]
    found = {each.name: each for each in compared(rounds)}
    latency = found["latency, p50"]
    assert (latency.ratio, latency.low, latency.high) == pytest.approx((1.1, 1.1, 1.3))
    assert latency.candidate == pytest.approx(0.65)
    assert found["throughput"].ratio == pytest.approx(1 / 1.1)


@pytest.mark.parametrize(
    ("thresholds", "cases", "times", "errors", "failing"),
    [
        ({}, [GOOD, GOOD], 1.1, {}, []),
        ({}, [GOOD, BAD], 1.1, {}, ["prompts"]),
        ({"min_pass": 0.5}, [GOOD, BAD], 1.1, {}, []),
        ({}, [], 1.3, {}, ["latency, p50"]),
        ({"max_latency_ratio": 0}, [], 9, {}, []),
        ({"min_throughput_ratio": 0.95, "max_latency_ratio": 2}, [], 1.1, {}, ["throughput"]),
        ({"max_first_token_ratio": 0.9}, [], 1, {}, ["first token, p50"]),
        ({}, [], 1, {"HTTP 500": 1}, ["errors"]),
        ({"max_error_rate": 0.1}, [], 1, {"HTTP 500": 1}, []),
    ],
)
def test_each_threshold_fails_by_itself(
    thresholds: dict[str, float], cases: list[Case], times: float, errors: dict[str, int], failing: list[str]
) -> None:
    rounds = [(slower(1), slower(times, errors=errors))] * 3
    checks = judged(Thresholds(**thresholds), cases, rounds)
    assert [check.name for check in checks if not check.has_passed] == failing


def test_a_round_in_which_no_request_began_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("http://x/v1", model="demo@v2")
    empty = replace(POINT, answered=0, latency_s=NONE)
    report = Report(target.url, "demo@v1", "now", Plan(), (empty,), "usage", {}, False)
    monkeypatch.setattr("jupyter_dsserve.bench.validate.run_blocking", lambda *_: report)
    with pytest.raises(Unavailable, match=r"no request to demo@v1 began within 1 s of round 1.*give more seconds"):
        validate(trial_of(target, "demo@v1"))
    assert "errors" not in [check.name for check in judged(Thresholds(), [], [(empty, empty)])]


def test_what_could_not_be_measured_has_not_been_kept() -> None:
    nothing = replace(POINT, latency_s=NONE, answered=0, errors={"HTTP 500": 5})
    checks = {check.name: check for check in judged(Thresholds(), [], [(POINT, nothing)])}
    assert not checks["latency, p50"].has_passed
    assert "5 of 5 requests failed" in checks["errors"].said


def test_junit_is_xml_whatever_the_names_are() -> None:
    cases = (replace(BAD, name="a\x00\x1b", problems=("\ud800",)),)
    checks = judged(Thresholds(), cases, [])
    suite = ElementTree.fromstring(Verdict("", "demo\x01", "", "", Thresholds(), cases, (), (), checks).to_junit())
    assert (suite.attrib["name"], suite[0].attrib["name"]) == ("demo ", "a  ")


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        (["def f("], r"line 1: 'def f\(' is none"),
        ([{"prompt": "a"}, 5], "line 2: 5 is none"),
        ([{"prompt": "a"}, {"prompt": {1}}], "line 2: .*not JSON serializable"),
        ([{"prompt": "a", ("b",): 1}], "line 1: "),
    ],
)
def test_a_prompt_from_python_that_cannot_be_is_named(prompts: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        trial_of(Target("http://x/v1", model="demo@v2"), prompts=prompts)


def test_the_report_says_the_same_in_each_form() -> None:
    rounds = [(slower(1), slower(1.5))]
    cases = (GOOD, replace(BAD, problems=("it is not 'a|b':\n\x00",)))
    checks = judged(Thresholds(), cases, rounds)
    verdict = Verdict("http://x/v1", "demo@v2", "demo@v1", "now", Thresholds(), cases, (), compared(rounds), checks)
    assert not verdict.has_passed
    tree = json.loads(verdict.to_json())
    assert (tree["passed"], len(tree["cases"]), tree["compared"][0]["ratio"]) == (False, 2, pytest.approx(1.5))
    markdown = verdict.to_markdown()
    assert "## demo@v2 against demo@v1: FAILED" in markdown
    assert "a\\|b" in markdown
    suite = ElementTree.fromstring(verdict.to_junit())
    assert suite.attrib["failures"] == "3"  # a prompt, min_pass and the latency
    assert [case.attrib["name"] for case in suite if case.find("failure") is None] == ["a", "errors"]
    assert "1.500 times the baseline (rounds from 1.500 to 1.500), at most 1.2" in str(verdict)
    assert "FAILED" in verdict._repr_mimebundle_()["text/html"]
