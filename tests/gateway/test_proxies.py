"""Who a caller is behind proxies."""

from __future__ import annotations

import pytest

from jupyter_dsserve.gateway.proxies import Proxies
from jupyter_dsserve.protocol.errors import InvalidRequest


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["8.8.8.8, 203.0.113.9"], "203.0.113.9"),  # the first is what the caller made up
        ("127.0.0.1", ["8.8.8.8", "203.0.113.9, 10.1.2.3"], "203.0.113.9"),  # two of ours, one after the other
        ("127.0.0.1", ["10.0.0.7"], "10.0.0.7"),  # one of ours asks by itself
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),  # no proxy of ours
        ("", ["203.0.113.9"], ""),
    ],
)
def test_only_what_a_trusted_proxy_says_of_its_caller_counts(peer: str, forwarded: list[str], caller: str) -> None:
    assert Proxies(["127.0.0.1", "10.0.0.0/8"]).caller(peer, forwarded) == caller
    assert Proxies().caller(peer, forwarded) == peer


def test_a_proxy_that_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'proxy\.example'.*10\.0\.0\.0/8"):
        Proxies(["proxy.example"])
