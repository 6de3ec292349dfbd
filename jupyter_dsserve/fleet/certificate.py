"""The certificate that the gateway shows to workers on other machines: one of its own making, or one that it is given.

A worker trusts exactly this certificate, by its fingerprint, which stands in the command that it is started with. So
nobody need sign it, and any address leads to it.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from jupyter_dsserve.data_dir import write_private
from jupyter_dsserve.protocol.errors import Conflict

_NAME = "dsserve-gateway"
_VALID = timedelta(days=3650)
_LEFT = timedelta(days=30)  # of its time; with less it is made anew


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM, and the SHA-256 of its DER in hex. ``name`` is one that it is made out to."""

    certificate: bytes
    key: bytes
    fingerprint: str
    name: str


def own_certificate(data_dir: Path) -> Certificate:
    """``join.crt`` and ``join.key`` in the data directory, made where they are not there or soon too old.

    Raises `Conflict` where none can be made.
    """
    certfile, keyfile = data_dir / "join.crt", data_dir / "join.key"
    if not (certfile.exists() and keyfile.exists() and _is_good(certfile.read_bytes())):
        _make(certfile, keyfile)
    return given_certificate(str(certfile), str(keyfile))


def given_certificate(certfile: str, keyfile: str) -> Certificate:
    """Raises `Conflict` as `pem_pair` does, and where no name can be read."""
    certificate, key = pem_pair("join-", certfile, keyfile)
    try:
        first = certificate[certificate.index(b"-----BEGIN CERTIFICATE") :].decode()
        der = ssl.PEM_cert_to_DER_cert(first[: first.index("-----END CERTIFICATE-----") + 25])
    except ValueError as fault:
        raise _unusable("join-", certfile, keyfile, fault) from None
    return Certificate(certificate, key, hashlib.sha256(der).hexdigest(), _name_in(der))


def pem_pair(prefix: str, certfile: str, keyfile: str) -> tuple[bytes, bytes]:
    """A certificate and its key, both PEM, the key without a password. ``prefix`` is of the options'
    names: ``join-`` of ``--join-certfile``.

    Tried here, because gRPC says nothing of what is wrong with them. Raises `Conflict` for files that cannot be used.
    """
    if not (certfile and keyfile):
        raise Conflict(f"TLS takes both a certificate and its key: give --{prefix}certfile and --{prefix}keyfile")
    certpath, keypath = Path(certfile).expanduser(), Path(keyfile).expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certpath, keypath, lambda: "")
        return certpath.read_bytes(), keypath.read_bytes()
    except (OSError, ValueError) as fault:  # ssl's are OSErrors
        raise _unusable(prefix, certfile, keyfile, fault) from None


def _unusable(prefix: str, certfile: str, keyfile: str, fault: Exception) -> Conflict:
    return Conflict(
        f"--{prefix}certfile {certfile} and --{prefix}keyfile {keyfile} cannot be used ({fault}): give a certificate "
        "and its key, both PEM, the key without a password"
    )


def _make(certfile: Path, keyfile: Path) -> None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise Conflict(_MISSING) from None
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of other machines
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_private(keyfile, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    write_private(certfile, made.public_bytes(pem))


def _is_good(pem: bytes) -> bool:
    try:
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem).not_valid_after_utc > datetime.now(timezone.utc) + _LEFT
    except (ImportError, ValueError):
        return False


def _name_in(der: bytes) -> str:
    """The first name that the certificate is made out to. Raises `Conflict` if there is none."""
    try:
        from cryptography import x509
    except ImportError:
        raise Conflict(_MISSING) from None
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise Conflict("--join-certfile is made out to no name (subjectAltName): gRPC takes none like that") from None
    found = [*names.value.get_values_for_type(x509.DNSName), *names.value.get_values_for_type(x509.IPAddress)]
    return str(found[0]).replace("*", "gateway") if found else ""


_MISSING = (
    "--join-address takes the package cryptography, which makes and reads its certificate: "
    "pip install 'jupyter_dsserve[join]'"
)
