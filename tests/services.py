"""Services that speak no OpenAI: text, vectors and scores in JSON of their own, and the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from upstreams import Answer, Asked, Reaction, Upstream, json_answer

NDJSON = "application/x-ndjson"


def generate(asked: Asked) -> Answer:
    """Text as TGI has it: whole, with why it ended and the counts."""
    prompt = asked.json()["inputs"]
    details = {"finish_reason": "eos_token", "generated_tokens": 3, "prefill": len(prompt)}
    return json_answer([{"generated_text": f"Echo: {prompt}", "details": details}])


def generate_stream(asked: Asked) -> Answer:
    """The same word by word, a line each, as Ollama and its like have it; the last one has the counts."""
    words = f"Echo: {asked.json()['inputs']}".split(" ")
    texts = [words[0], *(f" {word}" for word in words[1:])]
    lines: list[dict[str, Any]] = [{"token": text, "done_reason": None} for text in texts]
    lines.append({"token": None, "done_reason": "max_tokens", "counts": {"in": 2, "out": len(texts)}})
    body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    # Cut in the middle of lines and characters.
    return Answer(body=[body[start : start + 7] for start in range(0, len(body), 7)], media_type=NDJSON)


def embed(asked: Asked) -> Answer:
    """A vector of three for each text."""
    return json_answer({"vectors": [vector(text) for text in asked.json()["texts"]], "tokens": 5})


def vector(text: str) -> list[float]:
    """A text's vector: numbers that 32 bits hold exactly."""
    return [float(len(text)), 0.5, -0.25]


def rank(asked: Asked) -> Answer:
    """A score for each document: how long it is."""
    return json_answer({"results": [{"score": len(text) / 10} for text in asked.json()["docs"]]})


def infer(asked: Asked) -> Answer:
    """v2 of the protocol: text for `text_input`, vectors for `text`, scores for `query` and `document`."""
    inputs = {each["name"]: each for each in asked.json()["inputs"]}
    first = next(iter(inputs.values()))
    size = len(first["data"])
    if "query" in inputs:
        scores = [len(text) / 10 for text in inputs["document"]["data"]]
        return tensors(output("scores", "FP32", [size, 1], scores))
    if "text" in inputs:
        flat = [number for text in first["data"] for number in vector(text)]
        return tensors(output("other", "INT64", [1], [7]), output("vectors", "FP32", [size, 3], flat))
    return tensors(output("text_output", "BYTES", [size], [f"Echo: {text}" for text in first["data"]]))


def tensors(*outputs: Mapping[str, Any]) -> Answer:
    """An answer of v2."""
    return json_answer({"model_name": "m", "model_version": "1", "id": "1", "outputs": list(outputs)})


def output(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    """One tensor."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def predict(asked: Asked) -> Answer:
    """v1 of the protocol: scores for pairs, and for plain texts what comes out of a pipeline of one's own."""
    instances = asked.json()["instances"]
    if isinstance(instances[0], dict):
        return json_answer({"predictions": [{"score": len(each["document"]) / 10} for each in instances]})
    if asked.path.endswith("vectors:predict"):
        return json_answer({"predictions": [vector(text) for text in instances]})
    return json_answer({"predictions": [f"Echo: {text}" for text in instances]})


SERVICES: Mapping[str, Reaction] = {
    "/generate": generate,
    "/generate_stream": generate_stream,
    "/embed": embed,
    "/rank": rank,
    "/v2/models/tensors/infer": infer,
    "/v1/models/instances:predict": predict,
    "/v1/models/vectors:predict": predict,
}


def install(upstream: Upstream) -> None:
    """Well-behaved, with all the services, and nothing remembered."""
    upstream.reset()
    for path, reaction in SERVICES.items():
        upstream.on(path, reaction)
