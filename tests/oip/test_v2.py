"""The second version's REST routes: health, metadata, versions, compression, errors."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_doubles import InferenceClient, operation_doubles

from appliance.config.server import ServerConfig
from appliance.core.errors import EngineDeadError, RequestError
from appliance.tensors.datatype import DATATYPES

ASK = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a" * 2000]}]}


async def test_server_metadata(client: InferenceClient) -> None:
    """Name, version and extensions."""
    body = (await client.get("/v2")).json()

    assert body["name"] == "appliance"
    assert body["version"]
    assert {"binary_tensor_data", "statistics", "generate"} <= set(body["extensions"])


async def test_ready_requires_all_models(fresh: InferenceClient) -> None:
    """One model that is not makes the server not ready, and stays alive alone."""
    before = [await fresh.get(f"/v2/health/{word}") for word in ("live", "ready")]
    fresh.model("mood").is_away = True
    await fresh.wait_until(lambda: not fresh.manager.is_ready)

    live, ready = [await fresh.get(f"/v2/health/{word}") for word in ("live", "ready")]
    mood, writer = [await fresh.get(f"/v2/models/{name}/ready") for name in ("mood", "writer")]

    assert [(each.status_code, each.json()) for each in before] == [(200, {"live": True}), (200, {"ready": True})]
    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert (mood.status_code, mood.json()["ready"], writer.json()["ready"]) == (503, False, True)
    assert int(ready.headers["retry-after"]) > 0
    assert int(mood.headers["retry-after"]) > 0


async def test_model_metadata_lists_inputs_and_outputs(client: InferenceClient) -> None:
    """Names, datatypes and shapes, as far as they are known; and facts beside them."""
    shown = {name: (await client.get(f"/v2/models/{name}")).json() for name in ("writer", "embedder", "ranker", "mood")}
    text = {"name": "text_input", "datatype": "BYTES", "shape": [-1]}

    assert shown["writer"]["versions"] == ["1"]
    assert shown["writer"]["inputs"] == [text]
    assert shown["writer"]["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}]
    assert shown["embedder"]["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 3]}]
    assert [each["name"] for each in shown["ranker"]["inputs"]] == ["query", "documents"]
    assert shown["mood"]["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
    assert shown["mood"]["parameters"]["labels"] == ["calm", "loud"]


async def test_tensor_model_declares_its_inputs_and_outputs(client: InferenceClient) -> None:
    """What it describes is its metadata; a model without any meaning in tensors has none."""
    echo = (await client.get("/v2/models/echo")).json()
    plain = (await client.get("/v2/models/plain")).json()

    assert echo["inputs"] == [{"name": "in", "datatype": "FP32", "shape": [-1, -1]}]
    assert (plain["inputs"], plain["outputs"]) == ([], [])


async def test_response_has_the_outputs_of_the_metadata(client: InferenceClient) -> None:
    """Every model's outputs have the names, the datatypes and the sizes that were announced."""
    for name in ("writer", "talker", "embedder", "ranker", "mood", "tagger", "everything"):
        told = (await client.get(f"/v2/models/{name}")).json()
        inputs = [{**each, "shape": [1], "data": ["a"]} for each in told["inputs"]]

        _, body = await client.ask(name, {"inputs": inputs})

        assert [(each["name"], each["datatype"]) for each in body["outputs"]] == [
            (each["name"], each["datatype"]) for each in told["outputs"]
        ]
        for made, announced in zip(body["outputs"], told["outputs"], strict=True):
            assert all(says in {-1, size} for size, says in zip(made["shape"], announced["shape"], strict=True))


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/models/writer", "GET"),
        ("/v2/models/writer/ready", "GET, HEAD"),
        ("/v2/models/writer/infer", "POST"),
        ("/v2/models/writer/versions/1/generate", "POST"),
        ("/v1/models/writer", "GET"),
        ("/v1/models/writer:predict", "POST"),
    ],
)
async def test_allow_lists_the_methods_of_the_path(client: InferenceClient, path: str, allowed: str) -> None:
    """A refused method is answered with those that this path takes, not all that a wildcard takes."""
    response = await client.patch(path)

    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("verb", ["predict", "explain"])
async def test_predictions_are_no_models(client: InferenceClient, verb: str) -> None:
    """Both are below `/v1/models/`, but to GET a prediction is the wrong method and not a missing model."""
    response = await client.get(f"/v1/models/writer:{verb}")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert list(response.json()) == ["error"]


async def test_a_model_can_be_probed_with_head(client: InferenceClient) -> None:
    """Some load balancers probe with HEAD."""
    statuses = [(await client.head(f"/v2/models/{name}/ready")).status_code for name in ("writer", "absent")]

    assert statuses == [200, 404]


async def test_every_model_has_version_1_and_no_other(client: InferenceClient) -> None:
    """Paths with the version work as those without; another one does not exist."""
    for verb in ("", "/ready", "/stats", "/config"):
        assert (await client.get(f"/v2/models/writer/versions/1{verb}")).status_code == 200
        assert (await client.get(f"/v2/models/writer/versions/2{verb}")).status_code == 404
    answer = await client.post("/v2/models/writer/versions/1/infer", json=ASK)
    other = await client.post("/v2/models/writer/versions/2/infer", json=ASK)

    assert answer.json()["model_version"] == "1"
    assert other.status_code == 404
    assert "version 1 and no other" in other.json()["error"]


async def test_statistics_count_requests(fresh: InferenceClient) -> None:
    """Good and bad calls, whatever protocol they came by, with the time they took."""
    await fresh.ask("writer", ASK)
    await fresh.post("/v1/completions", json={"model": "writer", "prompt": "a"})
    fresh.model("writer").answer_fault = RequestError("no")
    await fresh.ask("writer", ASK)

    one = (await fresh.get("/v2/models/writer/stats")).json()["model_stats"]
    all_ = (await fresh.get("/v2/models/stats")).json()["model_stats"]
    statistics = one[0]["inference_stats"]

    assert [statistics[word]["count"] for word in ("success", "fail")] == [2, 1]
    assert statistics["success"]["ns"] > 0
    assert one[0]["last_inference"] > 1_600_000_000_000
    assert {each["name"]: each["inference_count"] for each in all_}["mood"] == 0


async def test_model_configuration_for_triton_clients(client: InferenceClient) -> None:
    """Tensors in Triton's words."""
    body = (await client.get("/v2/models/embedder/config")).json()

    assert body["input"] == [{"name": "text_input", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert body["output"] == [{"name": "embedding", "data_type": "TYPE_FP32", "dims": [-1, 3]}]


async def test_the_repository_lists_every_model_with_its_state(fresh: InferenceClient) -> None:
    """In its own words, with the reason where a model does not answer; or those that do, alone."""
    fresh.model("mood").is_away = True
    await fresh.wait_until(lambda: not fresh.manager.is_ready)

    listed = {each["name"]: each for each in (await fresh.post("/v2/repository/index")).json()}
    ready = (await fresh.post("/v2/repository/index", json={"ready": True})).json()
    wrong = await fresh.post("/v2/repository/index", json={"ready": 3})

    assert (listed["writer"]["state"], listed["writer"]["reason"]) == ("READY", "")
    assert listed["mood"]["state"] == "UNAVAILABLE"
    assert "nobody answers" in listed["mood"]["reason"]
    assert {each["name"] for each in ready} == listed.keys() - {"mood"}
    assert (wrong.status_code, [*wrong.json()]) == (400, ["error"])


async def test_admin_unloads_and_loads_if_the_config_allows_it() -> None:
    """The index says where each model stands; what cannot be done is told with its own status."""
    async with InferenceClient(operation_doubles("writer", "mood", server=ServerConfig(admin=True))) as client:
        await client.wait_until_ready()

        unloaded = await client.post("/v2/repository/models/mood/unload", json={})
        asked = await client.ask("mood", ASK)
        again = await client.post("/v2/repository/models/mood/unload")
        listed = {each["name"]: each["state"] for each in (await client.post("/v2/repository/index")).json()}
        loaded = await client.post("/v2/repository/models/mood/load")
        unknown = await client.post("/v2/repository/models/nobody/load")

        assert (unloaded.json(), loaded.json()) == ({"name": "mood", "unload": True}, {"name": "mood", "load": True})
        assert (asked[0], again.status_code, unknown.status_code) == (503, 409, 404)
        assert listed == {"writer": "READY", "mood": "UNAVAILABLE"}
        assert (await client.ask("mood", ASK))[0] == 200
        await client.manager.stop()


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_load_and_unload_need_server_admin(client: InferenceClient, verb: str) -> None:
    """403, which names the setting."""
    answer = await client.post(f"/v2/repository/models/writer/{verb}", json={})

    assert answer.status_code == 403
    assert "server.admin" in answer.json()["error"]
    assert client.manager.is_ready


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bodies_may_be_compressed(client: InferenceClient, coding: str, pack: Any) -> None:
    """Both ways, as clients of Triton do."""
    headers = {"Content-Encoding": coding, "Accept-Encoding": coding}

    answer = await client.post("/v2/models/writer/infer", content=pack(json.dumps(ASK).encode()), headers=headers)
    short = await client.get("/v2/models/writer", headers=headers)

    assert answer.headers["content-encoding"] == coding
    assert answer.json()["outputs"][0]["data"] == ["A" * 2000]
    assert "content-encoding" not in short.headers


async def test_a_compressed_body_is_not_larger_than_it_may_be() -> None:
    """A small body that would fill the memory is 413, and one that is not what it says 400 or 415."""
    async with InferenceClient(operation_doubles("writer", server=ServerConfig(max_body_bytes=4096))) as client:
        await client.wait_until_ready()
        cases = {
            ("gzip", gzip.compress(b" " * 50_000_000)): 413,
            ("gzip", b"no gzip"): 400,
            ("gzip", gzip.compress(b"{}")[:-4]): 400,
            ("gzip", gzip.compress(b"{}") + b"more"): 400,
            ("br", b"{}"): 415,
        }
        for (coding, body), status in cases.items():
            headers = {"Content-Encoding": coding}
            answer = await client.post("/v2/models/writer/infer", content=body, headers=headers)
            assert (answer.status_code, [*answer.json()]) == (status, ["error"])
        await client.manager.stop()


@pytest.mark.parametrize("path", ["/v2/models/writer/infer", "/v1/models/writer:predict", "/v2/models/writer/generate"])
async def test_form_is_rejected(client: InferenceClient, path: str) -> None:
    """415 in the protocol's shape, whatever the body holds; other types are read as JSON, as clients send them."""
    body = json.dumps(ASK | {"instances": ["a"], "text_input": "a"})
    for media_type, status in {
        "multipart/form-data; boundary=a": 415,
        "Multipart/Mixed": 415,
        "application/json": 200,
        "application/octet-stream": 200,
        "text/plain": 200,
    }.items():
        answer = await client.post(path, content=body, headers={"content-type": media_type})

        assert answer.status_code == status, answer.text
        assert status == 200 or [*answer.json()] == ["error"]


FAULTS = [
    ("GET", "/v2/models/nobody", 404),
    ("GET", "/v2/models/nobody/ready", 404),
    ("POST", "/v2/models/nobody/infer", 404),
    ("GET", "/v2/models/writer/versions/1/nothing", 404),
    ("GET", "/v2/nothing", 404),
    ("GET", "/v2/models/writer/infer", 405),
    ("POST", "/v2/models/writer/ready", 405),
    ("POST", "/v2/models/writer", 405),
    ("DELETE", "/v2/models/writer", 405),
    ("POST", "/v2/models/plain/infer", 400),
    ("POST", "/v2/models/embedder/generate", 400),
    ("POST", "/v1/models/nobody:predict", 404),
    ("POST", "/v1/models/plain:predict", 400),
    ("POST", "/v1/models/writer:explain", 400),
]


@pytest.mark.parametrize(("method", "path", "status"), FAULTS)
async def test_every_error_is_one_text(client: InferenceClient, method: str, path: str, status: int) -> None:
    """``{"error": "text"}``, with exactly ``application/json``: clients of KServe read no other."""
    answer = await client.request(method, path, json=ASK)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert [*answer.json()] == ["error"]
    assert isinstance(answer.json()["error"], str)


async def test_other_errors_have_the_openai_format(client: InferenceClient) -> None:
    """Reranking has a second version in Cohere's protocol, and is none of this protocol's."""
    for path in ("/v2/rerank", "/v1/completions"):
        answer = await client.post(path, json={"model": "nobody"})
        assert answer.json()["error"]["code"] == "model_not_found"
    ranking, chat = [await client.post(path, json={"model": "nobody"}) for path in ("/v2/rerank", "/v2/chat")]
    assert chat.status_code == 404
    for body in (ranking.json(), chat.json()):
        assert body["message"] == body["error"]["message"]


async def test_a_dead_model_is_503_and_an_unforeseen_fault_500_without_its_text(fresh: InferenceClient) -> None:
    """Neither says anything of the inside."""
    statuses = []
    for fault in (EngineDeadError("the engine died"), RuntimeError("secret detail")):
        fresh.model("writer").answer_fault = fault
        status, body = await fresh.ask("writer", ASK)
        statuses.append(status)
        assert "secret" not in body["error"]

    assert statuses == [503, 500]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["text_input", "query", "documents", "max_tokens", "in"]),
                        "datatype": st.sampled_from(sorted(DATATYPES)),
                        "shape": st.lists(st.integers(0, 2), max_size=2),
                        "data": st.lists(st.text(max_size=2) | st.integers(-1, 3) | st.booleans(), max_size=2),
                    }
                ),
                max_size=3,
            )
        },
        optional={"parameters": st.dictionaries(st.sampled_from(["echo", "prompt", "stream"]), st.booleans())},
    )
)
async def test_any_tensors_get_a_response_or_a_client_error(client: InferenceClient, body: Any) -> None:
    """200 or 400 from every model, never 500."""
    for name in ("writer", "embedder", "ranker", "mood", "everything"):
        status, answer = await client.ask(name, body)
        assert status in {200, 400}, (name, body, answer)
