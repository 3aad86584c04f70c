"""Cohere's embeddings over scripted models."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from dialects.conftest import ScriptedModel, embeddings
from inference_doubles import InferenceClient

from appliance.core.model import Operation

VECTOR = [0.5, -0.25, 0.0, 1.0, -1.0, 0.1, -0.1, 0.75]


async def _embed(client: InferenceClient, version: int = 2, **fields: Any) -> Any:
    answer = await client.post(f"/v{version}/embed", json={"model": "one", "input_type": "classification", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_all_types_of_an_embedding_are_given_at_once(client: InferenceClient, model: ScriptedModel) -> None:
    """Bytes fill their range by the largest number; bits are 1 for positive numbers, the first one most significant."""
    model.answers[Operation.EMBEDDING] = embeddings(VECTOR)
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]

    answer = await _embed(client, texts=["a"], embedding_types=types)

    assert answer["embeddings"] == {
        "float": [VECTOR],
        "int8": [[64, -32, 0, 127, -127, 13, -13, 95]],
        "uint8": [[192, 96, 128, 255, 1, 141, 115, 223]],
        "ubinary": [[0b10010101]],
        "binary": [[0b10010101 - 128]],
        "base64": [base64.b64encode(struct.pack("<8f", *VECTOR)).decode()],
    }


async def test_each_version_has_its_response(client: InferenceClient, model: ScriptedModel) -> None:
    """Version 1 has lists of numbers unless types are asked for; vectors are in the order of the texts."""
    model.answers[Operation.EMBEDDING] = embeddings([1.0], [2.0])

    first, typed, second = (
        await _embed(client, 1, texts=["a", "b"]),
        await _embed(client, 1, texts=["a", "b"], embedding_types=["float"]),
        await _embed(client, 2, texts=["a", "b"]),
    )

    assert (first["response_type"], first["embeddings"]) == ("embeddings_floats", [[1.0], [2.0]])
    assert typed["response_type"] == second["response_type"] == "embeddings_by_type"
    assert typed["embeddings"] == second["embeddings"] == {"float": [[1.0], [2.0]]}
    assert first["texts"] == second["texts"] == ["a", "b"]
    assert [each["meta"]["api_version"]["version"] for each in (first, second)] == ["1", "2"]
    assert second["meta"]["billed_units"] == {"input_tokens": 7}


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [("search_query", "query: "), ("search_document", "passage: "), ("clustering", "group: "), ("image", "")],
)
async def test_the_models_own_prompt_is_put_before_texts(
    client: InferenceClient, model: ScriptedModel, input_type: str, prompt: str
) -> None:
    """By the names that Sentence Transformers' models use."""
    model.facts = {"prompts": {"query": "query: ", "passage": "passage: ", "clustering": "group: "}}
    model.answers[Operation.EMBEDDING] = embeddings([1.0])

    await _embed(client, texts=["a"], input_type=input_type)

    assert model.bodies == [{"model": "one", "input": [f"{prompt}a"]}]


async def test_options_become_fields(client: InferenceClient, model: ScriptedModel) -> None:
    """Truncation by side and length, and dimensions."""
    model.answers[Operation.EMBEDDING] = embeddings([1.0])

    for fields in ({"truncate": "START"}, {"truncate": "NONE", "output_dimension": 8}, {"max_tokens": 5}):
        await _embed(client, texts=["a"], **fields)

    base = {"model": "one", "input": ["a"]}
    assert model.bodies == [
        {**base, "truncate_prompt_tokens": -1, "truncation_side": "left"},
        {**base, "dimensions": 8},
        {**base, "truncate_prompt_tokens": 5, "truncation_side": "right"},
    ]


async def test_images_reach_the_model_as_conversations(client: InferenceClient, model: ScriptedModel) -> None:
    """Parts of text alone are one text; with an image, the whole request is of conversations."""
    model.answers[Operation.EMBEDDING] = embeddings([1.0], [2.0])
    text, image = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}

    await _embed(client, inputs=[{"content": [text, text]}, {"content": [text]}])
    await _embed(client, inputs=[{"content": [text, image]}, {"content": [text]}])

    assert model.bodies[0]["input"] == ["a\na", "a"]
    assert model.bodies[1]["messages"] == [
        [{"role": "user", "content": [text, image]}],
        [{"role": "user", "content": [text]}],
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "one of texts, images and inputs"),
        ({"texts": ["a"], "images": ["b"]}, "there are texts, images"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "int4"),
        ({"texts": ["a"], "embedding_types": ["binary"]}, "multiple of 8"),
        ({"texts": ["a"], "truncate": "NONE", "max_tokens": 2}, "max_tokens"),
        ({"inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0]"),
        ({"texts": ["a"], "output_dimension": 0}, "output_dimension"),
    ],
)
async def test_bad_requests_are_told_why_in_cohere_s_format(
    client: InferenceClient, model: ScriptedModel, fields: dict[str, Any], says: str
) -> None:
    """400 with a message alone."""
    model.answers[Operation.EMBEDDING] = embeddings([1.0])

    answer = await client.post("/v2/embed", json={"model": "one", **fields})

    assert answer.status_code == 400
    assert answer.json().keys() == {"message"}
    assert says in answer.json()["message"]


async def test_a_model_must_be_named_where_there_are_two(client: InferenceClient) -> None:
    """As everywhere; an unknown one is 404."""
    missing = await client.post("/v2/embed", json={"texts": ["a"]})
    unknown = await client.post("/v2/embed", json={"model": "three", "texts": ["a"]})

    assert (missing.status_code, unknown.status_code) == (400, 404)
    assert "one, org/uno, two" in missing.json()["message"]
