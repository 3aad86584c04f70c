"""The OpenAPI document: true and complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from doubles import DoubleFactory
from inference_doubles import InferenceClient, operation_doubles
from litestar.routes import HTTPRoute
from reference_servers import environment, serving

from appliance.core.model import OPENAI_PATHS
from appliance.server import create_app

DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


async def test_every_route_is_documented(client: InferenceClient) -> None:
    """Each path of the application is in the document; of wildcards, at least one path that they serve."""
    documented = (await client.get("/schema/openapi.json")).json()["paths"]
    routes = {route.path for route in create_app(operation_doubles(), factory=DoubleFactory()).routes}

    plain = {route for route in routes if "{" not in route}
    wildcards = [route.split("{")[0] for route in routes if "{" in route]
    assert plain <= set(documented)
    assert all(any(path.startswith(f"{start}{{") for path in documented) for start in wildcards)


async def test_the_index_lists_the_documented_paths(client: InferenceClient) -> None:
    """The paths are those of the document, without the syntax of the framework."""
    documented = (await client.get("/schema/openapi.json")).json()["paths"]
    routes = (await client.get("/")).json()["routes"]

    assert routes == sorted(documented)
    assert "/v2/models/{name}/infer" in routes


async def test_requests_and_responses_have_types(client: InferenceClient) -> None:
    """OpenAI's routes name the fields that are required; every reference leads to a schema."""
    document = (await client.get("/schema/openapi.json")).json()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))

    assert references <= set(schemas)
    for operation, (path, *_) in OPENAI_PATHS.items():
        described = document["paths"][path]["post"]
        (body,) = described["requestBody"]["content"].values()
        assert schemas[body["schema"]["$ref"].split("/")[-1]]["properties"]["model"], operation
        assert described["tags"] == ["OpenAI"]
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]
    assert schemas["InferenceRequestBody"]["required"] == ["inputs"]


async def test_every_documented_operation_exists(client: InferenceClient) -> None:
    """None of them is a path without a route, or a method the route does not take."""
    documented = (await client.get("/schema/openapi.json")).json()["paths"]

    for path, methods in documented.items():
        for method in methods:
            place = path.replace("{name}", "writer").replace("{version}", "1")
            answer = await client.request(method.upper(), place)
            assert answer.status_code != 405, place
            assert "no route" not in answer.text, place


async def test_a_path_below_openai_is_the_one_without(client: InferenceClient) -> None:
    """The same handler, and the same in the document."""
    documented = (await client.get("/schema/openapi.json")).json()["paths"]
    routes = create_app(operation_doubles(), factory=DoubleFactory()).routes
    handlers = {
        # That of OPTIONS belongs to the path.
        route.path: {handler.fn for handler in route.route_handlers if "OPTIONS" not in handler.http_methods}
        for route in routes
        if isinstance(route, HTTPRoute)
    }
    below = {path for path in documented if path.startswith("/openai/")}

    assert len(below) > 20
    for operation in (each for path in documented.values() for each in path.values()):
        del operation["operationId"]
    assert {path: documented[path] for path in below} == {path: documented[path[7:]] for path in below}
    aliases = {path for path in handlers if path.startswith("/openai/")}
    assert len(aliases) == len(below)
    assert {path: handlers[path] for path in aliases} == {path: handlers[path[7:]] for path in aliases}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "left_out"), [("coverage", "/openai/"), pytest.param("coverage,fuzzing", "", marks=pytest.mark.long)]
)
def test_schemathesis_finds_no_failure(pytestconfig: pytest.Config, tmp_path: Path, phases: str, left_out: str) -> None:
    """All operations, with what the document allows and with what it does not; the paths `left_out` are second ones."""
    python = environment(pytestconfig, "oip-schemathesis", "schemathesis==4.32.5")
    words: list[str | Path] = [sys.executable, DOUBLES, "port={http}", "host=127.0.0.1"]

    with serving(tmp_path / "log", words, "/v2/health/ready") as server:
        paths = httpx.get(f"{server.url}/schema/openapi.json").json()["paths"]
        program = [str(python.with_name("st")), "run", f"{server.url}/schema/openapi.json", "--no-color"]
        options = [f"--phases={phases}", "--max-examples=10", f"--checks={','.join(CHECKS)}", "--seed=1"]
        options += [f"--exclude-path-regex=^{left_out}"] if left_out else []
        done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=250, cwd=tmp_path)

    assert done.returncode == 0, done.stdout[-6000:]
    # The document's own place is the one it is not asked about.
    asked = {path for path in paths if path != "/schema/openapi.json" and not (left_out and path.startswith(left_out))}
    count = sum(len(paths[path]) for path in asked)
    assert f"Tested: {count}" in done.stdout
