"""What tensors mean to each kind of model, over the second version's REST routes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inference_doubles import InferenceClient

from appliance.tensors.tensor import InferenceRequest, RequestedOutput, Tensor


def _texts(name: str, *texts: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


def _outputs(body: dict[str, Any]) -> dict[str, tuple[str, list[int], list[Any]]]:
    return {each["name"]: (each["datatype"], each["shape"], each["data"]) for each in body["outputs"]}


async def test_text_input_gives_text_output(client: InferenceClient) -> None:
    """Each element of `text_input` is a prompt, and `text_output` has the answers in their shape and order."""
    tensor = {"name": "text_input", "shape": [2, 2], "datatype": "BYTES", "data": [["a", "b"], ["c", "é"]]}

    status, body = await client.ask("writer", {"id": "7", "inputs": [tensor]})

    assert status == 200
    assert body == {
        "model_name": "writer",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [2, 2], "data": ["A", "B", "C", "É"]}],
    }


async def test_several_choices_add_a_dimension(client: InferenceClient) -> None:
    """With `n`, the last dimension counts the answers to one prompt."""
    request = {"inputs": [_texts("text_input", "a", "b")], "parameters": {"n": 2}}

    _, body = await client.ask("writer", request)

    assert _outputs(body)["text_output"] == ("BYTES", [2, 2], ["A", "A", "B", "B"])


async def test_parameters_and_single_element_tensors_are_fields_of_the_request(client: InferenceClient) -> None:
    """So are the parameters of Triton's backends, in one text or each in a tensor."""
    inputs = [
        _texts("text_input", "a"),
        {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [[5]]},
        {"name": "stream", "shape": [1], "datatype": "BOOL", "data": [False]},
        _texts("sampling_parameters", '{"top_p": 0.5}'),
        {"name": "exclude_input_in_output", "shape": [1], "datatype": "BOOL", "data": [False]},
    ]

    await client.ask("writer", {"inputs": inputs, "parameters": {"temperature": 0.5, "binary_data_output": False}})
    sent = json.loads(client.model("writer").calls[-1].body)

    assert sent == {
        "model": "writer",
        "prompt": "a",
        "temperature": 0.5,
        "max_tokens": 5,
        "top_p": 0.5,
        "echo": True,
    }


async def test_chat_model_gets_one_request_for_each_text(client: InferenceClient) -> None:
    """Each text is what the user says in a chat of its own."""
    _, body = await client.ask("talker", {"inputs": [_texts("text_input", "a", "b")]})

    assert _outputs(body)["text_output"] == ("BYTES", [2], ["A", "B"])


@pytest.mark.parametrize("writes_numbers", [False, True])
async def test_texts_become_vectors(client: InferenceClient, writes_numbers: bool) -> None:
    """A row for each text in order, be the model's embeddings base64 or, as of some upstreams, numbers."""
    client.model("embedder").writes_numbers = writes_numbers

    _, body = await client.ask("embedder", {"inputs": [_texts("text_input", "ab", "abcd")]})

    assert _outputs(body)["embedding"] == ("FP32", [2, 3], [2, 0.5, -1, 4, 0.5, -1])


async def test_documents_get_scores_in_their_own_order(client: InferenceClient) -> None:
    """Not in the order of their relevance: a tensor has the order of its input."""
    _, body = await client.ask("ranker", {"inputs": [_texts("query", "q"), _texts("documents", "x" * 25, "x" * 75)]})

    assert _outputs(body)["scores"] == ("FP32", [2], [0.25, 0.75])


async def test_texts_become_labels_with_probabilities(client: InferenceClient) -> None:
    """The name of the likeliest, and the probability of each in the order of the labels."""
    _, body = await client.ask("mood", {"inputs": [_texts("text_input", "hush", "HEY")]})

    assert _outputs(body) == {
        "label": ("BYTES", [2], ["calm", "loud"]),
        "probabilities": ("FP32", [2, 2], [0.75, 0.25, 0.25, 0.75]),
    }


async def test_tokens_become_labels_with_positions(client: InferenceClient) -> None:
    """One element for each token of all texts, which says of which text it is and where."""
    _, body = await client.ask("tagger", {"inputs": [_texts("text_input", "Ann", "Bo")]})

    assert _outputs(body) == {
        "label": ("BYTES", [2], ["NAME", "NAME"]),
        "probability": ("FP32", [2], [0.5, 0.5]),
        "text": ("INT64", [2], [0, 1]),
        "start": ("INT64", [2], [0, 0]),
        "end": ("INT64", [2], [3, 2]),
    }


async def test_inputs_and_outputs_choose_the_operation(client: InferenceClient) -> None:
    """A proxy, which can be asked anything, embeds when an embedding is wanted, and ranks when there are documents."""
    text = _texts("text_input", "AB")
    asked = [
        {"inputs": [text]},
        {"inputs": [text], "outputs": [{"name": "embedding"}]},
        {"inputs": [text], "outputs": [{"name": "label"}]},
        {"inputs": [_texts("query", "q"), _texts("documents", "d")]},
    ]

    bodies = [(await client.ask("everything", each))[1] for each in asked]

    assert [[*_outputs(body)] for body in bodies] == [["text_output"], ["embedding"], ["label"], ["scores"]]


async def test_a_model_of_one_input_takes_it_under_any_name(client: InferenceClient) -> None:
    """As KServe's own runtimes do, whose clients call it `input-0`."""
    status, body = await client.ask("writer", {"inputs": [_texts("input-0", "a")]})

    assert (status, _outputs(body)["text_output"][2]) == (200, ["A"])


async def test_tensor_model_gets_tensors_unchanged(client: InferenceClient) -> None:
    """Every datatype there and back, as bytes, outputs in the order the client wants."""
    tensors = [
        Tensor.of_values("a", "FP16", (2,), [1.5, -2.0]),
        Tensor.of_values("b", "BYTES", (1,), [b"\x00\xff"]),
        Tensor.of_values("c", "UINT64", (1,), [2**62]),
    ]
    wanted = [RequestedOutput(name, {"binary_data": True}) for name in ("c-out", "a-out", "b-out")]

    response = await client.infer("echo", InferenceRequest(tensors, outputs=wanted))

    assert [tensor.name for tensor in response.outputs] == ["c-out", "a-out", "b-out"]
    assert [tensor.values() for tensor in response.outputs] == [[2**63], [3.0, -4.0], [b"\x00\xff"]]


async def test_each_output_is_binary_if_requested(client: InferenceClient) -> None:
    """An output's own word goes over the request's; the header says how long the JSON is."""
    request = {
        "inputs": [_texts("text_input", "a")],
        "outputs": [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": False}}],
        "parameters": {"binary_data_output": True},
    }

    answer = await client.post("/v2/models/mood/infer", json=request)
    length = int(answer.headers["inference-header-content-length"])
    label, probabilities = json.loads(answer.content[:length])["outputs"]

    assert answer.headers["content-type"] == "application/octet-stream"
    assert (label["parameters"]["binary_data_size"], answer.content[length:]) == (8, b"\x04\x00\x00\x00calm")
    assert probabilities["data"] == [0.75, 0.25]


async def test_a_tensor_of_more_chats_than_a_request_may_ask_for_is_refused(client: InferenceClient) -> None:
    """Each text is a request to the model, and none of them is made."""
    status, body = await client.ask("talker", {"inputs": [_texts("text_input", *["a"] * 2049)]})

    assert status == 400
    assert "at most 2048 are taken in one request (limits.inputs_per_request)" in body["error"]
