"""TLS certificates: read, checked that they can be served, and read again when their files change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from appliance.config.server import TlsConfig
from appliance.core.errors import ApplianceError, MissingExtraError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# The keys that ring accepts; Granian ends the process for any other.
_RSA_BITS = (2048, 4096)
_CURVES = ("secp256r1", "secp384r1")


class CertificateError(ApplianceError):
    """A file of `server.tls` cannot be served; `key` is its key in the config, and `fault` the message without it."""

    def __init__(self, key: str, fault: str) -> None:
        super().__init__(f"{key}: {fault}")
        self.key, self.fault = key, fault


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate with its key, in PEM; the key is not encrypted, and stays in memory."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class Certificates:
    """The certificate for new connections, `current`."""

    def __init__(self, config: TlsConfig) -> None:
        """Read the files of the config.

        Raises:
            CertificateError: a file is missing, or they do not fit together.
        """
        self._config = config
        self._stamps = _stamps(config)
        self.current = read(config)
        log.info("certificate.loaded", expires=self.current.expires.isoformat())

    def refresh(self) -> bool:
        """Read the files again if they have changed; return whether there is another certificate now.

        Files that cannot be served are ignored until they change again, because they may be half written.
        """
        stamps, before = _stamps(self._config), self.current
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self.current = read(self._config)
            except CertificateError as error:
                log.error("certificate.refused", reason=str(error))
        if self.current == before:
            return False
        log.info("certificate.loaded", expires=self.current.expires.isoformat())
        return True


def read(config: TlsConfig) -> Certificate:
    """Return the certificate of the config.

    Raises:
        CertificateError: a file is missing, or they do not fit together.
        MissingExtraError: the package that reads certificates is not installed.
    """
    if find_spec("cryptography") is None:
        raise MissingExtraError("cryptography", "tls", "server.tls")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    chain, key = _chain("server.tls.certificate", config.certificate), _key(config)
    leaf = chain[0]
    if leaf.public_key() != key.public_key():
        raise CertificateError(
            "server.tls.key",
            f"{config.key} is not the key of the certificate in {config.certificate}; both must come from one request",
        )
    if leaf.not_valid_after_utc < datetime.now(UTC):
        raise CertificateError(
            "server.tls.certificate", f"{config.certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it"
        )
    authorities = [] if config.client_ca is None else _chain("server.tls.client_ca", config.client_ca)
    return Certificate(
        chain=b"".join(each.public_bytes(Encoding.PEM) for each in chain),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        client_ca=b"".join(each.public_bytes(Encoding.PEM) for each in authorities) or None,
        expires=min(each.not_valid_after_utc for each in chain),
    )


def _chain(key: str, path: Path) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(_bytes(key, path))
        broken = [each for each in chain if each.version is not x509.Version.v3]
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(key, f"{path} holds no certificate in PEM; must begin with BEGIN CERTIFICATE") from error
    if broken:
        raise CertificateError(key, f"{path} holds a certificate of version 1; must be of version 3")
    return chain


def _key(config: TlsConfig) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path, password = config.key, config.key_password
    pem = _bytes("server.tls.key", path)
    try:
        key = load_pem_private_key(pem, None if password is None else password.get_secret_value().encode())
    except TypeError as error:
        is_encrypted = password is None
        fault = "encrypted; give server.tls.key_password" if is_encrypted else "not encrypted; leave out key_password"
        raise CertificateError("server.tls.key", f"{path} is {fault}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "" if password is None else ", or key_password is wrong"
        raise CertificateError("server.tls.key", f"{path} holds no private key in PEM{hint}") from error
    is_served = isinstance(key, ed25519.Ed25519PrivateKey) or (
        _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]
        if isinstance(key, rsa.RSAPrivateKey)
        else isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    )
    if not is_served:
        raise CertificateError(
            "server.tls.key",
            f"{path} is of a kind that cannot be served; must be RSA of 2048 to 4096 bits, ECDSA on "
            "P-256 or P-384, or Ed25519",
        )
    return key


def _bytes(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(key, f"{path} cannot be read: {error.strerror}") from error


def _stamps(config: TlsConfig) -> list[tuple[int, int, int] | None]:
    """Return what differs when a file was changed, or a link to it leads to another file."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in filter(None, (config.certificate, config.key, config.client_ca)):
        try:
            found = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return stamps
