"""Whether a candidate is good enough: what was seen, held against thresholds, and how it is reported. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from xml.etree import ElementTree

from jupyter_dsserve.bench.measure import Point
from jupyter_dsserve.bench.table import Bundle, html_table, text_table


@dataclass(frozen=True, slots=True)
class Thresholds:
    """``min_pass``: the share of the prompts that pass, 0 to 1. The ratios are candidate to baseline, medians of the
    rounds, 0 for any; ``max_error_rate`` is a share of the load test's requests."""

    min_pass: float = 1.0
    max_latency_ratio: float = 1.2
    max_first_token_ratio: float = 0.0
    min_throughput_ratio: float = 0.0
    max_error_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Case:
    """What became of one prompt. ``problems`` are what is not as expected, in words."""

    name: str
    latency_s: float
    answer: str
    problems: tuple[str, ...] = ()

    @property
    def has_passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Compared:
    """Medians over the rounds, in ``unit``; ``ratio`` is the median of the rounds' own ratios, ``low`` and ``high`` the
    least and the largest of them."""

    name: str
    unit: str
    baseline: float
    candidate: float
    ratio: float
    low: float
    high: float

    @property
    def spread(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold, and what it was held against, in words."""

    name: str
    has_passed: bool
    said: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``baseline`` and ``compared`` are empty if there was none. ``baseline_cases``: the same prompts, for the eye."""

    url: str
    candidate: str
    baseline: str
    begun: str  # ISO 8601, UTC
    thresholds: Thresholds
    cases: tuple[Case, ...]
    baseline_cases: tuple[Case, ...]
    compared: tuple[Compared, ...]
    checks: tuple[Check, ...]

    @property
    def has_passed(self) -> bool:
        return all(check.has_passed for check in self.checks)

    @property
    def headline(self) -> str:
        against = f" against {self.baseline}" if self.baseline else ""
        return f"{self.candidate}{against}: {'passed' if self.has_passed else 'FAILED'}"

    def to_json(self) -> str:
        return json.dumps({"passed": self.has_passed} | asdict(self), indent=1)

    def to_markdown(self) -> str:
        """What a pull request's comment may show."""
        parts = [f"## {self.headline}", *_markdown(_CHECK_HEAD, self._check_rows())]
        if self.compared:
            parts += _markdown(_COMPARED_HEAD, self._compared_rows())
        if self.cases:
            parts += _markdown(_CASE_HEAD, self._case_rows())
        return "\n".join(parts) + "\n"

    def to_junit(self) -> str:
        """A test case for each prompt and each threshold, as CI systems read them."""
        suite = ElementTree.Element("testsuite", name=_printable(self.headline.partition(":")[0]))
        for case in self.cases:
            _junit(suite, "prompts", case.name, case.latency_s, "; ".join(case.problems))
        for check in self.checks:
            _junit(suite, "thresholds", check.name, 0.0, "" if check.has_passed else check.said)
        failures = sum(found.find("failure") is not None for found in suite)
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(failures))
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def __str__(self) -> str:
        parts = [self.headline, "", text_table(_CHECK_HEAD, self._check_rows())]
        if self.compared:
            parts += ["", text_table(_COMPARED_HEAD, self._compared_rows())]
        if failed := self._failed_rows():
            parts += ["", text_table(_CASE_HEAD, failed)]
        return "\n".join(parts)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        colour = "#009E73" if self.has_passed else "#D55E00"
        parts = [f'<b style="color:{colour}">{escape(self.headline)}</b>']
        parts.append(html_table(_CHECK_HEAD, self._check_rows()))
        if self.compared:
            parts.append(html_table(_COMPARED_HEAD, self._compared_rows()))
        if failed := self._failed_rows():
            parts.append(html_table(_CASE_HEAD, failed))
        return {"text/plain": str(self), "text/html": "".join(parts)}

    def _check_rows(self) -> list[list[str]]:
        return [[check.name, "passed" if check.has_passed else "FAILED", check.said] for check in self.checks]

    def _compared_rows(self) -> list[list[str]]:
        return [
            [f"{c.name}, {c.unit}", *(f"{value:.4g}" for value in (c.baseline, c.candidate, c.ratio)), c.spread]
            for c in self.compared
        ]

    def _failed_rows(self) -> list[list[str]]:
        return [row for row, case in zip(self._case_rows(), self.cases, strict=True) if not case.has_passed]

    def _case_rows(self) -> list[list[str]]:
        return [
            [case.name, "passed" if case.has_passed else "FAILED", f"{case.latency_s:.3f}", "; ".join(case.problems)]
            for case in self.cases
        ]


_CHECK_HEAD = ("threshold", "result", "seen")
_COMPARED_HEAD = ("median", "baseline", "candidate", "ratio", "of the rounds")
_CASE_HEAD = ("prompt", "result", "latency, s", "why")

Round = tuple[Point, Point]  # of the baseline and of the candidate


def compared(rounds: Sequence[Round]) -> tuple[Compared, ...]:
    """What both versions gave, round by round: their ratios within a round, for the machine drifts between rounds."""
    measured = (
        ("latency, p50", "s", lambda p: p.latency_s.p50),
        ("first token, p50", "s", lambda p: p.first_token_s.p50),
        ("a token after, p50", "s", lambda p: p.per_token_s.p50),
        ("throughput", "tokens/s", lambda p: p.output_tokens_per_s),
    )
    found = []
    for name, unit, of in measured:
        pairs = [(of(base), of(cand)) for base, cand in rounds]
        good = [(base, cand) for base, cand in pairs if base and cand]
        if good:
            ratios = [cand / base for base, cand in good]
            base, cand = (statistics.median(values) for values in zip(*good, strict=True))
            found.append(Compared(name, unit, base, cand, statistics.median(ratios), min(ratios), max(ratios)))
    return tuple(found)


def judged(thresholds: Thresholds, cases: Sequence[Case], rounds: Sequence[Round]) -> tuple[Check, ...]:
    """Each threshold that has something to be held against. A ratio that could not be measured has not been kept."""
    checks: list[Check] = []
    if cases:
        good = sum(case.has_passed for case in cases)
        share = good / len(cases)
        said = f"{good} of {len(cases)} pass ({share:.0%}), {thresholds.min_pass:.0%} are wanted"
        checks.append(Check("prompts", share >= thresholds.min_pass, said))
    if rounds:
        found = {each.name: each for each in compared(rounds)}
        for name, limit, is_most in (
            ("latency, p50", thresholds.max_latency_ratio, True),
            ("first token, p50", thresholds.max_first_token_ratio, True),
            ("throughput", thresholds.min_throughput_ratio, False),
        ):
            if limit:
                checks.append(_ratio_check(name, limit, is_most, found.get(name)))
        points = [point for _, point in rounds]
        failed = sum(sum(point.errors.values()) + point.unfinished for point in points)
        if total := sum(point.num_counted for point in points):
            rate = failed / total
            said = f"{failed} of {total} requests failed ({rate:.2%}), at most {thresholds.max_error_rate:.2%}"
            checks.append(Check("errors", rate <= thresholds.max_error_rate, said))
    return tuple(checks)


def _ratio_check(name: str, limit: float, is_most: bool, seen: Compared | None) -> Check:
    wanted = f"at {'most' if is_most else 'least'} {limit:g}"
    if seen is None:
        return Check(name, False, f"nothing could be measured, {wanted} is wanted")
    has_passed = seen.ratio <= limit if is_most else seen.ratio >= limit
    return Check(name, has_passed, f"{seen.ratio:.3f} times the baseline (rounds from {seen.spread}), {wanted}")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return ["", line(head), "|" + "---|" * len(head), *map(line, rows)]


def _junit(suite: ElementTree.Element, group: str, name: str, seconds: float, failure: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=group, name=_printable(name), time=f"{seconds:.3f}")
    if failure:
        ElementTree.SubElement(case, "failure", message=_printable(failure))


def _printable(text: str) -> str:
    """XML has no place for control characters, which an answer or a name may hold."""
    return "".join(c if c.isprintable() else " " for c in text)
