"""Turn a GGUF file, which vLLM cannot take, into a directory of safetensors, once.

The work is done by ``python -m appliance.engines.vllm.gguf_convert SOURCE TARGET``,
so that a server never gets torch's threads.
"""

from __future__ import annotations

import errno
import importlib.util
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import structlog

from appliance.core import child_process
from appliance.core.disk_errors import translate_disk_errors
from appliance.core.errors import LoadError, MissingExtraError, NoSpaceError
from appliance.core.progress import OnProgress
from appliance.storage import Cache, sha256_in_cache

log = structlog.get_logger()

# Part of the key: raised when the conversion changes, so that what an older one made is made again.
_RECIPE = 1

_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_NEEDED = ("torch", "transformers", "gguf", "accelerate")


def convert(gguf: Path, cache: Cache, on_progress: OnProgress) -> Path:
    """The directory with the model of a GGUF file, dequantized to bfloat16, and its tokenizer and chat template.

    Raises:
        LoadError: the file is no GGUF, or of an architecture that cannot be converted.
        MissingExtraError: a package the conversion needs is not installed.
    """
    key = f"gguf://{gguf.stem}#{_fingerprint(gguf)} {_RECIPE}"
    return cache.build(key, lambda target: _make(gguf, target, on_progress), on_progress)


def _fingerprint(gguf: Path) -> str:
    """What tells this file from another: its digest where it is known, else where it lies and when it was written."""
    with translate_disk_errors(gguf):
        facts = gguf.stat()
    return sha256_in_cache(gguf) or f"{gguf.absolute()}:{facts.st_size}:{facts.st_mtime_ns}"


def _make(gguf: Path, target: Path, on_progress: OnProgress) -> None:
    _check(gguf)
    begun = time.monotonic()
    ended = child_process.run(
        [sys.executable, "-P", "-m", __name__, str(gguf.absolute()), str(target)],
        {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"},
        lambda _: on_progress(0, None),
    )
    if ended.status == errno.ENOSPC:
        raise NoSpaceError(
            f"{target}: no space left for the converted model; "
            "free some space, or point storage.cache_dir at a larger disk"
        )
    if ended.status < 0:
        raise LoadError(
            f"{gguf}: its conversion was killed by signal {-ended.status}; most often memory ran out: "
            "give this machine or container more of it"
        )
    if ended.status != 0:
        last = ended.lines[-1] if ended.lines else f"it ended with status {ended.status}"
        raise LoadError(f"{gguf}: cannot be converted for vLLM: {last}")
    log.info("artifact.converted", path=str(gguf), seconds=round(time.monotonic() - begun, 3))


def _check(gguf: Path) -> None:
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "cpu", "Converting a GGUF file")
    if _PART.search(gguf.name):
        raise LoadError(f"{gguf}: one part of a model; join the parts with: llama-gguf-split --merge FIRST_PART WHOLE")
    with translate_disk_errors(gguf), gguf.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise LoadError(f"{gguf}: not a GGUF file, whatever its name says")


def _convert(source: Path, target: Path) -> None:
    """The conversion itself, in the child."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        # Without it the weights stay quantized in memory, and such a model cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    # Asked beforehand, because vendors report a full disk each in their own words.
    if shutil.disk_usage(target).free < model.get_memory_footprint():
        sys.exit(errno.ENOSPC)
    _agree(model.config, tokenizer)
    _agree(model.generation_config, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _agree(config: Any, tokenizer: Any) -> None:  # Any: transformers' own untyped attributes
    """Give a config the special tokens it lacks: without an end token an answer never ends."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(tokenizer, name))


def main() -> None:
    """Convert, and end with one line on stderr that says what went wrong."""
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
