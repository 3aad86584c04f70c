"""Libraries that embed in their own process: one for each run of this file, with all cores for one caller.

Run as ``python embedders.py NAME MODEL TEXTS SECONDS``, where TEXTS is a JSON file; prints JSON with texts per second
and CPU seconds per text at each point, and the vectors of the varied texts.
It imports nothing of the project: some libraries live in an environment of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Embed = Callable[[Sequence[str]], Any]  # Any: an array of `(texts, dimensions)`

CORES = len(os.sched_getaffinity(0))


def sentence_transformers(model: Path) -> Embed:
    """The reference: torch in float32."""
    from sentence_transformers import SentenceTransformer

    transformer = SentenceTransformer(str(model), device="cpu")
    return lambda texts: transformer.encode(list(texts), batch_size=64, show_progress_bar=False)


def fastembed(model: Path) -> Embed:
    """ONNX Runtime in float32."""
    return _fastembed(model, "onnx/model.onnx")


def fastembed_int8(model: Path) -> Embed:
    """ONNX Runtime with int8 weights."""
    return _fastembed(model, "onnx/model_quantized.onnx")


def _fastembed(model: Path, file: str) -> Embed:
    import numpy as np
    from fastembed import TextEmbedding  # type: ignore[import-not-found] # installed elsewhere
    from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found] # as above

    TextEmbedding.add_custom_model(
        model="bench/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="bench/model"),
        dim=384,
        model_file=file,
    )
    embedding = TextEmbedding("bench/model", specific_model_path=str(model), threads=CORES)
    return lambda texts: np.stack(list(embedding.embed(texts, batch_size=64)))


def _measure(embed: Embed, texts: Sequence[str], seconds: float) -> tuple[float, float]:
    embed(texts)
    began, before, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        embed(texts)
        count += len(texts)
    return count / (time.perf_counter() - began), (time.process_time() - before) / count


def main() -> None:
    """Measure one library."""
    name, model, file, seconds = sys.argv[1:]
    given = json.loads(Path(file).read_text())
    embed = globals()[name](Path(model))
    points = [_measure(embed, texts, float(seconds)) for texts in given["points"]]
    print(json.dumps({"points": points, "vectors": embed(given["varied"]).tolist()}))


if __name__ == "__main__":
    main()
