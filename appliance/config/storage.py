"""Config of storage: where the files of a model come from, and how all files are downloaded and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue, Secret

from appliance.config.base import BaseConfig, Change, text_like, without_free_keys
from appliance.config.credentials import CredentialsConfig

LOCK_FILE_NAME = "appliance.lock"
"""Name of the lock file beside the config."""


class StorageConfig(BaseConfig):
    """Location of the files of a model."""

    uri: Annotated[str, Field(min_length=1)]
    """`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`,
    `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX`, `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`,
    `hf://OWNER/NAME@REVISION/path`, `https://HOST/FILE`, `https://HOST/DIRECTORY/` with a `SHA256SUMS` or an index
    page, `oci://REGISTRY/NAME:TAG@sha256:...`, `pvc://NAME/path`, `pypi://NAME==VERSION/path/in/wheel`,
    `file:///path`, a plain path, or a URI of any other filesystem of fsspec's: `sftp://HOST/path`,
    `webhdfs://HOST/path`, `zip::s3://BUCKET/FILE.zip`.

    It leads to a directory, to a single file, or to an archive that is unpacked; of `hf://`, revision and path may be
    left out.
    """

    include: tuple[str, ...] = ()
    """Only files that match one of these globs, such as `*.safetensors` or `tokenizer/`; `*` matches `/` too.

    Unset is every file except git's own files and, if there are safetensors, the same weights in other formats. Files
    that are used in place (paths, `pvc://`) and wheels are used whole.
    """

    exclude: tuple[str, ...] = ()
    """Files that match one of these globs are left out, even if `include` matches them."""

    digest: Annotated[str, text_like("^(sha256:)?[0-9a-f]{64}$", "sha256: and 64 digits from 0 to f")] | None = None
    """Digest of the files, as printed by `appliance pull`; files with another digest are refused. Unset accepts any."""

    options: Annotated[Secret[dict[str, JsonValue]], BeforeValidator(without_free_keys)] = Field(
        default_factory=lambda: Secret({})
    )
    """
    Arguments of the fsspec filesystem that reads the URI, such as `username` and `password` of `sftp://`. For the
    schemes above they go over what this program sets itself: `requester_pays: true` for `s3://`; only `hf://`, `oci://`
    and `https://HOST/` take none. All values are secrets. Of a chain, the options of an inner filesystem are below its
    scheme: `{s3: {anon: true}}`.
    """

    allow_pickle: bool = False
    """Accept pickled weights (`.bin`, `.pt`, `.pkl` and the like) if there are no safetensors. They can run code when
    they are loaded; enable it only if you trust the author of the model.
    """


class TransferConfig(BaseConfig):
    """Settings of downloads."""

    parallel: Annotated[int, Field(ge=1, le=256)] = 8
    """Parallel requests, over all files of a model."""

    chunk_bytes: Annotated[int, Field(ge=64 * 1024)] = 16 * 1024 * 1024
    """Limit of the bytes of one request; small models are downloaded in smaller ranges."""

    stall_seconds: Annotated[float, Field(gt=0)] = 30
    """Time without data after which a request is aborted and retried, in seconds."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 6 * 3600
    """Time limit of the download of one model, in seconds."""

    retries: Annotated[int, Field(ge=0)] = 8
    """Retries of a request that fails or receives no data, with exponential backoff."""


class GlobalStorageConfig(BaseConfig):
    """Cache, credentials and download settings for all models."""

    cache_dir: Path | None = None
    """Directory of models and of code that engines compile; unset is `appliance` in the user's cache directory."""

    pvc_root: Path = Path("/mnt/pvc")
    """Directory of the mounted volumes in `pvc://NAME/path`."""

    credentials: Annotated[CredentialsConfig, Change.HOT] = CredentialsConfig()
    """Credentials for each store; unset uses the defaults of the stores' own tools."""

    transfer: Annotated[TransferConfig, Change.HOT] = TransferConfig()
    """Settings of downloads."""

    lock_file: Path | None = None
    """Lock file that downloads are checked against; unset is `appliance.lock` beside this file, if it exists."""

    frozen: bool = False
    """Refuse models that are not in the lock file."""

    offline: bool = False
    """Use only the cache, and connect to no store."""
