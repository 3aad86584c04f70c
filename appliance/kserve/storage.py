"""KServe's `Storage` over the storage of this product."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage.materialize import materialize


class Storage:
    """Downloads the files of models."""

    @staticmethod
    def download(uri: str, out_dir: str | None = None) -> str:
        """Return the directory with the verified files of a URI: `out_dir`, or one of the cache if it is None.

        Pickled files are downloaded too, because the program that calls this decides whether to load them. Files of
        the cache are read-only for the program: copy them to change them.

        Raises:
            StorageError: the files cannot be downloaded.
        """
        config = StorageConfig(uri=uri, allow_pickle=True)
        # A download needs a thread without an event loop.
        with ThreadPoolExecutor(1) as executor:
            path: Path = executor.submit(materialize, config, GlobalStorageConfig()).result()
        if out_dir is None:
            return str(path)
        target = Path(out_dir)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        return out_dir
