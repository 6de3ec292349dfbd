"""Who is at the other end of a connection, for what only programs of our own user on this machine may do."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

# What a proxy adds. Behind one anybody may be.
PROXY_HEADERS = ("Via", "Forwarded", "X-Forwarded-For", "X-Real-Ip")
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOCAL, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9  # columns; Linux, Documentation/networking/proc_net_tcp.rst
_ESTABLISHED = "01"


def is_direct(connection: socket.socket, headers: Mapping[str, str]) -> bool:
    """Whether the other end is on this machine, with no proxy between that says so."""
    if any(name in headers for name in PROXY_HEADERS):
        return False
    try:
        return _plain(connection.getpeername()[0]).is_loopback
    except OSError:  # it has just ended
        return False


def is_own_user(connection: socket.socket) -> bool:
    """Whether a process of our own user, or of root, holds the other end of a connection on this machine."""
    try:
        own, peer = connection.getsockname()[:2], connection.getpeername()[:2]
    except OSError:
        return False
    lines = (line for table in _TABLES if table.exists() for line in table.read_text().splitlines())
    return uid_of(lines, peer, own) in (0, os.geteuid())


def uid_of(lines: Iterable[str], local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The user of the socket at ``local`` that is connected to ``remote``, by the kernel's tables; None if none is.

    A socket that its process has closed is nobody's: the kernel lists it as root's until the connection has ended.
    """
    locals_, remotes = _written(local), _written(remote)
    for line in lines:
        fields = line.split()
        if len(fields) <= _INODE or fields[_STATE] != _ESTABLISHED or fields[_INODE] == "0":
            continue
        if fields[_LOCAL] in locals_ and fields[_REMOTE] in remotes:
            return int(fields[_UID])
    return None


def _written(address: tuple[str, int]) -> set[str]:
    """How the tables write it: hexadecimal, each word of four bytes backwards. IPv4 may stand within IPv6."""
    found = _plain(address[0])
    packed = [found.packed] + ([b"\0" * 10 + b"\xff\xff" + found.packed] if found.version == 4 else [])
    words = ([each[at : at + 4][::-1] for at in range(0, len(each), 4)] for each in packed)
    return {f"{b''.join(each).hex().upper()}:{address[1]:04X}" for each in words}


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address)
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
