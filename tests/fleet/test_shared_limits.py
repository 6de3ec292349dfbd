"""Limits that gateways share in a real Redis: together they let in what one would, and alone when it is gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jupyter_dsserve.fleet import shared_limits
from jupyter_dsserve.fleet.keys import Grant, Reservation
from jupyter_dsserve.fleet.shared_limits import SharedLimits
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict, TooManyRequests
from jupyter_dsserve.protocol.records import ApiKey
from jupyter_dsserve.protocol.request import Request, SamplingParams
from tests.redis_server import PASSWORD, RedisServer, running
from tests.support import Caller

SAID: list[tuple[str, str]] = []
USUAL_ANSWER_S, ANSWER_S = shared_limits._ANSWER_S, 1.5  # a call is known again for 5 s


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        if server is None:
            pytest.skip("Redis is not installed here: apt-get install redis-server")
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Redis itself may stand still for a moment: most of these tests are not about that."""
    monkeypatch.setattr(shared_limits, "_ANSWER_S", ANSWER_S)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of these tests."""
    monkeypatch.setattr(shared_limits, "_ANSWER_S", USUAL_ANSWER_S)


@pytest.fixture
async def two(redis: RedisServer) -> AsyncIterator[tuple[SharedLimits, SharedLimits]]:
    """Those of two gateways."""
    SAID.clear()
    first, second = (SharedLimits(redis.url, lambda kind, reason: SAID.append((kind, reason))) for _ in range(2))
    yield first, second
    await first.close()
    await second.close()


class Line:
    """Between a gateway and Redis; ``faults`` befall the scripts that are asked next."""

    def __init__(self, redis: RedisServer, socket: Path) -> None:
        self.faults: list[str | float] = []
        self.num_connections = 0
        self.url = redis.url.replace(str(redis.socket), str(socket))
        self._redis, self._socket = redis.socket, socket

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        answers, asks = await asyncio.open_unix_connection(self._redis)
        with suppress(OSError):
            while asked := await reader.read(65536):
                asks.write(asked)
                fault = self.faults.pop(0) if b"EVALSHA" in asked and self.faults else 0.0
                answer = await answers.read(65536)
                if fault == "lost":
                    break
                if fault == "stall":
                    time.sleep(1.5 * ANSWER_S)  # noqa: ASYNC251 - that is it
                elif isinstance(fault, float):
                    await asyncio.sleep(fault)
                writer.write(answer)
        asks.close()
        writer.close()


@pytest.fixture
async def line(redis: RedisServer) -> AsyncIterator[Line]:
    async with Line(redis, redis.socket.with_name("line.sock")) as line:
        yield line


@pytest.fixture
async def afar(line: Line) -> AsyncIterator[SharedLimits]:
    """Those of a gateway at the other end of ``line``."""
    SAID.clear()
    limits = SharedLimits(line.url, lambda kind, reason: SAID.append((kind, reason)))
    yield limits
    await limits.close()


def grants(name: str, **limits: float) -> tuple[Grant, Grant]:
    """One key, as two gateways hold it."""
    first, second = (Grant(ApiKey(f"id-{i}", "app", **limits), time.monotonic(), name) for i in range(2))  # type: ignore[arg-type]
    return first, second


async def begun(limits: SharedLimits, grant: Grant, num_tokens: int = 10) -> Reservation:
    """A call that may take ``num_tokens``, of which the prompt counts as one."""
    request = Request("r", "", SamplingParams(max_tokens=num_tokens - 1))
    reservation = grant.admit([request], time.monotonic())
    try:
        await limits.take(reservation)
    except TooManyRequests:
        reservation.settle()
        raise
    reservation.begin()
    return reservation


async def test_two_gateways_let_in_together_what_one_would(two: tuple[SharedLimits, SharedLimits]) -> None:
    held = grants("rate", rate=0.01, burst=10)
    came = Counter[int]()
    refused: list[TooManyRequests] = []
    begun_s = time.monotonic()
    for number in range(40):
        side = number % 2
        try:
            await begun(two[side], held[side])
            came[side] += 1
        except TooManyRequests as fault:
            refused.append(fault)
    assert came == {0: 5, 1: 5}
    assert 100 - (time.monotonic() - begun_s) <= refused[-1].retry_after_s <= 100
    assert [grant.in_flight for grant in held] == [5, 5]


async def test_tokens_are_shared_and_what_was_not_used_is_free_for_the_other(
    two: tuple[SharedLimits, SharedLimits],
) -> None:
    here, there = grants("tokens", tokens_per_min=100)
    first = await begun(two[0], here, 60)
    with pytest.raises(TooManyRequests, match="100 tokens a minute") as refused:
        await begun(two[1], there, 60)
    assert 50 < refused.value.retry_after_s <= 60
    await begun(two[1], there, 40)
    first.refused()
    first.settle()
    await asyncio.gather(*two[0]._settling)
    await begun(two[1], there, 60)
    with pytest.raises(TooManyRequests):
        await begun(two[0], here, 2)


async def test_a_minute_later_all_of_it_is_free(
    two: tuple[SharedLimits, SharedLimits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "MINUTE_S", 4.0)
    here, there = grants("window", tokens_per_min=100)
    for _ in range(3):
        await begun(two[0], here, 30)
    with pytest.raises(TooManyRequests) as refused:
        await begun(two[1], there, 30)
    assert refused.value.retry_after_s <= 4
    await asyncio.sleep(4.1)
    await begun(two[1], there, 100)


async def test_a_call_refused_elsewhere_takes_nothing_here(two: tuple[SharedLimits, SharedLimits]) -> None:
    here, there = grants("back", rate=0.001, burst=2, tokens_per_min=100)
    await begun(two[0], here)
    await begun(two[0], here)
    for _ in range(5):
        with pytest.raises(TooManyRequests, match="at once"):
            await begun(two[1], there)
    alone = there.admit([Request("r", "", SamplingParams(max_tokens=99))], time.monotonic())
    assert alone.num_tokens == 100


async def test_when_redis_is_gone_each_gateway_holds_to_the_limits_by_itself_and_says_so(
    two: tuple[SharedLimits, SharedLimits], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = grants("gone", rate=0.001, burst=5)
    await begun(two[0], here)
    redis.stop()
    try:
        for _ in range(4):
            await begun(two[0], here)
        with pytest.raises(TooManyRequests):
            await begun(two[0], here)
        assert [kind for kind, _ in SAID] == ["limits_local"]
        assert PASSWORD not in str(SAID)
    finally:
        redis.start()
    monkeypatch.setattr(two[0], "_again_at", 0.0)
    await begun(two[0], grants("back again", rate=1)[0])
    assert [kind for kind, _ in SAID] == ["limits_local", "limits_shared"]


@pytest.mark.usefixtures("impatient")
async def test_a_redis_that_hangs_holds_up_one_call_for_a_moment(
    two: tuple[SharedLimits, SharedLimits], redis: RedisServer
) -> None:
    here, _ = grants("hangs", rate=100)
    await begun(two[0], here)
    os.kill(redis.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(20):
            await begun(two[0], here)
        assert time.monotonic() - started < 20 * USUAL_ANSWER_S
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)
    assert [kind for kind, _ in SAID] == ["limits_local"]


async def test_a_burst_waits_in_line_and_is_counted_as_a_whole(line: Line, afar: SharedLimits) -> None:
    line.faults = [0.2] * 200  # all of them take longer than one answer may
    held = grants("burst", rate=0.001, burst=100)
    came = await asyncio.gather(*(begun(afar, held[n % 2]) for n in range(200)), return_exceptions=True)
    assert sum(isinstance(one, Reservation) for one in came) == 100
    assert SAID == []
    assert line.num_connections <= 16


@pytest.mark.usefixtures("impatient")
async def test_a_call_that_waits_in_line_is_let_go_once_redis_is_lost(
    two: tuple[SharedLimits, SharedLimits], redis: RedisServer
) -> None:
    here, _ = grants("queue", rate=1000)
    await begun(two[0], here)
    os.kill(redis.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        await asyncio.gather(*(begun(two[0], here) for _ in range(480)))
        assert time.monotonic() - started < 480 / 16 * USUAL_ANSWER_S
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)
    assert [kind for kind, _ in SAID] == ["limits_local"]


async def test_an_event_loop_that_stood_still_has_not_lost_redis(line: Line, afar: SharedLimits) -> None:
    here, _ = grants("stall", rate=0.001, burst=2)
    await begun(afar, here)
    line.faults = ["stall"]
    await begun(afar, here)
    assert line.faults == []
    assert SAID == []


async def test_an_answer_from_before_redis_was_lost_does_not_say_that_it_is_back(
    line: Line, afar: SharedLimits
) -> None:
    here, _ = grants("before", rate=100)
    await begun(afar, here)
    line.faults = [0.15, "lost", "lost"]
    await asyncio.gather(*(begun(afar, here) for _ in range(2)))  # the second has to connect first
    assert line.faults == []
    assert [kind for kind, _ in SAID] == ["limits_local"]


@pytest.mark.parametrize("limits", [{"rate": 0.001, "burst": 2}, {"tokens_per_min": 20}], ids=["rate", "tokens"])
async def test_a_call_whose_answer_is_lost_is_counted_once(
    two: tuple[SharedLimits, SharedLimits], line: Line, afar: SharedLimits, limits: dict[str, float]
) -> None:
    here, there = grants(f"once {limits}", **limits)
    await begun(two[0], here)  # the script is known
    line.faults = ["lost"]
    await begun(afar, there)
    assert line.faults == []
    with pytest.raises(TooManyRequests):
        await begun(two[0], here)
    assert SAID == []


def test_a_url_that_is_none_is_refused_without_being_told(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"http://:{PASSWORD}@nowhere\n")
    for url in (f"http://:{PASSWORD}@nowhere", f"redis://:{PASSWORD}@nowhere:port", f"@{tmp_path}/url", "@/no/file"):
        with pytest.raises(Conflict) as refused:
            SharedLimits(url, lambda *_: None)
        assert PASSWORD not in refused.value.message


async def test_two_gateways_with_one_key_answer_together_as_many_calls_as_it_may_make(
    redis: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(redis.url)

    def gateway(name: str) -> Gateway:
        return Gateway(GatewayConfig(tmp_path / name, port=0, drain_s=1, limits_url=f"@{tmp_path}/url"))

    first = gateway("first")
    await first.start()
    async with Caller(first.url, first.admin_key) as admin:
        await admin.load("demo", "v1", "toy:step_s=0")
        key = (await admin.post("/api/keys", json={"name": "app", "rate": 0.01, "burst": 6})).json()["key"]
    await first.stop()
    own = shutil.ignore_patterns("gateway.lock", "gateway.id")
    shutil.copytree(tmp_path / "first", tmp_path / "second", ignore=own)
    both = [gateway("first"), gateway("second")]
    assert both[0].context.id != both[1].context.id
    for each in both:
        await each.start()
    try:
        statuses = Counter[int]()
        for each in both:
            async with Caller(each.url, each.admin_key) as admin, Caller(each.url, key) as app:
                await admin.settled("demo", "v1")
                for _ in range(4):
                    answer = await app.complete()
                    statuses[answer.status_code] += 1
        assert statuses == {200: 6, 429: 2}
        assert int(answer.headers["Retry-After"]) >= 1
        assert "6 at once" in answer.json()["error"]["message"]
    finally:
        with suppress(Exception):
            for each in both:
                await each.stop()
