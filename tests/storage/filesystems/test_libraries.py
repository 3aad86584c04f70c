"""Every store is read through the filesystem of a library, and none through another one's client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from storage.filesystems.conftest import WITHOUT_MOTO
from storage.store_servers import StoreServer, storage_at

FILESYSTEMS = {
    "s3": "s3fs.core",
    "gs": "gcsfs.core",
    "az": "adlfs.spec",
    "http": "fsspec.implementations.http",
    "http-nginx": "fsspec.implementations.http",
    "hf": "huggingface_hub.hf_file_system",
    "oci": "fsspec.asyn",
    "sftp": "fsspec.implementations.sftp",
}

# What several of them use.
SHARED = {"fsspec.asyn", "fsspec.implementations.http"}

PULL = """
import json, sys
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import materialize

storage, settings = map(json.loads, sys.argv[1:])
materialize(StorageConfig.model_validate(storage), GlobalStorageConfig.model_validate(settings))
print(json.dumps(list(sys.modules)))
"""


@pytest.mark.parametrize("store_server", WITHOUT_MOTO, indirect=True)
def test_a_pull_uses_the_filesystem_of_its_library(store_server: StoreServer, root: str, tmp_path: Path) -> None:
    """It is among the imported modules, and the filesystems of other stores are not."""
    store_server.fill(root, {"model/config.json": b"{}"})
    uri, credentials = store_server.locate(f"{root}/model/", store_server.port)
    storage = {"uri": uri, "options": storage_at(uri).options.get_secret_value()}
    settings = {"cache_dir": str(tmp_path), "credentials": credentials}

    command = [sys.executable, "-c", PULL, json.dumps(storage), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    own = FILESYSTEMS[store_server.kind]
    assert own in modules
    assert not ({*FILESYSTEMS.values()} - {own, *SHARED}) & modules
