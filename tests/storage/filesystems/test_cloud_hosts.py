"""
The real names of the clouds, over TLS with a certificate authority of our own, in namespaces that end with the test.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from storage.servers import azure

SECONDS = 150
FETCHED = {"config.json": "{}", "a name é.txt": "text"}
NAMES = {
    "127.0.0.1": ["devstoreaccount1.blob.core.windows.net", "wrong.name.test"],
    "127.0.0.2": ["s3.amazonaws.com", "s3.us-east-1.amazonaws.com", "models.s3.amazonaws.com"],
    "127.0.0.3": ["storage.googleapis.com"],
}
HOSTS = "".join(f"{address} {' '.join(names)}\n" for address, names in NAMES.items())
SANS = [name for names in NAMES.values() for name in names if name != "wrong.name.test"]


def make_authority(directory: Path) -> None:
    """Write an authority's certificate, and a server's with its key."""
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    alternatives = x509.SubjectAlternativeName(
        [x509.DNSName(name) for name in (*SANS, "models.s3.us-east-1.amazonaws.com")]
        + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    root = _certificate(issuer, issuer, authority, authority, x509.BasicConstraints(ca=True, path_length=None))
    leaf = _certificate(x509.Name([]), issuer, server, authority, alternatives)
    (directory / "ca.crt").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (directory / "server.crt").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key = server.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (directory / "server.key").write_bytes(key)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=5))
    builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, object]]:
    """What each URI led to."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "-n", "true"], check=False).returncode != 0:
        pytest.skip("only root can give names of its own to a part of this machine")
    try:
        azure.command(Path(), 0)
    except azure.UnavailableError as error:
        pytest.skip(f"no Azurite: {error}")
    directory = tmp_path_factory.mktemp("clouds")
    make_authority(directory)
    (directory / "hosts").write_text(HOSTS)
    bundle = str(directory / "ca.crt")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AZURE_", "GOOGLE_"))},
        **dict.fromkeys(("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), bundle),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_GCE_CHECK": "true",
        "NO_PROXY": "*",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    script = 'ip link set lo up && mount --bind "$0/hosts" /etc/hosts && exec "$@"'
    child = Path(__file__).with_name("cloud_hosts.py")
    ended = subprocess.run(
        ["unshare", "-m", "-n", "bash", "-c", script, directory, sys.executable, child, directory],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    outcomes: dict[str, dict[str, object]] = json.loads(ended.stdout.splitlines()[-1])
    return outcomes


@pytest.mark.parametrize("case", ["azure key", "azure signature", "azure driver", "azure identity", "s3", "gs"])
def test_the_names_of_the_clouds_lead_to_files(found: Mapping[str, Mapping[str, object]], case: str) -> None:
    """Without any endpoint in the config: accounts and buckets in host names, certificates checked."""
    assert found[case].get("error") is None
    assert found[case]["files"] == FETCHED


def test_a_stranger_is_refused_by_azure(found: Mapping[str, Mapping[str, object]]) -> None:
    """The container is private."""
    assert str(found["azure nobody"]["error"]).startswith(("AccessDeniedError", "ArtifactNotFoundError"))


@pytest.mark.parametrize("case", ["wrong name", "s3 wrong name", "gs wrong name", "azure wrong name"])
def test_a_certificate_for_other_names_is_refused(found: Mapping[str, Mapping[str, object]], case: str) -> None:
    """For good, and with the variable that names the authorities of a company's own network."""
    error = str(found[case]["error"])

    assert error.startswith("StorageError")
    assert "certificate verify failed" in error
    assert "SSL_CERT_FILE" in error
