"""Logprobs: the model's own, and each with the text it belongs to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_dsserve.engine.logprobs import HeldLogprobs
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.sampling import TorchLogits, likelihoods_of
from jupyter_dsserve.engine.sequence import Likelihood, Sequence
from jupyter_dsserve.engine.toy import ToyRunner
from jupyter_dsserve.protocol.request import FinishReason, SamplingParams, TokenLogprob, Usage
from tests.engine.test_loop import AT_ONCE, Driver, toy_text
from tests.engine.tiny_models import load, random_prompts, save_architecture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_architecture("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["ragged", "padded"])
def runner(folder: Path, request: pytest.FixtureRequest) -> RaggedRunner:
    return load(folder, runner=request.param)


@pytest.fixture
def toy() -> Driver:
    return Driver(ToyRunner(AT_ONCE, 64))


def sequence(**sampling: Any) -> Sequence:
    return Sequence("s", [1], SamplingParams(**sampling))


def test_logprobs_are_the_log_softmax_of_the_logits_and_the_likeliest_come_first() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3
    wanted = logits.log_softmax(-1)
    found = likelihoods_of(logits, [4, 9, 11], [0, 2, 5])
    own = [float(wanted[row, token]) for row, token in enumerate((4, 9, 11))]
    assert [one.logprob for one in found] == pytest.approx(own, abs=1e-5)
    assert [len(one.top) for one in found] == [0, 2, 5]
    assert [token for token, _ in found[2].top] == wanted[2].topk(5).indices.tolist()
    assert [logprob for _, logprob in found[2].top] == pytest.approx(wanted[2].topk(5).values.tolist(), abs=1e-5)


def test_temperature_penalties_and_filters_change_no_logprob_and_a_row_that_asks_for_none_gets_none() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3
    changed = sequence(logprobs=1, temperature=0.3, top_k=2, logit_bias=((5, 50.0),), repetition_penalty=2.0)
    rows = [sequence(), changed, sequence(logprobs=1)]
    found = TorchLogits(logits).likelihoods(rows, [5, 5, 5])
    assert found[0] is None
    assert found[1:] == likelihoods_of(logits[1:], [5, 5], [1, 1])


def test_what_cannot_come_has_a_logprob_that_json_can_hold() -> None:
    (found,) = likelihoods_of(torch.tensor([[0.0, -torch.inf]]), [1], [2])
    assert found == Likelihood(-9999.0, ((0, 0.0), (1, -9999.0)))


def test_an_answer_has_the_logprobs_of_a_plain_forward_pass(folder: Path, runner: RaggedRunner) -> None:
    driver = Driver(runner)  # type: ignore[arg-type]
    prompts = random_prompts((40, 3))
    for id, prompt in zip("ab", prompts, strict=True):
        driver.engine.post(Sequence(id, list(prompt), SamplingParams(12, logprobs=3, temperature=0.7, seed=1)))
    driver.engine.turn()
    running = {s.id: s for s in driver.engine.scheduler.running}
    driver.run("a", "b")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for id, prompt in zip("ab", prompts, strict=True):
        tokens = running[id].tokens
        found = [one for chunk in driver.chunks if chunk.request_id == id for one in chunk.logprobs]
        with torch.inference_mode():
            wanted = plain(torch.tensor([tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = wanted.gather(-1, torch.tensor(tokens[len(prompt) :])[:, None])[:, 0].tolist()
        assert [one.logprob for one in found] == pytest.approx(own, abs=1e-3)
        for one, row in zip(found, wanted, strict=True):
            assert [t.logprob for t in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert [one.text for one in found] == [runner.tokenizer.token_bytes(token) for token in tokens[len(prompt) :]]


def test_an_echoed_prompt_has_the_logprobs_of_a_plain_forward_pass_however_it_is_cut(
    folder: Path, runner: RaggedRunner
) -> None:
    """Prompts longer than a step come in chunks, beside one that is not scored and after one that began alike."""
    driver = Driver(runner)  # type: ignore[arg-type]
    (long, short), plain = random_prompts((70, 20)), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    driver.engine.post(Sequence("before", list(long), SamplingParams(1)))
    driver.run("before")
    scored = {"long": (long, 2), "short": (short, 2), "only": (long, 0)}
    for id, (prompt, max_tokens) in scored.items():
        driver.engine.post(Sequence(id, list(prompt), SamplingParams(max_tokens, logprobs=2, echo=True)))
    driver.engine.post(Sequence("other", [5] * 50, SamplingParams(8)))
    driver.run(*scored, "other")
    for id, (prompt, max_tokens) in scored.items():
        found = told(driver, id)
        assert len(found) == len(prompt) + max_tokens
        assert (found[0].logprob, found[0].top) == (None, ())
        with torch.inference_mode():
            wanted = plain(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        own = wanted.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert [one.logprob for one in found[1 : len(prompt)]] == pytest.approx(own, abs=1e-3)
        for one, row in zip(found[1 : len(prompt)], wanted, strict=True):
            assert [t.logprob for t in one.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)
    end = driver.end("only")
    assert end is not None
    assert (end.finish_reason, end.usage) == (FinishReason.LENGTH, Usage(len(long), 0))
    assert told(driver, "other") == []


def test_a_sequence_that_was_put_aside_while_its_prompt_was_scored_scores_the_rest_and_says_it_once(
    runner: RaggedRunner,
) -> None:
    def told_with(preempt_after: int) -> list[TokenLogprob]:
        driver = Driver(runner)  # type: ignore[arg-type]
        driver.engine.post(
            Sequence("a", list(random_prompts((70,))[0]), SamplingParams(5, logprobs=1, echo=True, seed=1))
        )
        for _ in range(preempt_after):
            driver.engine.turn()
        driver.engine.scheduler.forget()
        driver.run("a")
        return told(driver)

    plain = told_with(0)
    assert len(plain) == 75
    for turns in (1, 2, 3, 5):
        found = told_with(turns)
        assert [(one.text, one.offset) for one in found] == [(one.text, one.offset) for one in plain]
        assert [one.logprob for one in found[1:]] == pytest.approx([one.logprob for one in plain[1:]], abs=1e-3)


def test_an_echo_comes_first_and_stop_strings_do_not_look_at_it(toy: Driver) -> None:
    whole = toy_text("hello", 12)
    toy.post("a", "hello", SamplingParams(max_tokens=12, echo=True, stop=("hell", whole[7:9]), logprobs=1))
    toy.post("b", "né€", SamplingParams(max_tokens=0, echo=True))
    toy.run("a", "b")
    assert toy.text("a") == "hello" + whole[: whole.index(whole[7:9])]
    assert toy.text("b") == "né€"
    assert [one.offset for one in told(toy)] == list(range(len(toy.text("a"))))
    assert [one.logprob for one in told(toy)[:2]] == [None, pytest.approx(-math.log(256))]
    assert toy.end("b").usage == Usage(6, 0)  # type: ignore[union-attr]


def told(driver: Driver, id: str = "a") -> list[TokenLogprob]:
    return [one for chunk in driver.chunks if chunk.request_id == id for one in chunk.logprobs]


@pytest.mark.parametrize("stop", [(), ("zzz",), ("{7}",), ("{3}zzz", "{9}")])
def test_each_chunk_has_the_logprobs_of_its_text_whatever_is_held_back(stop: tuple[str, ...]) -> None:
    """{n} stands for two letters of the answer from place n, so that text is held back, and some is cut."""
    whole = toy_text("hello", 30)
    driver = Driver(ToyRunner(AT_ONCE, 64))
    stops = tuple(s.replace(s[:3], whole[int(s[1]) :][:2]) if s[0] == "{" else s for s in stop)
    driver.post("a", "hello", SamplingParams(max_tokens=30, stop=stops, logprobs=1))
    driver.run("a")
    for chunk in driver.chunks:
        assert b"".join(one.text for one in chunk.logprobs).decode() == chunk.text
    assert [one.offset for one in told(driver)] == list(range(len(driver.text("a"))))


def test_parts_of_a_character_go_together_and_have_its_offset() -> None:
    held = HeldLogprobs(lambda token: bytes([token]))
    sent = []
    at = 0
    for byte, text in zip("a€b".encode(), ["a", "", "", "€", "b"], strict=True):
        held.push(byte, Likelihood(-1.0, ()), at, at + len(text))
        at += len(text)
        sent.append([(one.text, one.offset) for one in held.sent(at)])
    assert sent == [[(b"a", 0)], [], [], [(b"\xe2", 1), (b"\x82", 1), (b"\xac", 1)], [(b"b", 2)]]


def test_a_token_whose_text_is_cut_in_the_middle_stays_and_those_after_it_go() -> None:
    held = HeldLogprobs(lambda token: bytes([token]))
    for token, begin in ((1, 0), (2, 3), (3, 6)):
        held.push(token, Likelihood(-1.0, ()), begin, begin + 3)
    assert [one.offset for one in held.ended(5, is_cut=True)] == [0, 3]
    held.push(4, Likelihood(-1.0, ()), 5, 5)
    assert [one.text for one in held.ended(5, is_cut=False)] == [b"\x04"], "an unfinished character at the end is told"


def test_merged_chunks_keep_the_logprobs_of_both() -> None:
    driver = Driver(ToyRunner(AT_ONCE, 64))
    driver.post("a", "hello", SamplingParams(max_tokens=9, logprobs=0))
    driver.run("a")
    whole = driver.chunks[0]
    for later in driver.chunks[1:]:
        whole = whole.merged(later)
    assert whole.logprobs == tuple(told(driver))
    assert len(whole.logprobs) == 9
