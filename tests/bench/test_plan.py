"""What people write becomes a plan, or an error that says how to write it."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_dsserve.bench.plan import Lengths, Load, Plan, Slo
from jupyter_dsserve.protocol.errors import InvalidRequest


def test_a_sweep_is_read_from_text_numbers_or_sequences() -> None:
    assert Plan.read(concurrency="1,4,16").loads == [Load("concurrency", n) for n in (1, 4, 16)]
    assert Plan.read(concurrency=[1, 4]).loads == [Load("concurrency", 1), Load("concurrency", 4)]
    assert Plan.read(rate=2.5).loads == [Load("rate", 2.5)]
    assert Plan.read(rate="0.5,2", concurrency="").loads == [Load("rate", 0.5), Load("rate", 2)]
    assert [load.value for load in Plan.read().loads] == [1, 4, 16]


def test_lengths_and_limits_are_read_and_written_the_same() -> None:
    for text in ("128", "16-256", "lognormal:64:0.8:16-256"):
        assert str(Lengths.read(text)) == text
    assert Plan.read(prompt_tokens=32).prompt_tokens == Lengths("fixed", 32, 32)
    assert Slo.read("per_token_s=0.05, first_token_s=0.5") == Slo(0.5, 0.05)
    assert str(Slo(0.5, None, 3)) == "first_token_s=0.5,latency_s=3"
    assert Plan.read(slo={"latency_s": 2}).slo == Slo(latency_s=2)


def test_what_is_left_out_or_empty_is_the_default() -> None:
    assert Plan.read(seconds=None, slo="", concurrency="", rate="", ignore_eos=None) == Plan.read()
    assert (Plan.read().seconds, Plan.read(seconds=0).seconds, Plan.read(requests=5).seconds) == (10, 10, 600)
    assert Plan.read(requests=5, seconds=3).seconds == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": "1,x"}, "concurrency 'x': give a whole number over 0"),
        ({"concurrency": 0}, "concurrency 0: "),
        ({"concurrency": 99_999}, "at most 4096"),
        ({"rate": "nan"}, "rate 'nan'"),
        ({"rate": 1, "concurrency": 1}, "give one of them"),
        ({"seconds": -1}, "seconds -1"),
        ({"prompt_tokens": "9-3"}, "lengths '9-3': write"),
        ({"prompt_tokens": 0}, "lengths '0'"),
        ({"output_tokens": "lognormal:64:0.8"}, "lognormal:64:0.8:16-256"),
        ({"output_tokens": "lognormal:0:1:1-9"}, "lognormal"),
        ({"slo": "first_tokens_s=1"}, "did you mean first_token_s?"),
        ({"slo": "latency_s=0"}, "slo '0'"),
        ({"second": 3}, "did you mean seconds?"),
    ],
)
def test_what_cannot_be_is_said_with_how_to_write_it(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Plan.read(**given)
    assert said in refused.value.message
