"""The certificate that callers are shown, read again when its files were written: they are renewed every few weeks."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from jupyter_dsserve.fleet.certificate import pem_pair
from jupyter_dsserve.protocol.errors import Conflict

log = logging.getLogger(__name__)


class ShownCertificate:
    """From PEM files. ``pair`` is certificate and key as they stand there, ``context`` has them for Python's TLS; each
    is another object after a renewal. Connections that are open keep what they were shown."""

    def __init__(self, prefix: str, certfile: str, keyfile: str) -> None:
        """``prefix``: of the options' names. Raises `Conflict` for files that cannot be used."""
        self._prefix = prefix
        self._files = Path(certfile).expanduser(), Path(keyfile).expanduser()
        self._given = certfile, keyfile
        self._stamp = self._stamped()
        self.pair, self.context = self._read()

    def look(self) -> None:
        """Take up what was written meanwhile. What cannot be used, such as a certificate whose key is not there yet, is
        left and logged: what was shown before is shown on."""
        if (stamp := self._stamped()) == self._stamp:
            return
        self._stamp = stamp
        try:
            self.pair, self.context = self._read()
        except Conflict as fault:
            log.warning("the certificate is not renewed, the one before stays: %s", fault.message)
        else:
            log.info("the certificate %s was renewed: new connections are shown it", self._files[0])

    def _read(self) -> tuple[tuple[bytes, bytes], ssl.SSLContext]:
        pair = pem_pair(self._prefix, *self._given)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(*self._files)
        except OSError as fault:  # written since
            raise Conflict(f"{self._files[0]} and {self._files[1]} were just being written ({fault})") from None
        return pair, context

    def _stamped(self) -> list[tuple[int, int, int]]:
        """What changes when the files, or links to them, are written or replaced."""
        try:
            return [(found.st_mtime_ns, found.st_ino, found.st_size) for found in map(os.stat, self._files)]
        except OSError:
            return []
