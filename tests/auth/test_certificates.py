"""Certificates that cannot be served are told apart before a port opens."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from server_process import free_port

from appliance.auth.certificates import CertificateError, read
from appliance.config.server import TlsConfig

LEAF = trustme.CA().issue_cert("localhost")
OTHER = trustme.CA().issue_cert("localhost")
CHAIN = b"".join(each.bytes() for each in LEAF.cert_chain_pems)
KEY = LEAF.private_key_pem.bytes()
LOCKED = load_pem_private_key(KEY, None).private_bytes(
    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"open sesame")
)


PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def _self_signed(key: PrivateKey, days: int = 1) -> bytes:
    """A certificate of a key, by itself; `days` from now until it ends."""
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
    made = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return made.public_bytes(Encoding.PEM)


def _config(tmp_path: Path, chain: bytes | None, key: bytes | None, password: str | None = None) -> TlsConfig:
    for name, content in (("tls.crt", chain), ("tls.key", key)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    return TlsConfig(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", key_password=password)


@pytest.mark.parametrize(
    ("chain", "key", "password", "words"),
    [
        (None, KEY, None, r"server.tls.certificate: .*tls.crt cannot be read: No such file"),
        (CHAIN, None, None, r"server.tls.key: .*tls.key cannot be read"),
        (b"nothing", KEY, None, "holds no certificate in PEM"),
        (KEY, KEY, None, "holds no certificate in PEM"),
        (CHAIN, CHAIN, None, "holds no private key in PEM"),
        (CHAIN, OTHER.private_key_pem.bytes(), None, "is not the key of the certificate"),
        (CHAIN, LOCKED, None, "is encrypted; give server.tls.key_password"),
        (CHAIN, LOCKED, "wrong", "or key_password is wrong"),
        (CHAIN, KEY, "needless", "is not encrypted"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, chain: bytes | None, key: bytes | None, password: str | None, words: str
) -> None:
    """The key of the config, the file, the fault and the remedy; never the password."""
    model_config = _config(tmp_path, chain, key, password)

    with pytest.raises(CertificateError) as caught:
        read(model_config)

    assert re.search(words, str(caught.value))
    assert caught.value.exit_code == 1
    assert password is None or password == "wrong" or password not in str(caught.value)


def test_an_encrypted_key_is_opened(tmp_path: Path) -> None:
    """Even in the format of old."""
    certificate = read(_config(tmp_path, CHAIN, LOCKED, "open sesame"))

    assert certificate.key.startswith(b"-----BEGIN PRIVATE KEY-----")


@pytest.mark.parametrize(
    ("key", "is_served"),
    [
        (rsa.generate_private_key(65537, 2048), True),
        (rsa.generate_private_key(65537, 1024), False),
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ec.generate_private_key(ec.SECP521R1()), False),
        (ed25519.Ed25519PrivateKey.generate(), True),
    ],
    ids=["rsa-2048", "rsa-1024", "p-384", "p-521", "ed25519"],
)
def test_keys_that_end_granian_are_refused(tmp_path: Path, key: PrivateKey, is_served: bool) -> None:
    """Granian would abort the process over them."""
    model_config = _config(
        tmp_path, _self_signed(key), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )

    if is_served:
        assert read(model_config).client_ca is None
    else:
        with pytest.raises(CertificateError, match="of a kind that cannot be served"):
            read(model_config)


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """Every client would refuse it."""
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(CertificateError, match="expired on"):
        read(_config(tmp_path, _self_signed(key, days=-1), pem))


def test_serving_ends_before_a_port_opens(tmp_path: Path) -> None:
    """Exit code 1, and the reason in the log."""
    _config(tmp_path, CHAIN, OTHER.private_key_pem.bytes())
    config = tmp_path / "config.yaml"
    config.write_text(
        "models: [{name: up, class: proxy, upstreams: [{url: 'http://127.0.0.1:1'}]}]\n"
        f"server: {{port: {free_port()}, tls: {{certificate: {tmp_path}/tls.crt, key: {tmp_path}/tls.key}}}}\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", str(config)], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "is not the key of the certificate" in done.stdout + done.stderr
    assert "Listening" not in done.stdout + done.stderr
