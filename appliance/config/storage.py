"""Config of storage: where the files of a model come from, and how all files are downloaded and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from appliance.config.base import BaseConfig, Change
from appliance.config.credentials import CredentialsConfig

LOCK_FILE_NAME = "appliance.lock"
"""Name of the lock file beside the config."""

SCHEMES = frozenset({"file", "hf", "s3", "gs", "az", "abfs", "abfss", "https", "http", "pvc", "pypi"})
"""The schemes that a URI may have; `appliance.storage` has a filesystem for each."""


class StorageConfig(BaseConfig):
    """Where the bytes come from."""

    uri: Annotated[str, Field(min_length=1)]
    """
    `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`,
    `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX`, `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`,
    `hf://OWNER/NAME@REVISION/path`, `https://HOST/FILE`, `https://HOST/DIRECTORY/` with a `SHA256SUMS` in it,
    `pvc://NAME/path`, `pypi://NAME==VERSION/path/in/wheel`, `file:///path` or a plain path.

    It leads to a directory, to a single file, or to an archive that is unpacked; of `hf://`, revision and path may be
    left out.
    """

    include: tuple[str, ...] = ()
    """
    Only files that match one of these globs, such as `*.safetensors` or `tokenizer/`; `*` matches `/` as well.

    Unset is every file but bookkeeping of git and, beside safetensors, the same weights for other programs.
    """

    exclude: tuple[str, ...] = ()
    """No file that matches one of these globs, whatever `include` says."""

    digest: Annotated[str, Field(pattern="^(sha256:)?[0-9a-f]{64}$")] | None = None
    """The digest that `appliance pull` printed for these bytes: other bytes are refused; unset takes what is there."""

    allow_pickle: bool = False
    """
    Take pickled weights (`.bin`, `.pt`, `.pkl` and the like) where there are no safetensors; they can run code when
    they are read, so they are refused unless you trust whoever made them.
    """


class TransferConfig(BaseConfig):
    """How bytes are fetched."""

    parallel: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests at once, over all files of a model."""

    chunk_bytes: Annotated[int, Field(ge=64 * 1024)] = 16 * 1024 * 1024
    """Most bytes that one request asks for; small models are fetched in smaller pieces."""

    stall_seconds: Annotated[float, Field(gt=0)] = 30
    """How long a request may bring nothing before it is given up and tried again."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 6 * 3600
    """How long the fetch of one model may take in all."""

    retries: Annotated[int, Field(ge=0)] = 8
    """How often a request that brings nothing is tried again, after ever longer pauses."""


class GlobalStorageConfig(BaseConfig):
    """What holds for the bytes of all models: where they are kept, and how they are fetched."""

    cache_dir: Path | None = None
    """
    Directory for fetched and converted models, and for what engines compile for them; unset is `appliance` under the
    user's cache home.
    """

    pvc_root: Path = Path("/mnt/pvc")
    """Directory with the mounted volumes that `pvc://NAME/path` names."""

    credentials: Annotated[CredentialsConfig, Change.HOT] = CredentialsConfig()
    """Who we are to each store; unset takes what the stores' own tools would take."""

    transfer: Annotated[TransferConfig, Change.HOT] = TransferConfig()
    """How bytes are fetched."""

    lock_file: Path | None = None
    """Lock that the bytes are held to; unset is `appliance.lock` beside this file, where there is one."""

    frozen: bool = False
    """Refuse to bring anything that is not in the lock."""

    offline: bool = False
    """Use only what is in the cache, and make no connection to any store."""
