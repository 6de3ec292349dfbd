"""Bodies of the Open Inference Protocol, and regions of shared memory, without a server."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jupyter_dsserve.gateway.v2 import peers, regions, shared_memory
from jupyter_dsserve.gateway.v2.regions import Region, Regions
from jupyter_dsserve.gateway.v2.wire import InputTensor, Place, answered, inflated, read_infer, read_tensors
from jupyter_dsserve.protocol.errors import (
    Conflict,
    DSServeError,
    Forbidden,
    InvalidRequest,
    NotFound,
    TooLarge,
    TooManyRequests,
)
from jupyter_dsserve.protocol.tensors import Tensor

X = np.array([[1.5, 2.0]], np.float32)


def no_region(place: Place) -> bytes:
    raise AssertionError(f"{place} was read")


def an_input(name: str = "x", datatype: str = "FP32", shape: Any = (1, 2), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def raw(name: str = "x", size: int = 8, **more: Any) -> dict[str, Any]:
    return an_input(name, parameters={"binary_data_size": size}, **more)


def read(inputs: list[dict[str, Any]], *parts: bytes) -> list[Tensor]:
    head = json.dumps({"inputs": inputs}).encode()
    return read_tensors(*read_infer(b"".join((head, *parts)), str(len(head))), no_region)


def test_raw_tensors_follow_the_json_in_their_order() -> None:
    text = Tensor.of_bytes("t", [b"ab", b""])
    found = read(
        [
            raw(),
            an_input("j", "INT8", (2,), data=[1, -1]),
            raw("t", len(text.data), datatype="BYTES", shape=(2,)),
            raw("h", 4, datatype="BF16", shape=(2,)),
        ],
        X.tobytes(),
        text.data,
        b"\xc0\x3f\x00\x40",
    )
    assert [t.name for t in found] == ["x", "j", "t", "h"]
    assert (found[0].array() == X).all()
    assert found[1].array().tolist() == [1, -1]
    assert found[2].elements() == [b"ab", b""]
    assert found[3].array().tolist() == [1.5, 2.0]


def test_bytes_may_be_json_too() -> None:
    for data in (["a", "ü"], [["a"], ["ü"]]):
        (found,) = read([an_input("t", "BYTES", (2, 1), data=data)])
        assert (found.shape, found.elements()) == ((2, 1), [b"a", "ü".encode()])


@pytest.mark.parametrize(
    ("inputs", "rest", "words"),
    [
        ([raw(size=9)], b"\0" * 8, "input 'x': binary_data_size is 9, and 8 bytes are left"),
        ([raw(size=4)], b"\0" * 4, "tensor 'x' has 4 bytes, but FP32 of shape \\[1, 2\\] takes 8"),
        ([raw()], b"\0" * 9, "1 bytes after the JSON belong to no input"),
        ([raw(), raw("y")], b"\0" * 12, "input 'y': binary_data_size is 8, and 4 bytes"),
        ([an_input()], b"", "input 'x': send one of data, binary_data_size and shared_memory_region"),
        ([raw(data=[1.0, 2.0])], b"\0" * 8, "input 'x': send one of data"),
        ([raw(size=2, datatype="BOOL")], b"\1\2", "input 'x': raw BOOL has bytes other"),
        ([raw(size=0, shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1))], b"", "tensor 'x' cannot have the shape"),
        ([an_input(parameters={"shared_memory_region": "r"})], b"", "tensor 'x' has one of shared_memory_region"),
        (
            [an_input(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 2**30 + 1})],
            b"",
            "input 'x': the call's shared memory is over",
        ),
        ([an_input("t", "BYTES", (2,), data=["a", 1])], b"", "input 't': data holds other things than BYTES"),
        ([an_input("t", "BYTES", (2,), data=["a"])], b"", "input 't': data has the shape \\[1\\]"),
        ([an_input("t", "BYTES", (2,), data=[["a"], "b"])], b"", "input 't': data is nested unevenly|other things"),
        ([an_input("t", "BF16", (1,), data=[1e39])], b"", "input 't': data has numbers too large for BF16"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(inputs: list[dict[str, Any]], rest: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read(inputs, rest)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["a" * 50_000] + ["b"] * 1000, "input 'x': data holds other things than FP32"),
        ([["a" * 50_000]] + [["b"]] * 1000, "input 'x': data holds other things than FP32"),
        ([1.0, "a" * 50_000] + [2] * 1000, "input 'x': data holds other things than FP32"),
        ([[1.0], "a" * 50_000] + [[2]] * 1000, "input 'x': data is nested unevenly"),
        ([[1.0, 2.0], [3.0]], "input 'x': data is nested unevenly"),
        ([1.0, None], "input 'x': data holds other things than FP32"),
        ([{}, {}], "input 'x': data holds other things than FP32"),
    ],
)
def test_what_is_no_number_is_refused_before_an_array_is_made(data: list[Any], words: str) -> None:
    """Of texts numpy makes cells that are all as wide as the longest one: 200 MB of 60 kB."""
    each = InputTensor(name="x", shape=[1], datatype="FP32", data=data)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=words):
            each.tensor()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_numbers_may_be_nested_and_of_several_kinds() -> None:
    (found,) = read([an_input(shape=(2, 2, 1), data=[[[1], [2.5]], [[-3], [4]]])])
    assert found.array().ravel().tolist() == [1, 2.5, -3, 4]
    for data in ([], [[], []]):
        (found,) = read([an_input(shape=(2, 0), data=data)])
        assert found.shape == (2, 0)


@pytest.mark.parametrize("length", ["", "-1", "1e1", "9999", "٣", "1" * 5000])
def test_a_header_length_that_cannot_be_is_refused(length: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length is"):
        read_infer(b'{"inputs": [1]}', length)


def test_bodies_are_inflated_up_to_the_limit() -> None:
    for coding, packed in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        assert inflated(packed(b"x" * 1000), coding, 1000) == b"x" * 1000
        with pytest.raises(TooLarge, match="inflates to more than 999"):
            inflated(packed(b"x" * 1000), coding, 999)
        for broken in (b"", b"nothing", packed(b"x")[:-1], packed(b"x") + b"y"):
            with pytest.raises(InvalidRequest, match=f"is no .*{coding}"):
                inflated(broken, coding, 1000)
    assert inflated(b"x", "identity", 1) == b"x"
    with pytest.raises(InvalidRequest, match="Content-Encoding is 'br'"):
        inflated(b"x", "br", 10)


def test_an_answer_is_json_or_raw_for_each_output() -> None:
    head = json.dumps(
        {
            "inputs": [an_input(data=[1.0, 2.0])],
            "outputs": [
                {"name": "y", "parameters": {"binary_data": False}},
                {"name": "z"},
                {"name": "w", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 9}},
            ],
        }
    )
    body, _ = read_infer(head.encode(), None)
    tensors = [Tensor.of("y", X), Tensor.of_bytes("z", [b"\xff"]), Tensor.of("w", X)]
    written: list[tuple[Place, bytes]] = []
    text, length = answered({"id": "7"}, tensors, body, True, lambda place, data: written.append((place, data)))
    assert length is not None
    said = json.loads(text[:length])
    assert text[length:] == tensors[1].data
    assert said["outputs"][0]["data"] == [1.5, 2.0]
    assert said["outputs"][1]["parameters"] == {"binary_data_size": 5}
    assert said["outputs"][2]["parameters"]["shared_memory_byte_size"] == 8
    assert "data" not in said["outputs"][2]
    assert written == [(Place("r", 0, 9), tensors[2].data)]
    with pytest.raises(InvalidRequest, match="output 'z' is no text, which JSON does not know"):
        answered({}, tensors[1:2], body, False, lambda *_: None)
    with pytest.raises(InvalidRequest, match="output 'w' has 16 bytes, and its shared_memory_byte_size is 9"):
        answered({}, [Tensor.of("w", np.zeros(2))], body, True, lambda *_: None)
    with pytest.raises(DSServeError, match="output 'q' has NaN"):
        answered({}, [Tensor.of("q", np.array([np.nan]))], body, False, lambda *_: None)


class TestRegions:
    @pytest.fixture
    def shm(self, tmp_path: Path) -> Path:
        (tmp_path / "data").write_bytes(bytes(range(100)))
        return tmp_path

    @pytest.fixture
    def held(self, shm: Path) -> Iterator[Regions]:
        held = Regions(shm)
        held.register("a", Region("r", "/data", 10, 50))
        yield held
        held.close()

    def test_it_is_read_and_written_within_its_bounds(self, held: Regions, shm: Path) -> None:
        assert held.read("a", "r", 5, 3) == bytes([15, 16, 17])
        assert held.read("a", "r", 50, 0) == b""
        held.write("a", "r", 48, b"xy")
        assert (shm / "data").read_bytes()[57:61] == bytes([57]) + b"xy" + bytes([60])
        for offset, size in ((49, 2), (51, 0), (-1, 1), (0, 51), (2**62, 1)):
            with pytest.raises(InvalidRequest, match="region 'r' has 50 bytes"):
                held.read("a", "r", offset, size)
        with pytest.raises(InvalidRequest, match="region 'r' has 50 bytes"):
            held.write("a", "r", 49, b"xy")

    def test_a_file_that_was_cut_is_neither_read_nor_made_longer(self, held: Regions, shm: Path) -> None:
        os.truncate(shm / "data", 20)
        assert held.read("a", "r", 0, 10) == bytes(range(10, 20))
        with pytest.raises(InvalidRequest, match="shorter than when it was registered"):
            held.read("a", "r", 5, 10)
        with pytest.raises(InvalidRequest, match="shorter than when it was registered"):
            held.write("a", "r", 5, b"x" * 10)
        assert (shm / "data").stat().st_size == 20

    def test_a_region_that_goes_while_it_is_used_is_not_mistaken_for_another_file(
        self, held: Regions, shm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Large ones are copied in threads, and the number of a file that was closed is given to the next one."""
        (shm / "other").write_bytes(b"o" * 100)
        opened: list[int] = []

        def replaced() -> None:
            held.unregister("a")
            opened.append(os.open(shm / "other", os.O_RDWR))

        def pread(*args: int) -> bytes:
            replaced()
            return real_pread(*args)

        def pwrite(file: int, data: bytes, start: int) -> int:
            replaced()
            return real_pwrite(file, data, start)

        real_pread, real_pwrite = os.pread, os.pwrite
        monkeypatch.setattr(regions.os, "pread", pread)
        monkeypatch.setattr(regions.os, "pwrite", pwrite)
        assert held.read("a", "r", 5, 3) == bytes([15, 16, 17])
        held.register("a", Region("r", "data", 10, 50))
        held.write("a", "r", 0, b"xy")
        for file in opened:
            os.close(file)
        assert (shm / "data").read_bytes()[10:13] == b"xy" + bytes([12])
        assert (shm / "other").read_bytes() == b"o" * 100

    def test_nobody_else_has_it(self, held: Regions) -> None:
        for owner in ("", "b"):
            assert held.of(owner) == []
            with pytest.raises(NotFound, match="'r' is not registered with this key: there are none"):
                held.read(owner, "r", 0, 1)
            with pytest.raises(NotFound):
                held.write(owner, "r", 0, b"x")
            held.unregister(owner)
        held.register("b", Region("r", "data", 0, 1))
        assert [each.name for each in held.of("a")] == ["r"]
        held.keep({"b"})
        assert (held.of("a"), len(held.of("b"))) == ([], 1)

    @pytest.mark.parametrize(
        ("key", "size", "kind"),
        [
            ("../data", 1, InvalidRequest),
            ("/../data", 1, InvalidRequest),
            ("//data", 1, InvalidRequest),
            ("a/b", 1, InvalidRequest),
            ("..", 1, InvalidRequest),
            ("", 1, InvalidRequest),
            ("data\n", 1, InvalidRequest),
            ("none", 1, NotFound),
            ("link", 1, Forbidden),
            ("folder", 1, Forbidden),
            ("pipe", 1, Forbidden),
            ("data", 101, InvalidRequest),
        ],
    )
    def test_only_plain_files_of_our_own(self, shm: Path, key: str, size: int, kind: type[DSServeError]) -> None:
        (shm / "link").symlink_to(shm / "data")
        (shm / "folder").mkdir()
        os.mkfifo(shm / "pipe")
        with pytest.raises(kind, match=r"key is|shared memory"):
            Regions(shm).register("a", Region("r", key, 0, size))

    def test_files_of_others_are_refused(self, shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(regions.os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(Forbidden, match="not of the gateway's own user"):
            Regions(shm).register("a", Region("r", "data", 0, 1))

    def test_they_are_bounded_and_all_closed(self, shm: Path) -> None:
        def num_open() -> int:
            """Files of ours: others of this process may close at any time."""
            files, data = os.listdir("/proc/self/fd"), os.path.realpath(shm / "data")
            return sum(os.path.realpath(f"/proc/self/fd/{file}") == data for file in files)

        held = Regions(shm)
        for number in range(regions.MAX_REGIONS):
            held.register("a", Region(str(number), "data", 0, 1))
        with pytest.raises(TooManyRequests, match="64 regions of this key"):
            held.register("a", Region("more", "data", 0, 1))
        held.register("b", Region("more", "data", 0, 1))
        with pytest.raises(Conflict, match="'more' is registered already"):
            held.register("b", Region("more", "data", 0, 1))
        held.unregister("a", "0")
        held.register("a", Region("more", "data", 0, 1))
        assert num_open() == regions.MAX_REGIONS + 1
        held.close()
        assert num_open() == 0


def test_the_kernel_says_whose_connection_it_is() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        own, peer = accepted.getsockname(), client.getsockname()
        assert peers.peer_of(accepted) == peer
        assert peers.is_direct(peer, {})
        assert peers.is_own_user(accepted)
        assert peers.are_own_users(peer, own[1])
        assert not peers.are_own_users(peer, own[1] ^ 1)
        for name in peers.PROXY_HEADERS:
            assert not peers.is_direct(peer, {name: "1.1 somebody"})
        lines = Path("/proc/net/tcp").read_text().splitlines()
        assert peers.uid_of(lines, peer, own) == os.getuid()
        assert peers.uid_of(lines, (peer[0], peer[1] ^ 1), own) is None


@pytest.mark.parametrize(("sizes", "is_aside"), [([], False), ([2**20], False), ([2**19, 2**19 + 1], True)])
def test_much_shared_memory_is_copied_beside_the_event_loop(sizes: list[int], is_aside: bool) -> None:
    places = [Place("r", 0, size) for size in sizes]
    ran_in = asyncio.run(shared_memory.aside(places, threading.get_ident))
    assert (ran_in != threading.get_ident()) == is_aside


def test_who_has_hung_up_is_nobody() -> None:
    """The kernel says root of a socket that no process holds any more: anybody could pass as root so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer = client.getsockname()
        with server.accept()[0] as accepted:
            client.sendall(b"POST")
            client.close()
            assert accepted.recv(9) + accepted.recv(9) == b"POST"  # its end is here: it has closed
            lines = Path("/proc/net/tcp").read_text().splitlines()
            assert peers.uid_of(lines, peer, accepted.getsockname()) is None
            assert not peers.is_own_user(accepted)
            assert not peers.are_own_users(peer, accepted.getsockname()[1])
    written = "0: 0100007F:1F90 0100007F:C350 {} 00000000:00000000 00:00000000 00000000 0 0 {} 1 0 0"
    for state, inode in (("05", "7"), ("01", "0")):
        line = written.format(state, inode)
        assert peers.uid_of([line], ("127.0.0.1", 8080), ("127.0.0.1", 50000)) is None


def test_ipv4_within_ipv6_is_known_too() -> None:
    line = (
        "   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:C350 01 00000000:00000000 "
        "00:00000000 00000000  1234        0 1 1 0 0"
    )
    assert peers.uid_of([line], ("::ffff:127.0.0.1", 8080), ("127.0.0.1", 50000)) == 1234
    plain = line.replace("0000000000000000FFFF0000", "")
    assert peers.uid_of([plain], ("127.0.0.1", 8080), ("127.0.0.1", 50000)) == 1234
    assert peers.uid_of([plain], ("127.0.0.2", 8080), ("127.0.0.1", 50000)) is None


def test_of_several_that_could_be_a_caller_all_are_asked() -> None:
    """A socket may have its port in common with another user's, connected to another of our addresses."""
    written = "0: 0100007F:1F90 {}00007F:C350 01 00000000:00000000 00:00000000 00000000 {} 0 7 1 0 0"
    lines = [written.format("01", 1000), written.format("02", 1234), written.format("01", 99).replace("C350", "C351")]
    assert set(peers.uids_of(lines, ("127.0.0.1", 8080), 50000)) == {1000, 1234}


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:[::1]:50000", ("::1", 50000)),
        ("unix:/tmp/socket", None),
        ("unix:", None),
    ],
)
def test_a_caller_is_read_as_grpc_writes_it(text: str, peer: tuple[str, int] | None) -> None:
    assert peers.peer_named(text) == peer
    assert peers.is_direct(peer, {}) is (peer is not None)
