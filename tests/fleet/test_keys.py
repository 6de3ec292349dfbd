"""Keys as numbers: what is let in, what is refused, and what comes back when a call has ended."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from jupyter_dsserve.fleet.keys import Grant, Keys, Reservation, StoredKey, new_key
from jupyter_dsserve.protocol.errors import InvalidRequest, NotFound, TooManyRequests, Unauthorized
from jupyter_dsserve.protocol.records import ApiKey
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, SamplingParams, Usage

KEY = ApiKey("", "app")


def asking(max_tokens: int, prompt: str = "x" * 36, priority: int = 0) -> Request:
    """Its prompt is ten tokens, as estimated."""
    return Request("r", prompt, SamplingParams(max_tokens=max_tokens), priority)


def grant(**limits: float) -> Grant:
    return Grant(replace(KEY, **limits), 0.0)  # type: ignore[arg-type]


async def chunks(*told: Chunk) -> AsyncGenerator[tuple[int, Chunk], None]:
    for chunk in told:
        yield 0, chunk


def test_a_key_is_long_and_random_and_only_its_digest_is_kept() -> None:
    made = [new_key(KEY) for _ in range(100)]
    assert len({created.key for created, _ in made}) == len({stored.key.id for _, stored in made}) == 100
    for created, stored in made:
        assert created.key.startswith("dsk_")
        assert len(created.key) >= 4 + 256 / 6
        assert stored.digest == hashlib.sha256(created.key.encode()).hexdigest()
        assert created.key not in repr((created, stored))


def test_what_is_written_down_is_read_again() -> None:
    full = ApiKey("", "app", "infer", ("demo", "other"), 2.5, 4, 100, 3, 7, 12.5, 99.0)
    for wanted in (KEY, full):
        _, stored = new_key(wanted)
        assert StoredKey.read(stored.key.id, stored.digest, stored.grants() | {"of_a_newer_gateway": 1}) == stored


def test_only_a_key_that_is_held_opens_anything_and_a_revoked_one_nothing() -> None:
    keys = Keys()
    (created, stored), (other, _) = new_key(KEY), new_key(KEY)
    keys.add(stored, 0.0)
    assert keys.grant(created.key, at=1e9).key == stored.key
    for wrong in (other.key, created.key[:-1], created.key + "x", "", "dsk_", stored.digest, "dsk_\xe9"):
        with pytest.raises(Unauthorized, match="not valid here"):
            keys.grant(wrong, at=1e9)
    keys.remove(stored.key.id)
    with pytest.raises(Unauthorized):
        keys.grant(created.key, at=1e9)
    with pytest.raises(NotFound, match="no key with the id"):
        keys.remove(stored.key.id)


def test_an_expired_key_is_refused_from_its_second_on_and_says_so() -> None:
    keys = Keys()
    created, stored = new_key(replace(KEY, expires_at=1000.0))
    keys.add(stored, 0.0)
    keys.grant(created.key, at=999.9)
    with pytest.raises(Unauthorized, match=rf"'app' \(id {stored.key.id}\) has expired 3 hours ago"):
        keys.grant(created.key, at=1000.0 + 3 * 3600)
    with pytest.raises(Unauthorized):
        keys.grant(created.key, at=1000.0)


def test_a_model_outside_the_list_is_refused_in_the_same_words_whether_it_exists_or_not() -> None:
    found = Grant(replace(KEY, deployments=("demo",)), 0.0)
    found.check("demo")
    found.check("demo@v7")
    for model in ("other", "other@v1", "demo2", ""):
        with pytest.raises(NotFound, match=f"model '{model}' is not one that this key may ask: it may ask demo$"):
            found.check(model)
    grant().check("anything")


def test_calls_beyond_rate_and_burst_wait_for_their_token() -> None:
    limited = grant(rate=2.0, burst=3)
    for _ in range(3):
        limited.admit([asking(1)], 10.0)
    with pytest.raises(TooManyRequests, match=r"2 calls a second and 3 at once: ask again in 0\.5 s") as refused:
        limited.admit([asking(1)], 10.0)
    assert refused.value.retry_after_s == 1
    limited.admit([asking(1)], 10.5)


def test_concurrency_counts_calls_that_run_and_a_settled_one_makes_room_once() -> None:
    limited = grant(concurrency=2)
    first, _ = limited.admit([asking(1)], 0.0), limited.admit([asking(1), asking(1)], 0.0)
    with pytest.raises(TooManyRequests, match="2 calls with this key run already"):
        limited.admit([asking(1)], 0.0)
    first.settle()
    first.settle()
    assert limited.in_flight == 1
    limited.admit([asking(1)], 0.0)


async def test_what_was_reserved_and_not_used_comes_back() -> None:
    limited = grant(tokens_per_min=100)
    call = limited.admit([asking(90)], 0.0)  # 10 + 90: all there is
    with pytest.raises(TooManyRequests, match=r"100 tokens a minute, and the call may take 11: ask again in 60\.0 s"):
        limited.admit([asking(1)], 0.0)
    done = Chunk("r", "a", 5, FinishReason.STOP, Usage(8, 12))
    assert [chunk async for _, chunk in call.counted(chunks(done))] == [done]
    call.settle()
    limited.admit([asking(70)], 0.0)  # 80 were free again
    with pytest.raises(TooManyRequests):
        limited.admit([asking(1)], 0.0)


async def test_an_answer_that_its_caller_left_counts_with_what_came_of_it() -> None:
    limited = grant(tokens_per_min=100)
    call = limited.admit([asking(90)], 0.0)
    call.begin()
    answer = call.counted(chunks(Chunk("r", "a", 30), Chunk("r", "b", 60)))
    await anext(answer)
    await answer.aclose()
    call.settle()
    limited.admit([asking(50)], 0.0)  # 10 + 30 are used
    with pytest.raises(TooManyRequests):
        limited.admit([asking(1)], 0.0)


async def test_what_was_used_beyond_the_reservation_is_missing_from_the_next_minute() -> None:
    limited = grant(tokens_per_min=60)
    call = limited.admit([asking(10)], 0.0)
    async for _ in call.counted(chunks(Chunk("r", "a", 1, FinishReason.STOP, Usage(100, 10)))):
        pass
    call.settle()
    with pytest.raises(TooManyRequests, match=r"ask again in 59\.0 s"):
        limited.admit([asking(1)], 1.0)
    limited.admit([asking(1)], 60.0)


@pytest.mark.parametrize(("limit", "num_tokens"), [("rate", 20), ("tokens_per_min", 200)])
async def test_ten_times_a_keys_load_over_two_minutes_lets_through_what_the_limits_say(
    limit: str, num_tokens: int
) -> None:
    """5 calls a second and 10,000 tokens a minute; each call uses four fifths of what it reserves, a second later."""
    limited = grant(rate=5.0, burst=5, tokens_per_min=10_000)
    step_s = 1 / 50 if limit == "rate" else num_tokens / (10 * 10_000 / 60)
    let_in: list[tuple[float, int]] = []
    running: list[tuple[float, Reservation, int]] = []
    for number in range(round(120 / step_s)):
        now = number * step_s
        while running and running[0][0] <= now:
            _, call, used = running.pop(0)
            async for _ in call.counted(chunks(Chunk("r", "a", 1, FinishReason.STOP, Usage(0, used)))):
                pass
            call.settle()
        try:
            call = limited.admit([asking(round(num_tokens * 1.25) - 10)], now)
        except TooManyRequests:
            continue
        running.append((now + 1, call, num_tokens))
        let_in.append((now, num_tokens))
    if limit == "rate":
        assert len(let_in) == pytest.approx(5 * 120, rel=0.05)
    else:
        assert sum(num for _, num in let_in) == pytest.approx(10_000 * 2, rel=0.05)
    for begun, _ in let_in:
        assert sum(num for at, num in let_in if begun <= at < begun + 60) <= 10_000


def test_a_call_that_never_began_costs_no_tokens() -> None:
    limited = grant(tokens_per_min=100)
    limited.admit([asking(90)], 0.0).settle()
    limited.admit([asking(90)], 0.0)


def test_a_caller_that_left_before_any_answer_pays_for_the_prompt_and_one_that_is_refused_pays_nothing() -> None:
    limited = grant(tokens_per_min=100)
    call = limited.admit([asking(90)], 0.0)
    call.begin()
    call.refused()
    call.settle()
    call = limited.admit([asking(90)], 0.0)
    call.begin()
    call.settle()
    with pytest.raises(TooManyRequests):
        limited.admit([asking(81)], 0.0)
    limited.admit([asking(80)], 0.0)  # the prompt's 10 are used


def test_a_refused_call_takes_nothing() -> None:
    limited = grant(tokens_per_min=100, rate=1.0)
    limited.admit([asking(10)], 0.0)
    for _ in range(5):
        with pytest.raises(TooManyRequests, match="calls a second"):
            limited.admit([asking(10)], 0.0)
    limited.admit([asking(70)], 1.0)
    assert limited.in_flight == 2


def test_a_call_that_can_never_fit_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequest, match="may take 101 tokens, and this key has 100 a minute"):
        grant(tokens_per_min=100).admit([asking(91)], 0.0)


def test_requests_never_go_before_the_keys_priority() -> None:
    limited = grant(priority=5)
    assert [r.priority for r in limited.limited([asking(1, priority=p) for p in (-100, 0, 5, 6)])] == [5, 5, 5, 6]
    assert [r.priority for r in grant().limited([asking(1, priority=-1)])] == [0]
