"""What can be told of the image without building it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_VARIANTS = ("cpu", "gpu", "proxy")

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def instructions() -> Sequence[Instruction]:
    """The Containerfile as instructions and their arguments, each on one line, without comments."""
    text = (_ROOT / "Containerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(scope="module")
def final(instructions: Sequence[Instruction]) -> Sequence[Instruction]:
    """The instructions of the last stage, which is the image."""
    start = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def test_every_base_image_has_a_version(instructions: Sequence[Instruction]) -> None:
    """An image is built from a named release or an earlier stage, never from whatever is latest."""
    stages = {words[2] for words in _arguments(instructions, "FROM") if len(words) == 3}
    bases = {words[0] for words in _arguments(instructions, "FROM")} - stages - {"scratch", "runtime-${VARIANT}"}

    assert bases
    assert all(":" in base and not base.endswith(":latest") for base in bases)


@pytest.mark.parametrize("variant", _VARIANTS)
def test_each_variant_has_its_stage_and_its_requirements(instructions: Sequence[Instruction], variant: str) -> None:
    """Whatever VARIANT chooses is there."""
    stages = {words[2] for words in _arguments(instructions, "FROM") if len(words) == 3}
    copied = [words[0].replace("${VARIANT}", variant) for words in _arguments(instructions, "COPY")]

    assert f"runtime-{variant}" in stages
    assert f"requirements/{variant}.txt" in copied
    assert (_ROOT / f"requirements/{variant}.txt").is_file()


def test_the_image_has_pip_if_it_downloads_models() -> None:
    """Storage of the scheme pypi:// runs it."""
    assert [variant for variant in _VARIANTS if "pip" in _pinned(variant)] == ["cpu", "gpu"]


def test_the_labels_are_those_of_the_image_specification(final: Sequence[Instruction]) -> None:
    """https://github.com/opencontainers/image-spec/blob/main/annotations.md: what, which version, from where."""
    labels = dict(word.split("=", 1) for word in shlex.split(_last(final, "LABEL")))
    names = {"title", "description", "licenses", "version", "revision", "created", "source", "base.name"}

    assert labels.keys() == {f"org.opencontainers.image.{name}" for name in names}
    assert set(re.findall(r"\$\{(\w+)\}", _last(final, "LABEL"))) == set(_last(final, "ARG").split())


def test_only_the_build_trusts_the_authority_of_a_proxy(
    instructions: Sequence[Instruction], final: Sequence[Instruction]
) -> None:
    """The secret is used in a stage that is not part of the image."""
    uses = [rest for name, rest in instructions if name == "RUN" and "id=ca" in rest]

    assert len(uses) == 1
    assert not any("id=ca" in rest for _, rest in final)


def test_all_that_is_copied_passes_the_ignore_file(instructions: Sequence[Instruction]) -> None:
    """What the build needs is in its context, and exists."""
    sources = [
        word.replace("${VARIANT}", "cpu")
        for words in _arguments(instructions, "COPY")
        if not words[0].startswith("--from")
        for word in words[:-1]
    ]

    assert sources
    assert all((_ROOT / source).exists() and not _is_ignored(source) for source in sources)


@pytest.mark.parametrize(
    "path", [".git/HEAD", ".venv/bin/python", "appliance/__pycache__/cli.pyc", "tests", "examples"]
)
def test_what_no_image_needs_stays_out_of_the_context(path: str) -> None:
    """History, environments, caches and tests never reach a builder."""
    assert _is_ignored(path)


def test_the_user_is_not_root(final: Sequence[Instruction]) -> None:
    """The user is a number, so that Kubernetes can tell that it is not root."""
    user = _last(final, "USER").partition(":")[0]

    assert user.isdigit()
    assert int(user) > 0


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_the_command_is_run_without_a_shell(final: Sequence[Instruction], name: str) -> None:
    """A shell in between would keep SIGTERM for itself."""
    words = json.loads(_last(final, name))

    assert all(isinstance(word, str) for word in words)


def test_the_image_serves_the_mounted_config(final: Sequence[Instruction]) -> None:
    """Without arguments it serves the one file it is given."""
    assert json.loads(_last(final, "ENTRYPOINT"))[-1] == "appliance"
    assert json.loads(_last(final, "CMD")) == ["serve", "/etc/appliance/config.yaml"]


def test_health_is_liveness(final: Sequence[Instruction]) -> None:
    """A container whose model still loads is healthy."""
    check = _last(final, "HEALTHCHECK")

    assert json.loads(check.partition("CMD ")[2]) == ["appliance", "probe", "live"]


def test_all_caches_lie_on_the_one_volume(final: Sequence[Instruction]) -> None:
    """With a read-only root nothing else can be written."""
    volume = _last(final, "VOLUME")
    environment = dict(word.split("=", 1) for word in shlex.split(_last(final, "ENV")))

    for name in ("HOME", "XDG_CACHE_HOME"):
        assert Path(environment[name]).is_relative_to(volume)
    assert _last(final, "WORKDIR") == volume


def _arguments(instructions: Sequence[Instruction], name: str) -> Iterator[list[str]]:
    return (shlex.split(rest) for each, rest in instructions if each == name)


def _pinned(variant: str) -> dict[str, str]:
    """The versions of a variant's packages."""
    lines = (_ROOT / f"requirements/{variant}.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)


def _last(instructions: Sequence[Instruction], name: str) -> str:
    return [rest for each, rest in instructions if each == name][-1]


def _is_ignored(path: str) -> bool:
    """Whether the ignore file keeps `path` out; its last pattern that matches decides."""
    ignored = False
    for line in (_ROOT / ".containerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(part, pattern) for part in _prefixes(path, anywhere="**/" in line)):
                ignored = not line.startswith("!")
    return ignored


def _prefixes(path: str, *, anywhere: bool) -> Iterator[str]:
    parts = Path(path).parts
    return iter(parts) if anywhere else ("/".join(parts[: end + 1]) for end in range(len(parts)))
