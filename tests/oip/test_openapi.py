"""The document of all routes: true, whole, and readable without anything from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from inference_doubles import InferenceClient
from reference_servers import environment, serving

DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


async def test_every_route_is_told(client: InferenceClient) -> None:
    """What the index lists is in the document; of paths below models, each by itself."""
    told = (await client.get("/schema/openapi.json")).json()["paths"]
    routes = (await client.get("/")).json()["routes"]

    plain = {route for route in routes if "{" not in route}
    below = [route.split("{")[0] for route in routes if "{" in route]
    assert plain <= set(told)
    assert all(any(path.startswith(start) for path in told) for start in below)


async def test_every_told_operation_is_there(client: InferenceClient) -> None:
    """None of them is a path without a route, or a method the route does not take."""
    told = (await client.get("/schema/openapi.json")).json()["paths"]

    for path, methods in told.items():
        for method in methods:
            place = path.replace("{name}", "writer").replace("{version}", "1")
            answer = await client.request(method.upper(), place)
            assert answer.status_code != 405, place
            assert "no route" not in answer.text, place


async def test_the_page_needs_nothing_from_elsewhere(client: InferenceClient) -> None:
    """It works where there is no internet."""
    page = await client.get("/schema")

    assert page.headers["content-type"].startswith("text/html")
    assert "schema/openapi.json" in page.text
    assert "//" not in page.text


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["coverage", pytest.param("coverage,fuzzing", marks=pytest.mark.long)])
def test_schemathesis_finds_no_fault(pytestconfig: pytest.Config, tmp_path: Path, phases: str) -> None:
    """All operations, with what the document allows and with what it does not."""
    python = environment(pytestconfig, "oip-schemathesis", "schemathesis==4.32.5")
    words: list[str | Path] = [sys.executable, DOUBLES, "port={http}", "host=127.0.0.1"]

    with serving(tmp_path / "log", words, "/v2/health/ready") as server:
        paths = httpx.get(f"{server.url}/schema/openapi.json").json()["paths"]
        program = [str(python.with_name("st")), "run", f"{server.url}/schema/openapi.json", "--no-color"]
        options = [f"--phases={phases}", "--max-examples=10", f"--checks={','.join(CHECKS)}", "--seed=1"]
        done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=250, cwd=tmp_path)

    assert done.returncode == 0, done.stdout[-6000:]
    # The document's own place is the one it is not asked about.
    count = sum(len(methods) for path, methods in paths.items() if path != "/schema/openapi.json")
    assert f"Tested: {count}" in done.stdout
