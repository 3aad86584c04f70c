"""Clients of stores are installed by those who use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from storage.filesystems.test_contract import listed
from storage.servers.azure import KEY

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import MissingExtraError

CLIENTS = (
    "aiobotocore",
    "botocore",
    "google.auth",
    "azure",
    "huggingface_hub",
    "aiohttp",
    "fsspec",
    "s3fs",
    "gcsfs",
    "adlfs",
)


@pytest.mark.parametrize(
    ("uri", "credentials", "module", "extra"),
    [
        ("s3://bucket/x", {}, "s3fs", "s3"),
        ("gs://bucket/x", {"gcs": [{"key": "{}"}]}, "gcsfs", "gcs"),
        ("az://models/x", {"azure": [{"account": "acct", "anonymous": True}]}, "adlfs", "azure"),
        ("az://models/x", {"azure": [{"account": "acct", "account_key": KEY}]}, "azure.storage.blob", "azure"),
        ("az://models/x", {"azure": [{"account": "acct", "managed_identity": True}]}, "azure.identity.aio", "azure"),
    ],
)
async def test_a_missing_client_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, uri: str, credentials: dict[str, object], module: str, extra: str
) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError, match=rf"pip install 'model-appliance\[{extra}\]'"):
        await listed(uri, GlobalStorageConfig.model_validate({"credentials": credentials}))


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("appliance.config", CLIENTS),
        ("appliance.storage", (*CLIENTS, "appliance.config.engine", "appliance.config.masking")),
    ],
)
def test_importing_storage_imports_no_client(package: str, heavy: Sequence[str]) -> None:
    """What checks a config starts at once, and what downloads a model without the schema of a config."""
    code = f"import sys, {package}; print([name for name in {heavy!r} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
