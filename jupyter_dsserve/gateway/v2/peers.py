"""Who is at the other end of a connection, for what only programs of our own user on this machine may do."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

# What a proxy adds. Behind one anybody may be.
PROXY_HEADERS = ("Via", "Forwarded", "X-Forwarded-For", "X-Real-Ip")
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOCAL, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9  # columns; Linux, Documentation/networking/proc_net_tcp.rst
_ESTABLISHED = "01"


Address = tuple[str, int]


def peer_of(connection: socket.socket) -> Address | None:
    """None if it has just ended."""
    try:
        host, port = connection.getpeername()[:2]
    except OSError:
        return None
    return host, port


def peer_named(text: str) -> Address | None:
    """As gRPC writes it: ``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000``; None for what is no such."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def is_direct(peer: Address | None, headers: Mapping[str, str]) -> bool:
    """Whether the other end is on this machine, with no proxy between that says so."""
    return peer is not None and not any(name in headers for name in PROXY_HEADERS) and _plain(peer[0]).is_loopback


def is_own_user(connection: socket.socket) -> bool:
    """Whether a process of our own user, or of root, holds the other end of a connection on this machine."""
    try:
        own, peer = connection.getsockname()[:2], connection.getpeername()[:2]
    except OSError:
        return False
    return uid_of(_lines(), peer, own) in (0, os.geteuid())


def are_own_users(peer: Address, port: int) -> bool:
    """The same where of our own end only the ``port`` is known: whoever from ``peer`` is connected to it."""
    found = set(uids_of(_lines(), peer, port))
    return bool(found) and found <= {0, os.geteuid()}


def _lines() -> Iterator[str]:
    return (line for table in _TABLES if table.exists() for line in table.read_text().splitlines())


def uid_of(lines: Iterable[str], local: Address, remote: Address) -> int | None:
    """The user of the socket at ``local`` that is connected to ``remote``, by the kernel's tables; None if none is.

    A socket that its process has closed is nobody's: the kernel lists it as root's until the connection has ended.
    """
    remotes = _written(remote)
    return next((uid for other, uid in _held(lines, local) if other in remotes), None)


def uids_of(lines: Iterable[str], local: Address, port: int) -> Iterator[int]:
    """The users of all sockets at ``local`` that are connected to that port, of whatever address."""
    return (uid for other, uid in _held(lines, local) if other.endswith(f":{port:04X}"))


def _held(lines: Iterable[str], local: Address) -> Iterator[tuple[str, int]]:
    """Of the connections of ``local`` that a process holds the other end, as the tables write it, and the user."""
    locals_ = _written(local)
    for line in lines:
        fields = line.split()
        if len(fields) <= _INODE or fields[_STATE] != _ESTABLISHED or fields[_INODE] == "0":
            continue
        if fields[_LOCAL] in locals_:
            yield fields[_REMOTE], int(fields[_UID])


def _written(address: Address) -> set[str]:
    """How the tables write it: hexadecimal, each word of four bytes backwards. IPv4 may stand within IPv6."""
    found = _plain(address[0])
    packed = [found.packed] + ([b"\0" * 10 + b"\xff\xff" + found.packed] if found.version == 4 else [])
    words = ([each[at : at + 4][::-1] for at in range(0, len(each), 4)] for each in packed)
    return {f"{b''.join(each).hex().upper()}:{address[1]:04X}" for each in words}


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address)
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
