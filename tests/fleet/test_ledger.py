"""The books of memory: who is next, where a replica goes, and what it gets. Pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyter_dsserve.fleet.ledger import Claim, Queued, Room, in_order, place, seats, why_never
from jupyter_dsserve.fleet.need import UNLIMITED, Need
from jupyter_dsserve.protocol.config import AdmissionSettings, Priority
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.sizes import bytes_of, shown
from jupyter_dsserve.protocol.spec import WorkerSpec

SETTINGS = AdmissionSettings()


def claim(need: Need | int, priority: Priority = "high", name: str = "demo@v1#0", **more: object) -> Claim:
    need = Need(need) if isinstance(need, int) else need
    return Claim(name, name.partition("#")[0], need, priority, **more)  # type: ignore[arg-type]


def cpu(capacity: int, free: int | None = None) -> list[Room]:
    return [Room("cpu", capacity, capacity if free is None else free)]


def gpus(*free: int, capacity: int = 100) -> list[Room]:
    return [*cpu(1000), *(Room(f"cuda:{i}", capacity, each) for i, each in enumerate(free))]


# ---- the line


def names(*line: tuple[str, Priority, float]) -> list[str]:
    queued = [Queued(claim(1, priority, name), since) for name, priority, since in line]
    return [q.claim.replica for q in in_order(queued, SETTINGS)]


def test_a_higher_class_goes_first_and_within_a_class_who_came_first() -> None:
    line = ("a", "low", 0.0), ("b", "medium", 1.0), ("c", "high", 2.0), ("d", "high", 3.0), ("e", "medium", 4.0)
    assert names(*line) == ["c", "d", "b", "e", "a"]


def test_who_has_waited_long_enough_is_before_every_newcomer() -> None:
    age = SETTINGS.ageing_s
    assert names(("old", "low", 0.0), ("new", "high", 2 * age - 1)) == ["new", "old"]
    assert names(("old", "low", 0.0), ("new", "high", 2 * age + 1)) == ["old", "new"]
    assert names(("old", "medium", 0.0), ("new", "high", age + 1)) == ["old", "new"]


# ---- shares


@pytest.mark.parametrize(("priority", "most"), [("high", 80), ("medium", 50), ("low", 30)])
def test_a_version_gets_no_more_than_the_share_of_its_class(priority: Priority, most: int) -> None:
    assert place(claim(most, priority), cpu(100), SETTINGS)
    assert not place(claim(most + 1, priority), cpu(100), SETTINGS)
    assert why_never(claim(most, priority), cpu(100), SETTINGS) == ""
    why = why_never(claim(most + 1, priority), cpu(100), SETTINGS)
    assert f"needs {most + 1} B" in why
    assert f"priority {priority} may take {most}% of a device: {most} B of the 100 B" in why


def test_the_share_is_of_all_replicas_of_a_version_together() -> None:
    assert place(claim(40, version_bytes={"cpu": 40}), cpu(100, 60), SETTINGS)
    assert not place(claim(41, version_bytes={"cpu": 40}), cpu(100, 60), SETTINGS)
    assert why_never(claim(40, num_to_come=2), cpu(100), SETTINGS) == ""
    assert "each of 3 replicas, of which 2 fit" in why_never(claim(40, num_to_come=3), cpu(100), SETTINGS)


def test_what_is_not_free_is_not_given() -> None:
    assert place(claim(30), cpu(100, 30), SETTINGS)
    assert not place(claim(31), cpu(100, 30), SETTINGS)


# ---- places


@pytest.mark.parametrize(
    ("device", "num_ranks", "free", "found"),
    [
        ("auto", 1, (50, 60, 40), "cuda:1"),  # where most is free
        ("cuda:2", 1, (90, 90, 40), "cuda:2"),
        ("cuda:2", 1, (90, 90, 10), None),  # its own is full, whatever is free elsewhere
        ("auto", 2, (60, 10, 50, 50), "cuda:2"),  # the group whole, on neighbours
        ("auto", 2, (60, 10, 60, 10), None),  # or not at all
        ("cuda:0", 2, (60, 50, 99, 99), "cuda:0"),
        ("cpu", 1, (99, 99), "cpu"),
    ],
)
def test_a_group_is_placed_whole_on_neighbouring_gpus_that_have_room(
    device: str, num_ranks: int, free: tuple[int, ...], found: str | None
) -> None:
    asked = claim(Need(40 * num_ranks, num_ranks=num_ranks), device=device)
    grant = place(asked, gpus(*free), SETTINGS)
    assert (grant and grant.device) == found
    if grant and device != "cpu":
        first = int(found[-1]) if found else 0
        assert grant.parts == {f"cuda:{first + rank}": 40 for rank in range(num_ranks)}


def test_ranks_on_a_cpu_take_their_memory_together() -> None:
    grant = place(claim(Need(60, num_ranks=2)), cpu(100), SETTINGS)
    assert grant
    assert grant.parts == {"cpu": 60}


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    assert seats(claim(1, device="cuda:7"), ["cpu", "cuda:0"]) == []
    assert "wants cuda:7, and this machine has cpu, cuda:0" in why_never(claim(1, device="cuda:7"), gpus(9), SETTINGS)
    assert "for 3 ranks" in why_never(claim(Need(1, num_ranks=3), device="cuda:0"), gpus(9, 9), SETTINGS)


def test_offloaded_weights_are_held_of_ram_too() -> None:
    need = Need(10, host_bytes=500)
    grant = place(claim(need), gpus(50), SETTINGS)
    assert grant
    assert grant.parts == {"cuda:0": 10, "cpu": 500}
    assert not place(claim(need), [*cpu(1000, 499), Room("cuda:0", 100, 50)], SETTINGS)


def test_replicas_spread_over_gpus() -> None:
    assert why_never(claim(60, num_to_come=3), gpus(0, 0, 0), SETTINGS) == ""
    assert "of which 3 fit" in why_never(claim(60, num_to_come=4), gpus(0, 0, 0), SETTINGS)


# ---- the KV cache


def kv(need: Need, room: int, **more: object) -> int | None:
    grant = place(claim(need, **more), cpu(1000, room), SETTINGS)
    return grant.kv_bytes if grant else None


def test_a_kv_cache_gets_half_of_what_is_left_and_no_more_than_it_can_fill() -> None:
    need = Need(100, kv_least_bytes=10, kv_most_bytes=400)
    assert kv(need, 310) == 10 + 100
    assert kv(need, 800) == 10 + 345
    assert kv(replace(need, kv_most_bytes=50), 800) == 50
    assert kv(replace(need, kv_most_bytes=UNLIMITED), 800) == 10 + 345
    assert kv(need, 110) == 10
    assert kv(need, 109) is None


def test_the_first_of_several_replicas_leaves_the_others_their_least() -> None:
    need = Need(100, kv_least_bytes=10, kv_most_bytes=UNLIMITED)
    rooms, held = 330, 0
    for to_come in (3, 2, 1):
        grant = place(claim(need, num_to_come=to_come, version_bytes={"cpu": held}), cpu(1000, rooms - held), SETTINGS)
        assert grant, f"{to_come} replicas had no place any more"
        held += grant.parts["cpu"]


def test_what_a_load_takes_for_a_while_is_asked_for_too() -> None:
    need = Need(30, kv_least_bytes=10, kv_most_bytes=15, load_bytes=100)
    assert place(claim(need), cpu(1000, 99), SETTINGS) is None
    grant = place(claim(need), cpu(1000, 100), SETTINGS)
    assert grant
    assert (grant.parts, grant.kv_bytes) == ({"cpu": 100}, 10)
    roomy = place(claim(replace(need, kv_most_bytes=400)), cpu(1000, 500), SETTINGS)
    assert roomy
    assert (roomy.parts, roomy.kv_bytes) == ({"cpu": 30 + 210}, 210)
    why = why_never(claim(need), cpu(110), SETTINGS)
    assert "needs 100 B as it loads, then 40 B (at least 10 B of it for the KV cache)" in why


def test_a_worker_is_told_its_kv_cache_and_its_gpu() -> None:
    spec = WorkerSpec("m")
    need = Need(10, kv_least_bytes=5, kv_most_bytes=9, tells_kv=True)
    first, second = place(claim(need), gpus(90, 10), SETTINGS), place(claim(need), gpus(10, 90), SETTINGS)
    assert first
    assert second
    assert (first.told(spec).kv_bytes, first.told(spec).device) == (9, "auto")
    assert second.told(spec).device == "cuda:1"
    own = place(claim(replace(need, tells_kv=False)), cpu(100), SETTINGS)
    assert own
    assert own.told(spec) == spec


# ---- words and settings


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("4GiB", 4 << 30), ("1.5G", 3 << 29), ("800 MB", 800_000_000), ("512mib", 512 << 20), ("10", 10), ("", 0)],
)
def test_an_amount_of_memory_is_read(text: str, num_bytes: int) -> None:
    assert bytes_of(text) == num_bytes


@pytest.mark.parametrize("text", ["4 apples", "-1GiB", "GiB", "1iB", "1e9"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="write one such as 4GiB"):
        bytes_of(text)


def test_amounts_are_shown_short() -> None:
    assert [shown(n) for n in (900, 5_000_000, 200 << 20, 12 << 30)] == ["900 B", "4.8 MiB", "200 MiB", "12.0 GiB"]


def test_settings_of_admission_are_read_by_name() -> None:
    assert AdmissionSettings.read({"max_wait_s": "60", "share_low": 0.2}) == replace(
        SETTINGS, max_wait_s=60, share_low=0.2
    )
    for given, said in (({"max_wait": 1}, "max_wait_s"), ({"share_low": 2}, "from 0 to 1"), ({"stall_s": "x"}, "'x'")):
        with pytest.raises(InvalidRequest, match=said):
            AdmissionSettings.read(given)
