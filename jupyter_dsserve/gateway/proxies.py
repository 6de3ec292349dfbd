"""Who a caller is where proxies of one's own stand between: what they say of it counts, what others say does not."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from jupyter_dsserve.protocol.errors import InvalidRequest


class Proxies:
    """``trusted`` are addresses, or networks such as ``10.0.0.0/8``. Raises `InvalidRequest` for what is neither."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        try:
            self._trusted = [ipaddress.ip_network(text) for text in trusted]
        except ValueError as fault:
            raise InvalidRequest(
                f"a trusted proxy cannot be: {fault}; give an address, or a network such as 10.0.0.0/8"
            ) from None

    def caller(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of the caller at ``peer``. Each proxy adds to ``forwarded``, the values of X-Forwarded-For, whom
        it was asked by: read from the end, the first that is no proxy of ours. What stands before that anybody may have
        written."""
        chain = [word.strip() for value in forwarded for word in value.split(",")]
        while self._trusts(peer) and chain and _address(chain[-1]):
            peer = chain.pop()
        return peer

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
