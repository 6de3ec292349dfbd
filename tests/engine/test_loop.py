"""The engine's claims, on the toy: text, ends, refusals, aborts, failures."""

from __future__ import annotations

import pytest

from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.runner import Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.tokenizer import StopStrings
from jupyter_dsserve.engine.toy import ToyDetokenizer, ToyLogits, ToyRunner, toy_token
from jupyter_dsserve.protocol.errors import DeadlineExceeded, EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, SamplingParams, Usage
from jupyter_dsserve.protocol.toy import ToySettings

AT_ONCE = ToySettings(step_s=0)


def toy_text(prompt: str, num_tokens: int) -> str:
    return bytes(toy_token(prompt.encode(), i) for i in range(num_tokens)).decode()


class Driver:
    """An engine whose loop the test turns by hand."""

    def __init__(self, runner: ToyRunner) -> None:
        self.chunks: list[Chunk] = []
        self.engine = Engine(runner, self.chunks.extend)

    def post(self, id: str, prompt: str | bytes, sampling: SamplingParams) -> None:
        self.engine.post(Sequence(id, list(prompt if isinstance(prompt, bytes) else prompt.encode()), sampling))

    def run(self, *ids: str) -> None:
        for _ in range(1000):
            if all(self.end(id) for id in ids):
                return
            self.engine.turn()
        raise AssertionError(f"not ended: {self.chunks}")

    def end(self, id: str) -> Chunk | None:
        return next((c for c in self.chunks if c.request_id == id and c.finish_reason), None)

    def text(self, id: str) -> str:
        return "".join(c.text for c in self.chunks if c.request_id == id)


@pytest.fixture
def driver() -> Driver:
    return Driver(ToyRunner(AT_ONCE, 64))


def test_an_answer_is_the_formula_of_its_prompt_and_counts_its_tokens(driver: Driver) -> None:
    driver.post("a", "hello", SamplingParams(max_tokens=12))
    driver.post("b", "bye", SamplingParams(max_tokens=7))
    driver.run("a", "b")
    assert driver.text("a") == toy_text("hello", 12) != driver.text("b") == toy_text("bye", 7)
    end = driver.end("a")
    assert end is not None
    assert (end.finish_reason, end.usage) == (FinishReason.LENGTH, Usage(5, 12))
    assert sum(c.num_tokens for c in driver.chunks if c.request_id == "a") == 12


def test_without_max_tokens_the_answer_ends_with_the_context(driver: Driver) -> None:
    driver.post("a", "hello", SamplingParams())
    driver.run("a")
    assert driver.end("a").usage == Usage(5, 64 - 5)  # type: ignore[union-attr]


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(driver: Driver) -> None:
    whole = toy_text("hello", 30)
    stop = whole[7:11]
    driver.post("a", "hello", SamplingParams(max_tokens=30, stop=("never", stop)))
    driver.run("a")
    assert driver.text("a") == whole[: whole.index(stop)]
    assert driver.end("a").finish_reason is FinishReason.STOP  # type: ignore[union-attr]


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(driver: Driver) -> None:
    whole = toy_text("hello", 30)
    driver.post("a", "hello", SamplingParams(max_tokens=30, stop_token_ids=(ord(whole[9]), 1)))
    driver.run("a")
    assert driver.text("a") == whole[: whole.index(whole[9])]
    assert driver.end("a").finish_reason is FinishReason.STOP  # type: ignore[union-attr]


def test_text_held_back_for_a_stop_string_that_never_completes_comes_at_the_end(driver: Driver) -> None:
    whole = toy_text("hello", 8)
    driver.post("a", "hello", SamplingParams(max_tokens=8, stop=(whole[6:8] + "zzz",)))
    driver.run("a")
    assert driver.text("a") == whole


@pytest.mark.parametrize(
    ("prompt", "sampling", "named"),
    [
        (b"", SamplingParams(), "empty"),
        (b"x" * 64, SamplingParams(), "64 tokens"),
        (b"x" * 60, SamplingParams(max_tokens=5), "at most 4"),
        (b"x" * 65, SamplingParams(max_tokens=0, echo=True), "65 tokens"),
        (b"x", SamplingParams(max_tokens=5, min_tokens=6), "min_tokens is 6, and max_tokens only 5"),
        (b"x", SamplingParams(logit_bias=((3, 1.0), (256, 1.0))), "logit_bias names token 256"),
        (b"x", SamplingParams(stop_token_ids=(300,)), "stop_token_ids names token 300"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(prompt: bytes, sampling: SamplingParams, named: str) -> None:
    driver = Driver(ToyRunner(AT_ONCE, 64))
    driver.post("a", prompt, sampling)
    driver.run("a")
    error = driver.end("a").error  # type: ignore[union-attr]
    assert isinstance(error, InvalidRequest)
    assert named in error.message


def test_token_ids_outside_the_vocabulary_are_refused(driver: Driver) -> None:
    driver.engine.post(Sequence("a", [1, 256], SamplingParams()))
    driver.run("a")
    assert isinstance(driver.end("a").error, InvalidRequest)  # type: ignore[union-attr]


def test_an_aborted_sequence_gets_no_further_step_and_frees_its_slot(driver: Driver) -> None:
    driver.post("a", "hello", SamplingParams(max_tokens=50))
    driver.engine.turn()
    driver.engine.abort("a")
    driver.run("a")
    assert driver.end("a").finish_reason is FinishReason.ABORT  # type: ignore[union-attr]
    assert sum(c.num_tokens for c in driver.chunks) == 1
    assert driver.engine.load().running == 0


def test_what_is_past_its_deadline_ends_with_a_504_and_gets_no_further_step() -> None:
    now = [0.0]
    chunks: list[Chunk] = []
    engine = Engine(ToyRunner(AT_ONCE, 64), chunks.extend, clock=lambda: now[0])
    engine.post(Sequence("late", list(b"hello"), SamplingParams(max_tokens=50), deadline_s=5.0))
    engine.post(Sequence("patient", list(b"hello"), SamplingParams(max_tokens=50), deadline_s=100.0))
    engine.turn()
    now[0] = 5.0
    engine.turn()
    end = next(c for c in chunks if c.request_id == "late" and c.finish_reason)
    assert isinstance(end.error, DeadlineExceeded)
    assert "after 1 tokens" in end.error.message
    assert sum(c.num_tokens for c in chunks if c.request_id == "late") == 1
    assert sum(c.num_tokens for c in chunks if c.request_id == "patient") == 2


def test_the_deadline_of_an_ended_sequence_is_nobodys() -> None:
    now = [0.0]
    chunks: list[Chunk] = []
    engine = Engine(ToyRunner(AT_ONCE, 64), chunks.extend, clock=lambda: now[0])
    engine.post(Sequence("quick", list(b"hello"), SamplingParams(max_tokens=1), deadline_s=5.0))
    engine.turn()
    now[0] = 6.0
    engine.post(Sequence("next", list(b"hello"), SamplingParams(max_tokens=1)))
    engine.turn()
    assert [(c.request_id, c.finish_reason) for c in chunks] == [
        ("quick", FinishReason.LENGTH),
        ("next", FinishReason.LENGTH),
    ]


def test_an_abort_of_an_unknown_sequence_is_ignored(driver: Driver) -> None:
    driver.engine.abort("nobody")
    driver.post("a", "hello", SamplingParams(max_tokens=1))
    driver.run("a")
    assert driver.text("a") == toy_text("hello", 1)


def test_exactly_the_told_share_of_requests_fails() -> None:
    driver = Driver(ToyRunner(ToySettings(step_s=0, fail_rate=0.3), 64))
    ids = [str(i) for i in range(100)]
    for id in ids:
        driver.post(id, "x", SamplingParams(max_tokens=1))
    driver.run(*ids)
    assert sum(c.finish_reason is FinishReason.ERROR for c in driver.chunks) == 30


def test_a_step_that_raises_ends_its_sequences_and_not_the_engine() -> None:
    class FailsOnce(ToyRunner):
        has_failed = False

        def forward(self, step: Step) -> ToyLogits:
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("out of memory")
            return super().forward(step)

    driver = Driver(FailsOnce(AT_ONCE, 64))
    driver.post("a", "hello", SamplingParams(max_tokens=3))
    driver.run("a")
    error = driver.end("a").error  # type: ignore[union-attr]
    assert isinstance(error, EngineFailure)
    assert "out of memory" in error.message
    driver.post("b", "hello", SamplingParams(max_tokens=3))
    driver.run("b")
    assert driver.text("b") == toy_text("hello", 3)


def test_a_multi_byte_character_is_never_broken() -> None:
    detokenizer = ToyDetokenizer()
    pieces = [detokenizer.push(byte) for byte in "né€😀".encode()]
    assert "".join(pieces) == "né€😀"
    assert pieces == ["n", "", "é", "", "", "€", "", "", "", "😀"]


def test_an_unfinished_character_at_the_end_is_a_replacement_sign() -> None:
    detokenizer = ToyDetokenizer()
    assert detokenizer.push("é".encode()[0]) == ""
    assert detokenizer.flush() == "�"


def test_stop_strings_hold_back_no_more_than_they_must() -> None:
    stop = StopStrings(("END", "\n\n"))
    assert [stop.push(t) for t in ("ab", "cE", "N", "x\n", "y\n", "\nz")] == [
        ("ab", False),
        ("c", False),
        ("", False),
        ("ENx", False),
        ("\ny", False),
        ("", True),
    ]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("toy:speed=3", "step_s"),
        ("toy:step_s=fast", "'fast'"),
        ("toy:step_s=-1", "'-1'"),
        ("toy:fail_rate=2", "0 to 1"),
        ("toy:step_s=nan", "'nan'"),
    ],
)
def test_a_wrong_toy_setting_is_named(model: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        ToySettings.parse(model)


def test_a_toy_without_settings_has_the_documented_ones() -> None:
    assert ToySettings.parse("toy:") == ToySettings(0.01, 0.0, 0.0, 1_000_000, 0.0)
    assert ToySettings.parse("toy:step_s=0.5,bytes=10") == ToySettings(step_s=0.5, bytes=10)


class AcceleratorError(RuntimeError):
    """Of this name is torch's."""


def test_an_engine_whose_gpu_is_lost_ends_and_one_that_is_only_out_of_memory_does_not(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an access out of bounds CUDA gives every call the same error: only another process can go on."""
    faults: list[Exception] = [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("mat1 and mat2 do not fit"),
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),  # as older releases of torch say it
    ]

    def fail(step: Step) -> ToyLogits:
        raise faults.pop(0)

    monkeypatch.setattr(driver.engine.runner, "forward", fail)
    for id in ("a", "b", "c"):
        driver.post(id, "hello", SamplingParams(max_tokens=2))
        driver.run(id)
        end = driver.end(id)
        assert end is not None
        assert isinstance(end.error, EngineFailure)
    for id in ("d", "e"):
        driver.post(id, "hello", SamplingParams(max_tokens=2))
        with pytest.raises(RuntimeError, match="CUDA error"):
            driver.engine.run()
