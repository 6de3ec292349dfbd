"""A candidate version on trial: integration prompts, and a short load test in turns with the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import httpx

from jupyter_dsserve.bench.measure import Point
from jupyter_dsserve.bench.outcome import message_in
from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.prompts import Prompt, problems
from jupyter_dsserve.bench.run import Progress, run_blocking
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.bench.verdict import Case, Round, Thresholds, Verdict, compared, judged
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable, error_with, no_answer

OnProgress = Callable[[Progress], object]
# Of the work, as the bar shows it: prompts first, then rounds.
_PROMPTS_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Trial:
    """What to do. ``target.model`` is the candidate; ``baseline`` another model of the same server, or none. Each of
    ``rounds`` presses both once as ``plan`` says, in turns, for a machine drifts."""

    target: Target
    baseline: str = ""
    prompts: Sequence[Prompt] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)
    plan: Plan = field(default_factory=Plan)
    rounds: int = 5
    timeout_s: float = 120.0  # of one prompt


def validate(trial: Trial, on_progress: OnProgress = lambda _: None) -> Verdict:
    """Do it. Raises `DSServeError` if the server cannot be asked, or there is nothing to do."""
    if not trial.target.model:
        raise InvalidRequest("name the candidate, such as demo@v2")
    if not (trial.prompts or trial.baseline):
        raise InvalidRequest("there is nothing to validate by: give prompts, a baseline, or both")
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    share = (_PROMPTS_SHARE if trial.baseline else 1.0) if trial.prompts else 0.0
    asked = _Asked(trial, share, on_progress)
    cases = asked.cases(trial.target.model, 0)
    baseline_cases = asked.cases(trial.baseline, 1) if trial.baseline else ()
    rounds = _rounds(trial, share, on_progress) if trial.baseline else ()
    return Verdict(
        url=trial.target.url,
        candidate=trial.target.model,
        baseline=trial.baseline,
        begun=begun,
        thresholds=trial.thresholds,
        cases=cases,
        baseline_cases=baseline_cases,
        compared=compared(rounds),
        checks=judged(trial.thresholds, cases, rounds),
    )


class _Asked:
    """The prompts, one after the other: their latencies are those of a caller alone."""

    def __init__(self, trial: Trial, share: float, on_progress: OnProgress) -> None:
        self._trial, self._on_progress = trial, on_progress
        self._each = share / max(1, len(trial.prompts) * (2 if trial.baseline else 1))

    def cases(self, model: str, turn: int) -> tuple[Case, ...]:
        target, prompts = self._trial.target, self._trial.prompts
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        found: list[Case] = []
        with httpx.Client(headers=headers, timeout=self._trial.timeout_s) as client:
            for number, prompt in enumerate(prompts):
                done = self._each * (turn * len(prompts) + number)
                self._on_progress(Progress(done, f"{model}: {prompt.name}"))
                found.append(_case(client, target.url, model, prompt))
        return tuple(found)


def _case(client: httpx.Client, url: str, model: str, prompt: Prompt) -> Case:
    """An answer that is an error of this prompt's own is a case that fails; a server that answers nobody is raised."""
    began = time.monotonic()
    path = "chat/completions" if prompt.is_chat else "completions"
    try:
        answer = client.post(f"{url}/{path}", json={"model": model, **prompt.body})
    except httpx.TimeoutException:
        return Case(prompt.name, time.monotonic() - began, "", ("it was not answered in time",))
    except httpx.HTTPError as fault:
        raise no_answer(url, fault) from None
    took_s = time.monotonic() - began
    try:
        raw = answer.json()
    except ValueError:
        raw = {}
    if answer.status_code in (401, 403, 404, 503):  # of this key or this model, whatever is asked
        raise error_with(answer.status_code, f"{url} answers HTTP {answer.status_code}: {message_in(raw)}")
    if answer.status_code != 200:
        return Case(prompt.name, took_s, "", (f"HTTP {answer.status_code}: {message_in(raw)}",))
    try:
        choice = raw["choices"][0]
        text = choice["message"]["content"] if prompt.is_chat else choice["text"]
    except (KeyError, IndexError, TypeError):
        raise Unavailable(f"what answers at {url} does not speak OpenAI's API: give a URL that does") from None
    return Case(prompt.name, took_s, text or "", tuple(problems(prompt.expect, text or "", took_s)))


def _rounds(trial: Trial, share: float, on_progress: OnProgress) -> tuple[Round, ...]:
    num = 2 * trial.rounds
    found: list[Round] = []
    for number in range(trial.rounds):
        plan = replace(trial.plan, seed=trial.plan.seed + number)
        points: dict[str, Point] = {}
        models = [trial.baseline, trial.target.model]
        for turn, model in enumerate(models if number % 2 == 0 else models[::-1]):
            before = share + (1 - share) * (2 * number + turn) / num

            def tell(now: Progress, before: float = before, model: str = model, number: int = number) -> None:
                done = before + (1 - share) * now.done / num
                on_progress(Progress(done, f"round {number + 1} of {trial.rounds}, {model}: {now.text}"))

            report = run_blocking(replace(trial.target, model=model), plan, tell)
            if report.is_interrupted:
                raise KeyboardInterrupt
            if not report.points:
                raise DSServeError(f"{model} was not measured")
            point = points[model] = report.points[0]
            if not point.num_counted:
                raise Unavailable(
                    f"no request to {model} began within {point.window_s:.3g} s of round {number + 1}, so that nothing "
                    "was measured: give more seconds, or fewer output_tokens"
                )
        found.append((points[trial.baseline], points[trial.target.model]))
    return tuple(found)
