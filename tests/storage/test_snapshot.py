"""
What is fetched of a repository, and the look at what came.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from appliance.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage.snapshot import Listed, select, verify

MODEL = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def listed(*names: str) -> list[Listed]:
    """
    Files of one byte.
    """
    return [Listed(name, 1, "0" * 40) for name in names]


def selected(names: tuple[str, ...], path: str = "") -> list[str]:
    """
    The names of what is fetched for `path`.
    """
    return [file.name for file in select("hf://o/m@main", listed(*names), path)]


@pytest.mark.parametrize(
    "other",
    [
        "pytorch_model.bin",
        "model.pt",
        "consolidated.00.pth",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "rust_model.ot",
        "model-Q4_K_M.gguf",
        "gguf/model.gguf",
        "onnx/model.onnx_data",
        "openvino/openvino_model.bin",
        "original/params.json",
        "training_args.bin",
        ".gitattributes",
        ".cache/huggingface/download/config.json.metadata",
    ],
)
def test_what_only_other_programs_load_is_left_out(other: str) -> None:
    """
    Beside safetensors, weights in other formats are not fetched, nor anybody's bookkeeping.
    """
    assert selected((*MODEL, other)) == list(MODEL)


@pytest.mark.parametrize(
    "needed", ["2_Dense/pytorch_model.bin", "1_Pooling/config.json", "chat_template.jinja", "a/b.txt"]
)
def test_everything_else_is_fetched(needed: str) -> None:
    """
    Whatever a model may need comes, also the pickled layers of Sentence Transformers that vLLM reads.
    """
    assert selected((*MODEL, needed)) == [*MODEL, needed]


def test_a_file_is_fetched_when_it_is_named() -> None:
    """
    Naming a file asks for it alone, whatever its kind.
    """
    assert selected((*MODEL, "q/model.gguf"), "q/model.gguf") == ["q/model.gguf"]


def test_a_directory_is_judged_by_itself() -> None:
    """
    Only what lies below it is fetched, and what is left out depends on nothing above it.
    """
    names = (*MODEL, "onnx/adapter_model.safetensors", "onnx/adapter_model.bin", "onnx2/x")

    assert selected(names, "onnx") == ["onnx/adapter_model.safetensors"]


def test_gguf_files_without_a_choice_are_refused() -> None:
    """
    A repository with many quantizations is not fetched as a whole; the error lists what to write.
    """
    with pytest.raises(StorageError, match=r"no safetensors; write which: a-Q4\.gguf, a-Q8\.gguf"):
        selected(("a-Q8.gguf", "a-Q4.gguf", "config.json"))


def test_weights_that_are_never_loaded_are_refused_before_they_are_fetched() -> None:
    """
    A model of pickles alone cannot be served, so its bytes need not be waited for.
    """
    with pytest.raises(StorageError, match=r"no safetensors, only pytorch_model\.bin; choose a model that has them"):
        selected(("config.json", "pytorch_model.bin"))


@pytest.mark.parametrize(
    ("path", "hint"),
    [("conifg.json", 'did you mean "config.json"'), ("loar", 'did you mean "lora"'), ("zzz", "its largest files are")],
)
def test_a_path_that_is_not_there_is_guessed(path: str, hint: str) -> None:
    """
    The error names what is near, be it a file or a directory.
    """
    with pytest.raises(ArtifactNotFoundError, match=f"has no '{path}'; {hint}"):
        selected((*MODEL, "lora/adapter_model.safetensors"), path)


def test_a_model_without_files_is_not_found() -> None:
    """
    An empty repository is no model.
    """
    with pytest.raises(ArtifactNotFoundError, match="has no files"):
        selected(())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:x", "a\\..\\x", "a\0b", ""])
@pytest.mark.parametrize("path", ["", "config.json"])
def test_one_name_that_leads_elsewhere_condemns_the_repository(name: str, path: str) -> None:
    """
    A hub is not trusted with our disk: nothing of such a repository is fetched.
    """
    with pytest.raises(ArtifactCorruptError, match="the model is refused"):
        selected((*MODEL, name), path)


# What git says of a file with the contents "hello": echo -n hello | git hash-object --stdin
HELLO = Listed("hello", 5, "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0")
LARGE = Listed("large", 5, "of a pointer", hashlib.sha256(b"hello").hexdigest())


@pytest.mark.parametrize("file", [HELLO, LARGE], ids=["git's digest", "SHA-256"])
@pytest.mark.parametrize("contents", [b"hellp", b"hell", b"hello!", None])
def test_a_file_that_is_not_as_listed_is_named(tmp_path: Path, file: Listed, contents: bytes | None) -> None:
    """
    Another byte, one too few, one too many and a file that is missing are all found.
    """
    path = tmp_path / file.name
    path.write_bytes(b"hello")
    verify("hf://o/m@main", [file], tmp_path)
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)

    with pytest.raises(ArtifactCorruptError, match=f"hf://o/m@main: {file.name}: not the bytes"):
        verify("hf://o/m@main", [file], tmp_path)
