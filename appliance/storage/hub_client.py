"""
The child that works for `hub`: prints ``Progress N of M`` lines, and last one line of JSON, a result or an error.

Run as ``python -m appliance.storage.hub_client resolve WHAT NAME REVISION``, or
``... download WHAT NAME COMMIT PATH TARGET``.
"""

from __future__ import annotations

import glob
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.errors import ArtifactNotFoundError, StorageError
from appliance.nearest import did_you_mean, known_ones
from appliance.storage.faults import check_room
from appliance.storage.hub_faults import is_broken_connection, translate
from appliance.storage.snapshot import Listed, select, verify

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

T = TypeVar("T")

# How long the hub may say nothing; huggingface_hub has limits of its own for downloads, and none for questions.
_SILENCE_SECONDS = 10.0

# How often a connection may break before a file more is there.
_TRIES = 3
_PAUSE_SECONDS = 1.0


def resolve(what: str, name: str, revision: str) -> str:
    """
    The commit that a revision means.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi()
    try:
        commit = _persist(lambda: api.model_info(name, revision=revision, timeout=_SILENCE_SECONDS).sha)
    except RevisionNotFoundError as error:
        refs = api.list_repo_refs(name)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        hint = did_you_mean(revision, known) or known_ones("branches and tags", known)
        raise ArtifactNotFoundError(f"{what}: the model has no revision {revision!r}; {hint}") from error
    if commit is None:
        raise StorageError(f"{what}: the hub names no commit; check HF_ENDPOINT")
    return commit


def download(what: str, name: str, commit: str, path: str, target: Path) -> str:
    """
    Fill `target`, verified, and return how many files it has.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(name, recursive=True, revision=commit)
    listed = [
        Listed(file.path, file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in tree
        if isinstance(file, RepoFile)
    ]
    files = select(what, listed, path)
    check_room(sum(file.size for file in files), target)
    _download(name, commit, files, target)
    shutil.rmtree(target / ".cache", ignore_errors=True)
    verify(what, files, target)
    return str(len(files))


def _download(name: str, commit: str, files: Sequence[Listed], target: Path) -> None:
    from huggingface_hub import snapshot_download

    counter = _Counter(sum(file.size for file in files))
    bar = _bar(counter)
    patterns = [glob.escape(file.name) for file in files]

    def whole() -> int:
        # A file gets its name when all of it is there.
        return sum(file.size for file in files if (target / file.name).exists())

    def work() -> None:
        counter.begin(whole())
        snapshot_download(name, revision=commit, local_dir=target, allow_patterns=patterns, tqdm_class=bar)

    _persist(work, whole)


def _persist(work: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
    """
    Do `work` again while connections break, unless it is nowhere further after several tries.
    """
    tries, best = 0, reached()
    while True:
        try:
            return work()
        except Exception as error:
            now = reached()
            tries, best = (1, now) if now > best else (tries + 1, best)
            if tries > _TRIES or not is_broken_connection(error):
                raise
            time.sleep(_PAUSE_SECONDS)


class _Counter:
    """
    Prints how many bytes there are; huggingface_hub counts each byte in one or two bars, from several threads.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._whole = 0
        self._shown = -1
        self._lock = threading.Lock()

    def begin(self, whole: int) -> None:
        """
        Start with files of `whole` bytes already there.
        """
        self._whole = whole
        self.show(0)

    def show(self, more: float) -> None:
        """
        Print that there are `more` bytes; a number that is no more than the last is not worth a line.
        """
        with self._lock:
            done = min(self._whole + int(more), self._total)
            if done > self._shown:
                self._shown = done
                print(f"Progress {done} of {self._total}", flush=True)


def _bar(counter: _Counter) -> type[tqdm]:
    """
    A class of progress bars that draw nothing and tell the counter.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: tqdm's own arguments
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call] # tqdm has no types
            self._counts_bytes = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts_bytes:
                counter.show(self.n)

    return Bar


def main(verb: str, what: str, name: str, *arguments: str) -> None:
    """
    Do what is asked, and end with one line that says how it went.
    """
    from huggingface_hub import get_session

    get_session().timeout = _SILENCE_SECONDS
    try:
        if verb == "resolve":
            result = resolve(what, name, *arguments)
        else:
            commit, path, target = arguments
            result = download(what, name, commit, path, Path(target))
    except Exception as error:
        ours = error if isinstance(error, StorageError) else translate(what, name, error)
        print(json.dumps({"error": type(ours).__name__, "message": str(ours)}), flush=True)
        sys.exit(1)
    print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
