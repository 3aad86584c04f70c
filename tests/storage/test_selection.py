"""What is fetched of a place, whatever store it lies in."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from appliance.config.storage import StorageConfig
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage.filesystems.base import Listing, RemoteFile
from appliance.storage.selection import is_pickle, log_left_out, select

PLACE = "s3://bucket/model"
MODEL = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def selected(*names: str, is_file: bool = False, **settings: object) -> list[str]:
    """The names of what is fetched out of files of one byte."""
    listing = Listing(PLACE, tuple(RemoteFile(name, 1) for name in names), is_file)
    storage = StorageConfig.model_validate({"uri": PLACE, **settings})
    return [file.name for file in select(listing, storage).files]


@pytest.mark.parametrize(
    "other",
    [
        "pytorch_model.bin",
        "model.PT",
        "consolidated.00.pth",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "rust_model.ot",
        "model-Q4_K_M.gguf",
        "gguf/model.gguf",
        "onnx/model.onnx_data",
        "openvino/openvino_model.xml",
        "original/params.json",
        "training_args.bin",
        ".gitattributes",
        ".git/HEAD",
        ".cache/huggingface/download/config.json.metadata",
    ],
)
def test_what_only_other_programs_load_is_left_out(other: str) -> None:
    """Beside safetensors, weights in other formats are not fetched, nor anybody's bookkeeping."""
    assert selected(*MODEL, other) == list(MODEL)


@pytest.mark.parametrize(
    "needed", ["2_Dense/pytorch_model.bin", "1_Pooling/config.json", "chat_template.jinja", "a/b.txt", ".hidden"]
)
def test_everything_else_is_fetched(needed: str) -> None:
    """
    Whatever a model may need comes, dotfiles too, and the pickled layers of Sentence Transformers that vLLM reads.
    """
    assert selected(*MODEL, needed) == [*MODEL, needed]


def test_empty_files_are_fetched_and_markers_of_directories_are_not() -> None:
    """A file of no bytes is a file; what a console makes for an empty directory is none."""
    files = (RemoteFile("__init__.py", 0), RemoteFile("sub/", 0), RemoteFile("sub/x", 1))
    selection = select(Listing(PLACE, files), StorageConfig(uri=PLACE))

    assert [file.name for file in selection.files] == ["__init__.py", "sub/x"]
    assert selection.left_out == {"sub/": "stands for a directory"}


def test_include_takes_what_it_names_and_nothing_else() -> None:
    """
    `*` matches `/` too, a name that ends with `/` is a directory, and what is named is no longer left out by itself.
    """
    names = (*MODEL, "onnx/model.onnx", "onnx/deep/data", "onnx2/x", ".gitattributes")

    assert selected(*names, include=["*.json", "onnx/"]) == [
        "config.json",
        "tokenizer.json",
        "onnx/model.onnx",
        "onnx/deep/data",
    ]


def test_exclude_goes_over_include_and_over_what_is_taken_by_itself() -> None:
    """What it matches never comes."""
    assert selected(*MODEL, exclude=["tokenizer*"]) == [name for name in MODEL if name != "tokenizer.json"]
    assert selected(*MODEL, include=["*.json"], exclude=["tokenizer*"]) == ["config.json"]


def test_globs_that_leave_nothing_are_an_error_that_names_what_there_is() -> None:
    """A misspelt glob is found before anything is served without its weights."""
    reason = r"include \(\*\.safetensorz\) matches nothing of its 4 files; the largest are config"
    with pytest.raises(ArtifactNotFoundError, match=reason):
        selected(*MODEL, include=["*.safetensorz"])
    with pytest.raises(ArtifactNotFoundError, match="exclude leaves nothing"):
        selected(*MODEL, exclude=["*"])


def test_what_is_left_out_is_logged() -> None:
    """How many files, and why; nobody needs to guess where his file went."""
    listing = Listing(PLACE, tuple(RemoteFile(name, 1) for name in (*MODEL, "pytorch_model.bin", "README.gguf")))
    with capture_logs() as logs:
        log_left_out(PLACE, select(listing, StorageConfig(uri=PLACE)).left_out)

    assert logs == [
        {
            "event": "artifact.selected",
            "log_level": "info",
            "uri": PLACE,
            "left_out": 2,
            "reasons": ["is the same weights as the safetensors beside it"],
        }
    ]


def test_pickles_alone_are_refused_before_they_are_fetched() -> None:
    """The error says how to allow them; then they come."""
    with pytest.raises(StorageError, match=r"pytorch_model\.bin: pickled.*set allow_pickle: true"):
        selected("config.json", "pytorch_model.bin")
    assert selected("config.json", "pytorch_model.bin", allow_pickle=True) == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.PTH", "a.pkl", "a.pickle", "a.ckpt", "a.joblib", "x/a.dill"])
def test_naming_a_pickle_does_not_allow_it(name: str) -> None:
    """Neither as a single file nor under include."""
    assert is_pickle(name)
    with pytest.raises(StorageError, match="allow_pickle: true"):
        selected(name, is_file=True)
    with pytest.raises(StorageError, match="allow_pickle: true"):
        selected(*MODEL, name, include=["*"])


def test_allowed_pickles_are_still_left_out_beside_safetensors() -> None:
    """They are the same weights once more, unless include names them."""
    assert selected(*MODEL, "pytorch_model.bin", allow_pickle=True) == list(MODEL)
    assert selected(*MODEL, "x.bin", include=["*"], allow_pickle=True) == [*MODEL, "x.bin"]


def test_other_weights_alone_want_to_be_named() -> None:
    """Gigabytes that no engine here loads are not fetched by default."""
    with pytest.raises(StorageError, match=r"no safetensors, only model\.onnx; .* include: model\.onnx"):
        selected("config.json", "model.onnx")
    assert selected("config.json", "model.onnx", include=["*.onnx"]) == ["model.onnx"]


def test_gguf_files_without_a_choice_are_refused() -> None:
    """A place with many quantizations is not fetched as a whole; the error lists what to write."""
    with pytest.raises(StorageError, match=r"no safetensors; write which: a-Q4\.gguf, a-Q8\.gguf"):
        selected("a-Q8.gguf", "a-Q4.gguf", "config.json")


def test_a_place_without_weights_is_fetched_whole() -> None:
    """A tokenizer, a template, an adapter's config: not everything is weights."""
    assert selected("tokenizer.json", "onnx/notes.txt") == ["tokenizer.json", "onnx/notes.txt"]


def test_one_file_is_fetched_when_it_is_named() -> None:
    """Naming a file asks for it alone, whatever it is; of an archive, the members are selected later."""
    assert selected("model.gguf", is_file=True) == ["model.gguf"]
    assert selected("model.tar.gz", is_file=True, include=["*.safetensors"]) == ["model.tar.gz"]


@pytest.mark.parametrize("rules", [{"exclude": ["*.gguf"]}, {"include": ["*.safetensors"]}])
def test_globs_hold_for_one_file(rules: dict[str, list[str]]) -> None:
    """What they leave nothing of is no model."""
    with pytest.raises(ArtifactNotFoundError, match=r"the largest are model\.gguf"):
        selected("model.gguf", is_file=True, **rules)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:x", "a\\..\\x", "a\0b", "", "a//b", "./a", "a/../"])
def test_one_name_that_leads_elsewhere_condemns_the_place(name: str) -> None:
    """A store is not trusted with our disk: nothing of such a place is fetched, whatever exclude says."""
    with pytest.raises(ArtifactCorruptError, match="the model is refused"):
        selected(*MODEL, name, exclude=[name])


@pytest.mark.parametrize("pair", [("a", "a/b"), ("README.md", "readme.md")])
def test_names_that_want_one_place_are_refused(pair: tuple[str, str]) -> None:
    """Object stores have names that no file system can hold beside each other; exclude chooses one."""
    with pytest.raises(ArtifactCorruptError, match="leave one of them out with exclude"):
        selected(*pair)
    assert selected(*pair, exclude=[pair[0]]) == [pair[1]]


def test_an_empty_place_is_not_found() -> None:
    """A prefix without files is no model."""
    with pytest.raises(ArtifactNotFoundError, match="there are no files"):
        selected()
