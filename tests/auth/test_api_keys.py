"""Nobody gets past the gate without a key, and with one as far as the key goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

import pytest
from auth_doubles import (
    ADMIN_KEY,
    ALIAS_KEY,
    FULL_KEY,
    LISTING_KEY,
    MODEL_ADMIN_KEY,
    AppClient,
    RecordingDouble,
    bearer_header,
    config_with_keys,
)
from doubles import DoubleConfig, DoubleFactory, config
from structlog.testing import capture_logs

from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.model import Operation
from appliance.server import create_app

PROBES = {"/livez", "/readyz", "/startupz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"}


def _places() -> Iterator[tuple[str, str]]:
    """Method and path of every route there is, and of some there are not."""
    app = create_app(config_with_keys(), factory=DoubleFactory())
    for route in app.routes:
        path = route.path.replace("{name:path}", "one").replace("{rest:path}", "one/infer")
        methods = {"OPTIONS", *(getattr(route, "methods", None) or ())}
        # The pages are for every browser, and have no data; programs need a key for them.
        methods -= {"OPTIONS"} if path in {"/", "/docs"} else set()
        yield from ((method, path) for method in sorted(methods) if path not in PROBES)
    yield from (("GET", path) for path in ("/nowhere", "/livez/", "//livez", "/shop/talk", "/shop/talk/v1/models"))
    yield ("POST", "/publishers/shop/models/one/v1/completions")
    # A probe below a model tells whether there is one of that name.
    yield from (("GET", f"/publishers/shop/models/{name}/livez") for name in ("one", "nobody"))
    yield ("POST", "/v1/models/one:predict")


@pytest.mark.parametrize(("method", "path"), sorted(_places()))
async def test_every_place_but_the_probes_wants_a_key(closed: AppClient, method: str, path: str) -> None:
    """401 with a challenge and an id, for every route, every method and every path that nobody has."""
    bare = await closed.request(method, path)
    wrong = await closed.request(method, path, headers=bearer_header(f"{FULL_KEY}x"))

    for answer in (bare, wrong):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("lacking", "key", "path"),
    [
        ("operation", LISTING_KEY, "/v1/completions"),
        ("operation", LISTING_KEY, "/v1/audio/transcriptions"),
        ("operation", LISTING_KEY, "/v2/models/one/infer"),
        ("operation", LISTING_KEY, "/v1/models/one:predict"),
        ("operation", LISTING_KEY, "/v2/models/one/generate"),
        ("operation", LISTING_KEY, "/v2/models/one/generate_stream"),
        ("model", ALIAS_KEY, "/v2/models/two/infer"),
        ("model", ALIAS_KEY, "/v1/models/two:predict"),
        ("admin", FULL_KEY, "/v2/repository/models/one/unload"),
    ],
)
async def test_nothing_looks_at_the_body_of_one_who_may_not_ask(
    closed: AppClient, lacking: str, key: str, path: str
) -> None:
    """The refusal is of the key, whatever is wrong with the body."""
    broken = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "br", **bearer_header(key)}

    refused = await closed.post(path, content=b"\xff--x--x", headers=broken)

    assert refused.status_code in {403, 404}, lacking


@pytest.mark.parametrize("path", sorted(PROBES))
async def test_probes_answer_everybody_and_tell_nobody_who_is_there(closed: AppClient, path: str) -> None:
    """Their status is for every platform; names, states and reasons are for those with a key."""
    bare = await closed.get(path)
    known = await closed.get(path, headers=bearer_header(FULL_KEY))

    assert (bare.status_code, known.status_code) == (200, 200)
    assert (await closed.head(path)).status_code == 200
    assert "one" not in bare.text
    assert path.startswith("/v2") or [model["name"] for model in known.json()["models"]] == ["one", "two"]
    assert (await closed.get(f"/shop/talk{path}")).status_code == 200


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error": {"type": "authentication_error", "code": "invalid_api_key"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "authentication_error"}}),
        ("/v2/models/one/infer", {"error": "This server needs an API key"}),
        ("/v1/models/one:predict", {"error": "This server needs an API key"}),
        ("/shop/talk/v2/models/one/infer", {"error": "This server needs an API key"}),
    ],
)
async def test_a_refusal_has_the_shape_of_its_protocol(closed: AppClient, path: str, shape: dict[str, object]) -> None:
    """OpenAI's clients, Anthropic's and those of the Open Inference Protocol each find what they look for."""
    body = (await closed.post(path, json={})).json()

    def holds(said: object, wanted: object) -> bool:
        if isinstance(wanted, dict):
            return isinstance(said, dict) and all(holds(said[key], value) for key, value in wanted.items())
        return str(said).startswith(str(wanted))

    assert holds(body, shape)


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({}, "needs an API key"),
        ({"Authorization": ""}, "needs an API key"),
        ({"Authorization": "Bearer wrong"}, "does not know the API key"),
        ({"Authorization": FULL_KEY}, "does not know the API key"),
        ({"x-api-key": "wrong"}, "does not know the API key"),
    ],
)
async def test_a_refusal_tells_a_missing_key_from_an_unknown_one(
    closed: AppClient, headers: dict[str, str], fault: str
) -> None:
    """A key without `Bearer` is unknown; the remedy has the form."""
    message = (await closed.get("/v1/models", headers=headers)).json()["error"]["message"]

    assert message.startswith(f"This server {fault}")
    assert "Authorization: Bearer KEY" in message


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {FULL_KEY}"},
        {"authorization": f"bearer  {FULL_KEY} "},
        {"x-api-key": FULL_KEY},
        {"api-key": FULL_KEY},
        {"Authorization": "Bearer something-of-a-gateway", "x-api-key": FULL_KEY},
    ],
)
async def test_a_key_is_taken_from_every_header_that_clients_send(closed: AppClient, headers: dict[str, str]) -> None:
    """OpenAI's, Anthropic's and Azure's clients each have one."""
    answer = await closed.post("/v1/completions", json={"model": "one"}, headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header", ["Basic YTpi", "Bearer", "Bearer ", FULL_KEY, f"Token {FULL_KEY}", f"Bearer {FULL_KEY[:-1]}"]
)
async def test_what_is_no_key_opens_nothing(closed: AppClient, header: str) -> None:
    """Other schemes, nothing, and nearly a key are refused alike."""
    answer = await closed.get("/v1/models", headers={"Authorization": header})

    assert answer.status_code == 401


async def test_a_key_sees_only_its_models(closed: AppClient) -> None:
    """A key that is for an alias is shown that name alone, in every listing, error and metadata."""
    headers = bearer_header(ALIAS_KEY)
    openai = (await closed.get("/v1/models", headers=headers)).json()
    names = (await closed.get("/v2/models", headers=headers)).json()
    index = (await closed.post("/v2/repository/index", headers=headers)).json()
    stats = (await closed.get("/v2/models/stats", headers=headers)).json()
    schema = (await closed.get("/schema/openapi.json", headers=headers)).text
    standing = (await closed.get("/readyz", headers=headers)).json()
    missing = await closed.post("/v1/completions", json={"model": "three"}, headers=headers)

    assert [card["id"] for card in openai["data"]] == openai["models"] == ["uno"]
    assert names == {"models": ["uno"]}
    assert [row["name"] for row in index] == ["uno"]
    assert [model["name"] for model in standing["models"]] == ["uno"]
    assert [row["name"] for row in stats["model_stats"]] == ["uno"]
    assert '"two"' not in schema
    assert missing.status_code == 404
    assert "two" not in missing.text


SOMEONE: list[tuple[str, str, object]] = [
    ("GET", "/v1/models/{}", None),
    ("GET", "/openai/v1/models/{}", None),
    ("GET", "/v2/models/{}", None),
    ("GET", "/v2/models/{}/ready", None),
    ("GET", "/v2/models/{}/config", None),
    ("GET", "/v2/models/{}/stats", None),
    ("GET", "/v2/models/{}/versions/9", None),
    ("POST", "/v1/completions", {"model": "{}"}),
    ("POST", "/v1/messages", {"model": "{}"}),
    ("POST", "/tokenize", {"model": "{}"}),
    ("POST", "/v1/completions", {"model": "publishers/shop/models/{}"}),
    ("POST", "/v1/models/{}:predict", {"instances": ["a"]}),
    ("POST", "/v1/models/{}:explain", {"instances": ["a"]}),
    ("POST", "/v2/models/{}/infer", {"inputs": []}),
    ("POST", "/v2/models/{}/generate", {"text_input": "a"}),
    ("POST", "/v2/models/{}/generate_stream", {"text_input": "a"}),
    ("POST", "/v2/repository/models/{}/unload", {"parameters": 1}),
    ("POST", "/v2/repository/models/{}/load", {"parameters": 1}),
    ("POST", "/publishers/shop/models/{}/v1/completions", {"prompt": "a"}),
    ("GET", "/shop/talk/v1/models/{}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), SOMEONE, ids=[f"{path}-{body}" for _, path, body in SOMEONE])
@pytest.mark.parametrize("key", [ALIAS_KEY, MODEL_ADMIN_KEY])
async def test_a_model_that_a_key_is_not_for_does_not_exist_for_it(
    closed: AppClient, method: str, path: str, body: object, key: str
) -> None:
    """The answer is that to a name nobody has, in any protocol and for operators too."""
    answers = []
    for name in ("two", "nil"):
        sent = None if body is None else json.loads(json.dumps(body).replace("{}", name))
        answer = await closed.request(method, path.replace("{}", name), json=sent, headers=bearer_header(key))
        answers.append((answer.status_code, answer.text.replace(name, "NAME"), sorted(answer.headers)))

    assert answers[0] == answers[1]
    assert answers[0][0] in {403, 404}


async def test_a_listing_shows_a_key_what_it_may_ask(closed: AppClient) -> None:
    """
    Operations that are not for it are in no card and not in the document, and the model behind an alias has no name.
    """
    boss = (await closed.get("/v1/models/one", headers=bearer_header(ADMIN_KEY))).json()
    eyes = (await closed.get("/v1/models", headers=bearer_header(LISTING_KEY))).json()
    uno = (await closed.get("/v1/models/uno", headers=bearer_header(ALIAS_KEY))).json()
    paths = (await closed.get("/schema/openapi.json", headers=bearer_header(ADMIN_KEY))).json()["paths"]

    assert boss["operations"] == ["completion"]
    assert [card["operations"] for card in eyes["data"]] == [[], [], []]
    assert (uno["root"], uno["parent"], uno["aliases"]) == ("uno", None, [])
    assert "/v1/completions" in paths
    assert "/v1/chat/completions" not in paths


async def test_a_refused_operation_names_only_those_the_key_may_ask() -> None:
    """What the model can do beside them is told to other keys."""
    asks = (Operation.COMPLETION, Operation.MODERATION)
    async with AppClient(config_with_keys(KeyConfig(name="asks", value=FULL_KEY, operations=asks))) as client:
        await client.wait_until_ready()

        answer = await client.post(
            "/v1/moderations", json={"model": "one", "input": "a"}, headers=bearer_header(FULL_KEY)
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("does not support moderation; it supports: completion")


async def test_errors_have_the_name_that_the_client_sent() -> None:
    """A key for an alias does not learn the model's own name, whether it cannot answer or cannot do this."""
    async with AppClient(config_with_keys(KeyConfig(name="one", value=ALIAS_KEY, models=("uno",)))) as client:
        early = await client.post("/v1/completions", json={"model": "uno"}, headers=bearer_header(ALIAS_KEY))
        await client.wait_until_ready()
        asked = {"model": "uno", "input": "a"}
        refused = await client.post("/v1/moderations", json=asked, headers=bearer_header(ALIAS_KEY))

    assert (early.status_code, refused.status_code) == (503, 400)
    for answer in (early, refused):
        assert answer.json()["error"]["message"].startswith("The model 'uno' ")


async def test_a_missing_model_is_not_found_out_by_leaving_its_name_away() -> None:
    """A key for an alias gets no answer from the only model there is without naming it."""
    of = config_with_keys(KeyConfig(name="one", value=ALIAS_KEY, models=("uno",)))
    async with AppClient(of.model_copy(update={"models": of.models[:1]})) as client:
        answer = await client.post("/v1/completions", json={"prompt": "a"}, headers=bearer_header(ALIAS_KEY))

    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "model is missing; it must be one of: uno"


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [
        (FULL_KEY, "two", 200),
        (ALIAS_KEY, "uno", 200),
        (ALIAS_KEY, "one", 404),
        (ALIAS_KEY, "two", 404),
        (LISTING_KEY, "one", 403),
        (ADMIN_KEY, "one", 200),
    ],
)
async def test_a_key_asks_what_it_may_of_its_models(closed: AppClient, key: str, model: str, status: int) -> None:
    """Another model and another name of it do not exist, another operation is 403, whatever protocol asks."""
    openai = await closed.post("/v1/completions", json={"model": model}, headers=bearer_header(key))
    tensors = await closed.post(f"/v2/models/{model}/generate", json={"text_input": "a"}, headers=bearer_header(key))

    assert openai.status_code == status
    # The double answers with its question, which is no text: what matters is that it was asked.
    assert tensors.status_code == (502 if status == 200 else status)


async def test_a_refused_operation_says_who_may_not_do_what(closed: AppClient) -> None:
    """The name of the key, what it may not do, and where the config would allow it; never the key."""
    answer = await closed.post("/v1/chat/completions", json={"model": "one"}, headers=bearer_header(ADMIN_KEY))

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (403, "permission_error", "not_allowed")
    assert "'boss'" in error["message"]
    assert "chat_completion" in error["message"]
    assert ADMIN_KEY not in answer.text


async def test_metrics_are_for_keys_that_see_every_model(closed: AppClient) -> None:
    """A scraper's key may ask nothing of models; a key for some of them would read of the others."""
    statuses = [
        (await closed.get("/metrics", headers=bearer_header(key))).status_code
        for key in (LISTING_KEY, FULL_KEY, ALIAS_KEY)
    ]

    assert statuses == [200, 200, 403]


async def test_metrics_are_open_where_the_config_says_so() -> None:
    """Nothing else is open with them."""
    async with AppClient(config_with_keys(metrics="open")) as client:
        metrics, models = await client.get("/metrics"), await client.get("/v1/models")

    assert (metrics.status_code, models.status_code) == (200, 401)


async def test_models_are_unloaded_by_operators_alone(fresh: AppClient) -> None:
    """`server.admin` opens the routes, and a key with `admin` uses them."""
    path = "/v2/repository/models/two/unload"
    refused = await fresh.post(path, headers=bearer_header(FULL_KEY))
    done = await fresh.post(path, headers=bearer_header(ADMIN_KEY))

    assert (refused.status_code, done.status_code) == (403, 200)


async def test_no_keys_ask_for_nothing() -> None:
    """A config without keys answers everybody, and takes no notice of the keys that clients send anyway."""
    async with AppClient(config(DoubleConfig(name="one"), server=ServerConfig())) as client:
        statuses = [
            (await client.get(path, headers=headers)).status_code
            for path in ("/", "/metrics", "/v1/models", "/schema")
            for headers in ({}, bearer_header("nothing"))
        ]

    assert set(statuses) == {200}


async def test_keys_are_exchanged_while_it_serves(fresh: AppClient) -> None:
    """The next request goes by the new ones."""
    new = ServerConfig.model_validate({"api_keys": [{"name": "new", "value": "new-new-new-new-new-new"}]})

    fresh.manager.authorizer.apply(new)

    assert (await fresh.get("/v1/models", headers=bearer_header(FULL_KEY))).status_code == 401
    assert (await fresh.get("/v1/models", headers=bearer_header("new-new-new-new-new-new"))).status_code == 200
    fresh.manager.authorizer.apply(ServerConfig())
    assert (await fresh.get("/v1/models")).status_code == 200


async def test_models_never_get_to_see_a_key(closed: AppClient) -> None:
    """What a client sends for somebody else stays; our key is gone, from whatever header had it."""
    headers = {"Authorization": "Bearer for-the-upstream", "x-api-key": FULL_KEY, "api-key": FULL_KEY}
    await closed.post("/v1/completions", json={"model": "one"}, headers=headers)

    seen = cast("RecordingDouble", closed.manager.statuses[0].model).calls[-1].headers
    assert seen["authorization"] == "Bearer for-the-upstream"
    assert FULL_KEY not in json.dumps(dict(seen))


async def test_a_refusal_is_in_the_log_without_the_key(closed: AppClient) -> None:
    """One event as for any request, with its status."""
    with capture_logs() as events:
        await closed.get("/v1/models", headers=bearer_header("wrong-wrong-wrong-wrong"))

    assert [event["status"] for event in events if event["event"] == "request.ended"] == [401]
    assert "wrong-wrong" not in json.dumps(events, default=str)
