"""Converts a GGUF file, which vLLM cannot read, into a directory of safetensors, once.

``python -m appliance.engines.vllm.gguf_convert SOURCE TARGET`` does it, so that a server never has Torch's threads.
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

import structlog

from appliance.core import child_process
from appliance.core.disk import OnProgress, translate_disk_errors
from appliance.core.errors import LoadError, MissingExtraError, NoSpaceError
from appliance.engines.vllm.env import is_cpu_build
from appliance.storage import Cache, sha256_in_cache

log = structlog.get_logger()

# Part of the cache key: raised when the conversion changes, so that older results are converted again.
_CONVERSION_VERSION = 1

_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_PACKAGES = ("torch", "transformers", "gguf", "accelerate")


def convert(gguf: Path, cache: Cache, on_progress: OnProgress) -> Path:
    """Return a directory with the model of a GGUF file, dequantized to bfloat16, its tokenizer and chat template.

    Raises:
        LoadError: the file is no GGUF, or of an architecture that cannot be converted.
        MissingExtraError: a package that the conversion needs is not installed.
    """
    with translate_disk_errors(gguf):
        status = gguf.stat()
    fingerprint = sha256_in_cache(gguf) or f"{gguf.absolute()}:{status.st_size}:{status.st_mtime_ns}"
    key = f"gguf://{gguf.stem}#{fingerprint} {_CONVERSION_VERSION}"
    return cache.build(key, lambda target: _run(gguf, target, on_progress), on_progress)


def _run(gguf: Path, target: Path, on_progress: OnProgress) -> None:
    _require_convertible(gguf)
    started = time.monotonic()
    result = child_process.run(
        [sys.executable, "-P", "-m", __name__, str(gguf.absolute()), str(target)],
        {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"},
        lambda _: on_progress(0, None),
    )
    if result.status == errno.ENOSPC:
        raise NoSpaceError(
            f"{target}: no space left for the converted model; "
            "free some space, or point storage.cache_dir at a larger disk"
        )
    if result.status < 0:
        raise LoadError(
            f"{gguf}: its conversion was killed by signal {-result.status}; most often memory ran out: "
            "give this machine or container more of it"
        )
    if result.status != 0:
        last = result.lines[-1] if result.lines else f"it ended with status {result.status}"
        raise LoadError(f"{gguf}: cannot be converted for vLLM: {last}")
    log.info("artifact.converted", path=str(gguf), seconds=round(time.monotonic() - started, 3))


def _require_convertible(gguf: Path) -> None:
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "cpu" if is_cpu_build() else "gpu", "Converting a GGUF file")
    if _PART.search(gguf.name):
        raise LoadError(f"{gguf}: one part of a model; join the parts with: llama-gguf-split --merge FIRST_PART OUTPUT")
    with translate_disk_errors(gguf), gguf.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise LoadError(f"{gguf}: not a GGUF file, despite its name")


def _convert(source: Path, target: Path) -> None:
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
    # Checked before, because each library reports a full disk differently.
    if shutil.disk_usage(target).free < model.get_memory_footprint():
        sys.exit(errno.ENOSPC)
    for config in (model.config, model.generation_config):
        # Without an end token, generation never ends.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(config, name, None) is None:
                setattr(config, name, getattr(tokenizer, name))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
