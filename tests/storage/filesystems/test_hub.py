"""`hf://`, the whole way from a URI to files, over a stand-in for the hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextvars import copy_context
from pathlib import Path

import pytest
from storage.fake_hub import Hub
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.disk import OnProgress, ignore_progress
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    GatedError,
    StorageError,
    StorageUnavailableError,
)
from appliance.storage import Cache, materialize, verify
from appliance.storage.download import on_wait
from appliance.storage.filesystems.huggingface import HubUri, parse

OFFLINE_PROCESS = """
import sys, tempfile
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import materialize

settings = GlobalStorageConfig.model_validate({"cache_dir": tempfile.mkdtemp(), "transfer": {"retries": 0}})
materialize(StorageConfig(uri="hf://owner/model"), settings, lambda *_: None)
print(*(name for name in sys.modules if name == "huggingface_hub.hf_file_system"))
from huggingface_hub import model_info
try:
    model_info("owner/model")
except Exception as error:
    print(type(error).__name__)
"""

WEIGHTS = bytes(range(256)) * 100
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle", "sub/x.txt": b"x"}
FETCHED = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/x.txt": b"x"}


def fetch_model(uri: str, cache: Cache, on_progress: OnProgress = ignore_progress) -> Path:
    """Materialize a URI."""
    transfer = {"retries": 1, "stall_seconds": 30}
    settings = GlobalStorageConfig.model_validate({"cache_dir": cache.root, "transfer": transfer})
    return materialize(StorageConfig(uri=uri), settings, on_progress)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def left_behind(cache: Cache) -> list[str]:
    """Everything in the cache but what helps to find and to lock."""
    return [path.name for path in cache.root.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("hf://owner/name", HubUri("owner/name", "main", "")),
        ("HF://owner/name/", HubUri("owner/name", "main", "")),
        ("hf://owner/name@v1.0", HubUri("owner/name", "v1.0", "")),
        ("hf://owner/name:v1.0", HubUri("owner/name", "v1.0", "")),
        ("hf://owner/name@v1//a/./b/", HubUri("owner/name", "v1", "a/b")),
        ("hf://owner/name/file@1.gguf", HubUri("owner/name", "main", "file@1.gguf")),
        ("hf://owner/name/x%20y%23:z", HubUri("owner/name", "main", "x y#:z")),
        ("hf://owner/name@refs/pr/7", HubUri("owner/name", "refs/pr/7", "")),
        ("hf://owner/name@refs/pr/7/a", HubUri("owner/name", "refs/pr/7", "a")),
        ("hf://owner/name@feature%2Fx/a", HubUri("owner/name", "feature/x", "a")),
        ("hf://gpt2", HubUri("gpt2", "main", "")),
        ("hf://gpt2:v1", HubUri("gpt2", "v1", "")),
        ("hf://gpt2@v1/model.safetensors", HubUri("gpt2", "v1", "model.safetensors")),
    ],
)
def test_all_spellings_of_a_model_are_read(uri: str, wanted: HubUri) -> None:
    """Hugging Face's way and KServe's, names of one part and of two, revisions with a slash."""
    assert parse(uri) == wanted
    assert parse(str(wanted).replace("feature/", "feature%2F").replace("#", "%23")) == wanted


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("hf://", "no name of a model"),
        ("hf:///name", "no name of a model"),
        ("hf://owner//name", "no name of a model"),
        ("hf://../name", "no name of a model"),
        ("hf://owner/--name", "no name of a model"),
        ("hf://owner/na me", "no name of a model"),
        ("hf://datasets/owner/name", "no name of a model"),
        ("hf://owner/name@", "no revision"),
        ("hf://owner/name:", "no revision"),
        ("hf://owner/name@../x", "no revision"),
        ("hf://owner/name@--x", "no revision"),
        ("hf://owner/name@a%2F..%2Fb", "no revision"),
        ("hf://owner/name/../../etc", "leads out of the model"),
        ("hf://owner/name/%2e%2e/etc", "leads out of the model"),
        ("hf://owner/name/x?y", "has a query"),
        ("hf://me:s3cret@host/name?s3cret", "no revision"),
    ],
)
def test_a_uri_that_names_no_model_is_refused(cache: Cache, uri: str, fault: str) -> None:
    """Nothing is asked of any hub, and nothing of the URI can be an option or a way out."""
    with pytest.raises(StorageError, match=fault) as caught:
        fetch_model(uri, cache)
    assert "s3cret" not in str(caught.value)


def test_a_model_is_brought(hub: Hub, cache: Cache) -> None:
    """The whole of it, but for weights that are not loaded."""
    hub.repository("owner/model").commit(FILES)

    path = fetch_model("hf://owner/model", cache)
    assert contents(path) == FETCHED
    assert not list(path.glob(".*"))
    verify(path)


def test_a_directory_of_a_model_is_brought(hub: Hub, cache: Cache) -> None:
    """The path that comes back is the directory, and nothing beside it is fetched."""
    hub.repository("owner/model").commit(FILES)

    path = fetch_model("hf://owner/model/sub", cache)
    assert contents(path) == {"x.txt": b"x"}
    assert not [request for request in hub.requests if "model.safetensors" in request]


def test_a_file_of_a_model_is_brought(hub: Hub, cache: Cache) -> None:
    """Alone, whatever its name holds that means something in a pattern."""
    hub.repository("owner/model").commit(FILES | {"a[b]*.gguf": b"GGUF", "ab.gguf": b"no"})

    path = fetch_model("hf://owner/model@main/a[b]*.gguf", cache)
    assert path.read_bytes() == b"GGUF"
    assert contents(path.parent) == {"a[b]*.gguf": b"GGUF"}


def test_a_name_of_one_part_is_brought(hub: Hub, cache: Cache) -> None:
    """Models from before the hub had owners have no owner in their name; it names the directory in the cache."""
    hub.repository("gpt2").commit(FILES)

    assert contents(fetch_model("hf://gpt2", cache)) == FETCHED
    assert [name.partition("-")[0] for name in left_behind(cache)] == ["gpt2"]


def test_a_model_is_fetched_once(hub: Hub, cache: Cache) -> None:
    """The second time one question is asked: whether the branch has moved."""
    hub.repository("owner/model").commit(FILES)
    first = fetch_model("hf://owner/model", cache)
    hub.requests.clear()

    assert fetch_model("hf://owner/model:main", cache) == first
    assert hub.requests == ["GET /api/models/owner/model/revision/main"]


def test_a_moved_branch_is_noticed(hub: Hub, cache: Cache) -> None:
    """A branch is looked up each time, so a new commit is a new artifact, and the old one stays whole."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)
    old = fetch_model("hf://owner/model", cache)
    repository.commit(FILES | {"config.json": b'{"new": 1}'})

    new = fetch_model("hf://owner/model", cache)
    assert (old / "config.json").read_bytes() == b"{}"
    assert (new / "config.json").read_bytes() == b'{"new": 1}'


def test_a_pinned_commit_that_is_there_asks_nobody(hub: Hub, cache: Cache) -> None:
    """A commit never changes, so once it is in the cache it works without any hub."""
    commit = hub.repository("owner/model").commit(FILES)
    first = fetch_model(f"hf://owner/model@{commit}", cache)
    hub.requests.clear()

    assert fetch_model(f"hf://owner/model@{commit}", cache) == first
    assert hub.requests == []


def test_a_hub_that_does_not_answer_leaves_what_was_fetched(hub: Hub, cache: Cache) -> None:
    """A server restarts with the model it had, and says in its log that nobody confirmed it."""
    hub.repository("owner/model").commit(FILES)
    first = fetch_model("hf://owner/model", cache)
    hub.status = 503

    with capture_logs() as events:
        assert fetch_model("hf://owner/model", cache) == first
    assert "artifact.unconfirmed" in [event["event"] for event in events]


def test_a_damaged_artifact_does_not_stand_in_for_a_hub(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no longer whole must be fetched again, and when that fails, so does the whole."""
    hub.repository("owner/model").commit(FILES)
    (fetch_model("hf://owner/model", cache) / "config.json").unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(StorageUnavailableError, match="Connection refused"):
        fetch_model("hf://owner/model", cache)


def test_a_model_that_became_gated_is_not_served_from_the_cache_unasked(hub: Hub, cache: Cache) -> None:
    """A refusal is an answer: only silence is bridged."""
    hub.repository("owner/model").commit(FILES)
    fetch_model("hf://owner/model", cache)
    hub.status = 403

    with pytest.raises(AccessDeniedError):
        fetch_model("hf://owner/model", cache)


def test_a_fetch_is_logged(hub: Hub, cache: Cache) -> None:
    """One event says what was brought, at which commit, its size and how long it took."""
    commit = hub.repository("owner/model").commit(FILES)

    with capture_logs() as events:
        fetch_model("hf://owner/model", cache)
    fetched = next(event for event in events if event["event"] == "artifact.fetched")
    assert fetched["uri"] == f"hf://owner/model@{commit}"
    assert fetched["bytes"] == sum(map(len, FETCHED.values()))


def test_the_servers_own_offline_setting_stops_no_fetch(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our server keeps vLLM from fetching anything with a setting that our own fetches must not obey."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.repository("owner/model").commit(FILES)

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED


def test_an_offline_wish_of_the_user_is_obeyed(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRANSFORMERS_OFFLINE, which we never set, still keeps everything at home."""
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")

    with pytest.raises(StorageError, match=r"TRANSFORMERS_OFFLINE is set.*unset it"):
        fetch_model("hf://owner/model", cache)
    assert hub.requests == []


@pytest.mark.parametrize("token", [None, "hf_other"], ids=["no token", "a token without access"])
def test_a_gated_model_says_how_to_get_it(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """The error has the page to ask on and the variable to set; no token is ever shown."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)
    repository.token = "hf_good"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(
        AccessDeniedError, match=f"is gated; request access at {hub.url}/owner/model, and set HF_TOKEN"
    ) as caught:
        fetch_model("hf://owner/model", cache)
    assert "hf_other" not in str(caught.value)
    assert left_behind(cache) == []


def test_a_gated_model_is_brought_with_a_token(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN reaches the hub."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)
    repository.token = "hf_good"
    monkeypatch.setenv("HF_TOKEN", "hf_good")

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED


def test_a_token_that_is_no_token_is_told(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong HF_TOKEN is not an absent model, also where everyone may have the model."""
    hub.repository("owner/model").commit(FILES)
    monkeypatch.setenv("HF_TOKEN", "wrong")

    with pytest.raises(AccessDeniedError, match=r"responds 401 \(Invalid credentials.*set HF_TOKEN to a valid token"):
        fetch_model("hf://owner/model", cache)


def test_an_unknown_model_is_not_found(hub: Hub, cache: Cache) -> None:
    """The hub does not tell absent from private, so the error names both remedies."""
    with pytest.raises(ArtifactNotFoundError, match=r"owner/nope, or a private one; check the name, or set HF_TOKEN"):
        fetch_model("hf://owner/nope", cache)


def test_a_missing_revision_is_guessed(hub: Hub, cache: Cache) -> None:
    """Who misspells a branch sees which there are."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)

    with pytest.raises(ArtifactNotFoundError, match="has no revision 'mian'; did you mean \"main\""):
        fetch_model("hf://owner/model@mian", cache)
    with pytest.raises(ArtifactNotFoundError, match="has no revision 'v9'; the branches and tags here are main"):
        fetch_model("hf://owner/model@v9", cache)


def test_a_missing_commit_is_not_found(hub: Hub, cache: Cache) -> None:
    """A commit is not looked up beforehand, and its absence is told all the same."""
    hub.repository("owner/model").commit(FILES)

    with pytest.raises(ArtifactNotFoundError, match="has no such commit"):
        fetch_model(f"hf://owner/model@{'0' * 40}", cache)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, AccessDeniedError, "403.*set HF_TOKEN"),
        (404, ArtifactNotFoundError, "404.*check the name"),
        (429, StorageUnavailableError, "429.*try again"),
        (503, StorageUnavailableError, "503.*try again"),
        (200, StorageUnavailableError, "check HF_ENDPOINT"),
        (418, StorageError, "418"),
    ],
)
def test_what_a_hub_answers_is_told_apart(
    hub: Hub, cache: Cache, status: int, error: type[StorageError], words: str
) -> None:
    """Forbidden, absent, busy and not a hub at all are different errors."""
    hub.status = status

    with pytest.raises(StorageError, match=words) as caught:
        fetch_model("hf://owner/model", cache)
    assert type(caught.value) is error


def test_a_token_that_may_see_a_model_and_not_have_it_is_denied(hub: Hub, cache: Cache) -> None:
    """What huggingface_hub calls a file missing on this disk is, at its root, a refusal."""
    hub.repository("owner/model").commit(FILES)
    hub.file_status = 403

    with pytest.raises(AccessDeniedError, match=r"responds 403.*set HF_TOKEN to a valid token"):
        fetch_model("hf://owner/model", cache)


def test_a_hub_out_of_reach_is_unavailable(cache: Cache, only_hub_settings: pytest.MonkeyPatch) -> None:
    """A refused connection may pass; the password of a private mirror is not shown."""
    only_hub_settings.setenv("HF_ENDPOINT", "http://someone:s3cret@127.0.0.1:9")

    with pytest.raises(StorageUnavailableError, match=r"Connection refused.*try again") as caught:
        fetch_model("hf://owner/model", cache)
    assert "s3cret" not in str(caught.value)


def test_a_broken_download_goes_on(hub: Hub, cache: Cache) -> None:
    """A connection that is reset in the middle of a file costs time and nothing else."""
    hub.repository("owner/model").commit(FILES)
    hub.resets = 2

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED
    assert hub.resets == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_bit_is_found(hub: Hub, cache: Cache, name: str) -> None:
    """Small files and large ones are held to the digests that the hub lists, and a wrong one is named and not kept."""
    hub.repository("owner/model").commit(FILES)
    hub.corrupted_file = name

    with pytest.raises(ArtifactCorruptError, match=f"{name}: (git-blob-sha1|sha256) is .* and the store lists"):
        fetch_model("hf://owner/model", cache)
    assert left_behind(cache) == []


def test_a_repository_that_would_write_elsewhere_is_refused(hub: Hub, cache: Cache) -> None:
    """Not even its harmless files are fetched."""
    hub.repository("owner/model").commit(FILES | {"../../../evil": b"x"})

    with pytest.raises(ArtifactCorruptError, match="leads out of its directory; the model is refused"):
        fetch_model("hf://owner/model", cache)
    assert not [request for request in hub.requests if "resolve" in request]


def test_a_token_is_for_the_hub_alone(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub leads to another host for the bytes, the token does not go along."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)
    repository.token = "hf_good"
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.redirects_files = True

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED
    assert hub.file_host_requests
    assert not any("hf_good" in str(headers) for headers in hub.file_host_requests)


def test_the_hub_is_asked_once_where_a_file_lies(hub: Hub, cache: Cache) -> None:
    """The hub counts questions, so all ranges of a file but the first go where it led before."""
    hub.repository("owner/model").commit({"model.safetensors": bytes(10_000_000), "config.json": b"{}"})
    hub.redirects_files = True

    fetch_model("hf://owner/model", cache)
    assert 16 < len(hub.file_host_requests) < 60
    assert sorted(request for request in hub.requests if "resolve" in request) == [
        f"GET /owner/model/resolve/{hub.repository('owner/model').branches['main']}/{name}"
        for name in ("config.json", "model.safetensors")
    ]


def test_the_rate_limit_of_the_hub_is_waited_for(hub: Hub, cache: Cache) -> None:
    """As long as its header says, which is longer than any backoff, and the log says so."""
    hub.repository("owner/model").commit(FILES)
    hub.limited = 1
    started = time.monotonic()

    with capture_logs() as events:
        assert contents(fetch_model("hf://owner/model", cache)) == FETCHED
    assert time.monotonic() - started > 3
    (retried,) = (event for event in events if event["event"] == "storage.retried")
    assert "429 (" in retried["reason"]
    assert retried["delay_seconds"] > 3


def test_a_rate_limit_does_not_keep_back_what_was_fetched(hub: Hub, cache: Cache) -> None:
    """A server that restarts serves the model it had, and does not wait for minutes to have it confirmed."""
    hub.repository("owner/model").commit(FILES)
    first = fetch_model("hf://owner/model", cache)
    hub.limited, hub.limit_seconds = 1, 300

    assert fetch_model("hf://owner/model", cache) == first


def test_a_long_wait_is_told_to_those_who_show_progress(hub: Hub, cache: Cache) -> None:
    """It would be taken for a stall."""
    hub.repository("owner/model").commit(FILES)
    hub.limited, hub.limit_seconds = 1, 300

    class ToldError(Exception):
        """Ends the test before the wait."""

    def stop(seconds: float) -> None:
        raise ToldError(seconds)

    context = copy_context()
    context.run(on_wait.set, stop)
    with pytest.raises(ToldError) as caught:
        context.run(fetch_model, "hf://owner/model", cache)
    assert caught.value.args[0] >= 300


def test_a_wait_that_is_longer_than_the_download_may_take_is_an_error(hub: Hub, cache: Cache) -> None:
    """Right away."""
    hub.repository("owner/model").commit(FILES)
    hub.limited = 1
    settings = GlobalStorageConfig.model_validate({"cache_dir": cache.root, "transfer": {"timeout_seconds": 2}})

    with pytest.raises(StorageUnavailableError, match=r"429.*try again in 3 seconds, as it asks"):
        materialize(StorageConfig(uri="hf://owner/model"), settings, ignore_progress)


def test_requests_of_others_in_this_process_stay_offline(hub: Hub) -> None:
    """An engine's library asks nobody, also after a download in its process."""
    hub.repository("owner/model").commit(FILES)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE_PROCESS], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.splitlines()[-2:] == ["huggingface_hub.hf_file_system", "OfflineModeIsEnabled"], ended.stderr
    assert len(hub.requests) > 1


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://proxy.test:port", "http_proxy is not the address of a proxy"),
        ("socks5h://127.0.0.1:9", "(Could not connect to proxy|needs the package 'python-socks')"),
    ],
)
def test_the_proxies_are_ours_and_not_those_of_the_librarys_client(hub: Hub, proxy: str, words: str) -> None:
    """Which refuses those that it does not know as soon as it is made."""
    environment = {**os.environ, "http_proxy": proxy, "NO_PROXY": ""}

    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE_PROCESS], env=environment, capture_output=True, text=True, check=False
    )
    assert re.search(words, ended.stderr)
    assert hub.requests == []


def test_a_listing_of_a_mirror_stays_on_the_mirror(hub: Hub, cache: Cache) -> None:
    """Its next page is named with the address of the hub that it mirrors."""
    hub.repository("owner/model").commit(FILES)
    hub.lists_sizes = False
    hub.page, hub.link_host = 2, "https://huggingface.co"

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED
    assert len([request for request in hub.requests if "/tree/" in request]) == 2


def test_a_mirror_without_sizes_lists_no_model_without_an_owner(hub: Hub, cache: Cache) -> None:
    """The error says what to write."""
    hub.repository("gpt2").commit(FILES)
    hub.lists_sizes = False

    with pytest.raises(StorageError, match="lists no model without its owner; write hf://OWNER/gpt2"):
        fetch_model("hf://gpt2", cache)


def test_an_address_that_is_not_valid_any_more_is_asked_for_again(hub: Hub, cache: Cache) -> None:
    """Addresses are signed for minutes and models take hours."""
    hub.repository("owner/model").commit({"model.safetensors": bytes(2 << 20)})
    hub.redirects_files = True

    def turn(done: int, total: int | None) -> None:
        hub.signature = str(len(hub.file_host_requests))

    hub.delay_seconds = 0.01
    path = fetch_model("hf://owner/model", cache, turn)
    assert (path / "model.safetensors").stat().st_size == 2 << 20
    assert hub.signature != "1"


def test_a_token_of_the_config_is_for_one_owner(hub: Hub, cache: Cache) -> None:
    """A block that names an owner is sent for no other's models."""
    for owner in ("mine", "other"):
        repository = hub.repository(f"{owner}/model")
        repository.commit(FILES)
        repository.token = "hf_good"
    block = {"owner": "mine", "token": "hf_good\n"}
    settings = GlobalStorageConfig.model_validate({"cache_dir": cache.root, "credentials": {"hf": [block]}})

    assert contents(materialize(StorageConfig(uri="hf://mine/model"), settings, ignore_progress)) == FETCHED
    with pytest.raises(GatedError):
        materialize(StorageConfig(uri="hf://other/model"), settings, ignore_progress)


def test_a_mirror_behind_a_password_is_let_in(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user in HF_ENDPOINT is said in a header, and in no message."""
    hub.repository("owner/model").commit(FILES)
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//someone:s3cret@"))

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED


def test_a_mirror_takes_the_login_of_netrc(
    hub: Hub, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every host on the web."""
    repository = hub.repository("owner/model")
    repository.commit(FILES)
    repository.login = "Basic bWU6czNjcmV0"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    assert contents(fetch_model("hf://owner/model", cache)) == FETCHED


def test_a_mirror_without_sizes_is_asked_for_its_tree(hub: Hub, cache: Cache) -> None:
    """Page by page; digests are in it as well."""
    hub.repository("owner/model").commit(FILES)
    hub.lists_sizes = False
    hub.page = 2

    path = fetch_model("hf://owner/model", cache)
    assert contents(path) == FETCHED
    assert len([request for request in hub.requests if "/tree/" in request]) == 2


def test_a_hub_that_is_no_address_is_told(cache: Cache, only_hub_settings: pytest.MonkeyPatch) -> None:
    """A host without a scheme, most often."""
    only_hub_settings.setenv("HF_ENDPOINT", "mirror.example.com")

    with pytest.raises(StorageError, match=r"HF_ENDPOINT is 'mirror.example.com', .*write https://HOST"):
        fetch_model("hf://owner/model", cache)
