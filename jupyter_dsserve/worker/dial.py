"""`Dial`: how a worker reaches its gateway: a unix socket of this machine, or an address with TLS."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass

import grpc
import grpc.aio

from jupyter_dsserve.protocol.pings import pings

_CONNECT_S = 10.0
_Options = list[tuple[str, "int | str"]]
# Is the gateway's machine still there? A unix socket tells by itself.
_PINGS = pings(10, 15)


class Untrusted(Exception):
    """What answers there shows another certificate."""


@dataclass(frozen=True, slots=True)
class Dial:
    """``certificate`` (PEM) is the only one that is trusted, whose name is ``name``; empty without TLS."""

    address: str
    certificate: bytes = b""
    name: str = ""

    def channel(self) -> grpc.Channel:
        if not self.certificate:
            return grpc.insecure_channel(self.address)
        return grpc.secure_channel(self.address, self._credentials, options=self._tls_options)

    def aio_channel(self, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        if not self.certificate:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, self._credentials, options=[*options, *self._tls_options])

    @property
    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.certificate)

    @property
    def _tls_options(self) -> _Options:
        return [("grpc.ssl_target_name_override", self.name), *_PINGS]

    def metadata(self, token: str) -> tuple[tuple[str, str], ...]:
        """What opens the gateway's door, before any message; a unix socket has none."""
        return (("authorization", f"Bearer {token}"),) if self.certificate else ()


def pinned(address: str, fingerprint: str, name: str) -> Dial:
    """To ``address`` (``HOST:PORT``), if its certificate has the ``fingerprint``: the SHA-256 of its DER, in hex.

    Raises `OSError` if nobody answers there, `Untrusted` for another certificate.
    """
    host, _, port = address.rpartition(":")
    if not (port.isdecimal() and int(port) < 65536):  # a resolver would take it modulo 65536
        raise OSError("no such address: write HOST:PORT, with a port up to 65535")
    try:
        pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=_CONNECT_S)
    except ValueError:
        raise OSError("no such address") from None
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if shown != fingerprint.lower():
        raise Untrusted(
            f"what answers at {address} shows a certificate with the fingerprint {shown}, not {fingerprint}: it is "
            "another gateway, or its certificate was made anew; ask for the command again"
        )
    return Dial(address, pem.encode(), name)
