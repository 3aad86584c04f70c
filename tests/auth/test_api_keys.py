"""Nobody gets past the gate without a key, and with one as far as the key goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

import pytest
from access_doubles import ALL, BOSS, EYES, HAND, ONE, Closed, Keeper, bearing, closed_config
from doubles import DoubleConfig, DoubleFactory, config
from structlog.testing import capture_logs

from appliance.config.security import AuthConfig, KeyConfig
from appliance.config.server import ServerConfig
from appliance.core.model import Operation
from appliance.server import create_app

PROBES = {"/livez", "/readyz", "/startupz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"}


def _places() -> Iterator[tuple[str, str]]:
    """Method and path of every route there is, and of some there are not."""
    app = create_app(closed_config(), factory=DoubleFactory())
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
async def test_every_place_but_the_probes_wants_a_key(closed: Closed, method: str, path: str) -> None:
    """401 with a challenge and an id, for every route, every method and every path that nobody has."""
    bare = await closed.request(method, path)
    wrong = await closed.request(method, path, headers=bearing(f"{ALL}x"))

    for answer in (bare, wrong):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("lacking", "key", "path"),
    [
        ("operation", EYES, "/v1/completions"),
        ("operation", EYES, "/v1/audio/transcriptions"),
        ("operation", EYES, "/v2/models/one/infer"),
        ("operation", EYES, "/v1/models/one:predict"),
        ("operation", EYES, "/v2/models/one/generate"),
        ("operation", EYES, "/v2/models/one/generate_stream"),
        ("model", ONE, "/v2/models/two/infer"),
        ("model", ONE, "/v1/models/two:predict"),
        ("admin", ALL, "/v2/repository/models/one/unload"),
    ],
)
async def test_nothing_looks_at_the_body_of_one_who_may_not_ask(
    closed: Closed, lacking: str, key: str, path: str
) -> None:
    """The refusal is of the key, whatever is wrong with the body."""
    broken = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "br", **bearing(key)}

    refused = await closed.post(path, content=b"\xff--x--x", headers=broken)

    assert refused.status_code in {403, 404}, lacking


@pytest.mark.parametrize("path", sorted(PROBES))
async def test_probes_answer_everybody_and_tell_nobody_who_is_there(closed: Closed, path: str) -> None:
    """Their status is for every platform; names, states and reasons are for those with a key."""
    bare = await closed.get(path)
    known = await closed.get(path, headers=bearing(ALL))

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
async def test_a_refusal_has_the_shape_of_its_protocol(closed: Closed, path: str, shape: dict[str, object]) -> None:
    """OpenAI's clients, Anthropic's and those of the Open Inference Protocol each find what they look for."""
    body = (await closed.post(path, json={})).json()

    def holds(said: object, wanted: object) -> bool:
        if isinstance(wanted, dict):
            return isinstance(said, dict) and all(holds(said[key], value) for key, value in wanted.items())
        return str(said).startswith(str(wanted))

    assert holds(body, shape)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ALL}"},
        {"authorization": f"bearer  {ALL} "},
        {"x-api-key": ALL},
        {"api-key": ALL},
        {"Authorization": "Bearer something-of-a-gateway", "x-api-key": ALL},
    ],
)
async def test_a_key_is_taken_from_every_header_that_clients_send(closed: Closed, headers: dict[str, str]) -> None:
    """OpenAI's, Anthropic's and Azure's clients each have one."""
    answer = await closed.post("/v1/completions", json={"model": "one"}, headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "Bearer ", ALL, f"Token {ALL}", f"Bearer {ALL[:-1]}"])
async def test_what_is_no_key_opens_nothing(closed: Closed, header: str) -> None:
    """Other schemes, nothing, and nearly a key are refused alike."""
    answer = await closed.get("/v1/models", headers={"Authorization": header})

    assert answer.status_code == 401


async def test_a_key_sees_only_its_models(closed: Closed) -> None:
    """A key that is for an alias is shown that name alone, in every listing, error and metadata."""
    headers = bearing(ONE)
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
@pytest.mark.parametrize("key", [ONE, HAND])
async def test_a_model_that_a_key_is_not_for_does_not_exist_for_it(
    closed: Closed, method: str, path: str, body: object, key: str
) -> None:
    """The answer is that to a name nobody has, in any protocol and for operators too."""
    answers = []
    for name in ("two", "nil"):
        sent = None if body is None else json.loads(json.dumps(body).replace("{}", name))
        answer = await closed.request(method, path.replace("{}", name), json=sent, headers=bearing(key))
        answers.append((answer.status_code, answer.text.replace(name, "NAME"), sorted(answer.headers)))

    assert answers[0] == answers[1]
    assert answers[0][0] in {403, 404}


async def test_a_listing_shows_a_key_what_it_may_ask(closed: Closed) -> None:
    """
    Operations that are not for it are in no card and not in the document, and the model behind an alias has no name.
    """
    boss = (await closed.get("/v1/models/one", headers=bearing(BOSS))).json()
    eyes = (await closed.get("/v1/models", headers=bearing(EYES))).json()
    uno = (await closed.get("/v1/models/uno", headers=bearing(ONE))).json()
    paths = (await closed.get("/schema/openapi.json", headers=bearing(BOSS))).json()["paths"]

    assert boss["operations"] == ["completion"]
    assert [card["operations"] for card in eyes["data"]] == [[], [], []]
    assert (uno["root"], uno["parent"], uno["aliases"]) == ("uno", None, [])
    assert "/v1/completions" in paths
    assert "/v1/chat/completions" not in paths


async def test_a_refused_operation_names_only_those_the_key_may_ask() -> None:
    """What the model can do beside them is told to other keys."""
    asks = (Operation.COMPLETION, Operation.MODERATION)
    async with Closed(closed_config(KeyConfig(name="asks", value=ALL, operations=asks))) as client:
        await client.until_ready()

        answer = await client.post("/v1/moderations", json={"model": "one", "input": "a"}, headers=bearing(ALL))

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("does not support moderation; it supports: completion")


async def test_a_missing_model_is_not_found_out_by_leaving_its_name_away() -> None:
    """A key for an alias gets no answer from the only model there is without naming it."""
    of = closed_config(KeyConfig(name="one", value=ONE, models=("uno",)))
    async with Closed(of.model_copy(update={"models": of.models[:1]})) as client:
        answer = await client.post("/v1/completions", json={"prompt": "a"}, headers=bearing(ONE))

    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "model is missing; it must be one of: uno"


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [
        (ALL, "two", 200),
        (ONE, "uno", 200),
        (ONE, "one", 404),
        (ONE, "two", 404),
        (EYES, "one", 403),
        (BOSS, "one", 200),
    ],
)
async def test_a_key_asks_what_it_may_of_its_models(closed: Closed, key: str, model: str, status: int) -> None:
    """Another model and another name of it do not exist, another operation is 403, whatever protocol asks."""
    openai = await closed.post("/v1/completions", json={"model": model}, headers=bearing(key))
    tensors = await closed.post(f"/v2/models/{model}/generate", json={"text_input": "a"}, headers=bearing(key))

    assert openai.status_code == status
    # The double answers with its question, which is no text: what matters is that it was asked.
    assert tensors.status_code == (502 if status == 200 else status)


async def test_a_refused_operation_says_who_may_not_do_what(closed: Closed) -> None:
    """The name of the key, what it may not do, and where the config would allow it; never the key."""
    answer = await closed.post("/v1/chat/completions", json={"model": "one"}, headers=bearing(BOSS))

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (403, "permission_error", "not_allowed")
    assert "'boss'" in error["message"]
    assert "chat_completion" in error["message"]
    assert BOSS not in answer.text


async def test_metrics_are_for_keys_that_see_every_model(closed: Closed) -> None:
    """A scraper's key may ask nothing of models; a key for some of them would read of the others."""
    statuses = [(await closed.get("/metrics", headers=bearing(key))).status_code for key in (EYES, ALL, ONE)]

    assert statuses == [200, 200, 403]


async def test_metrics_are_open_where_the_config_says_so() -> None:
    """Nothing else is open with them."""
    async with Closed(closed_config(metrics="open")) as client:
        metrics, models = await client.get("/metrics"), await client.get("/v1/models")

    assert (metrics.status_code, models.status_code) == (200, 401)


async def test_models_are_unloaded_by_operators_alone(fresh: Closed) -> None:
    """`server.admin` opens the routes, and a key with `admin` uses them."""
    path = "/v2/repository/models/two/unload"
    refused = await fresh.post(path, headers=bearing(ALL))
    done = await fresh.post(path, headers=bearing(BOSS))

    assert (refused.status_code, done.status_code) == (403, 200)


async def test_no_keys_ask_for_nothing() -> None:
    """A config without keys answers everybody, and takes no notice of the keys that clients send anyway."""
    async with Closed(config(DoubleConfig(name="one"), server=ServerConfig())) as client:
        statuses = [
            (await client.get(path, headers=headers)).status_code
            for path in ("/", "/metrics", "/v1/models", "/schema")
            for headers in ({}, bearing("nothing"))
        ]

    assert set(statuses) == {200}


async def test_keys_are_exchanged_while_it_serves(fresh: Closed) -> None:
    """The next request goes by the new ones."""
    new = ServerConfig.model_validate({"api_keys": [{"name": "new", "value": "new-new-new-new-new-new"}]})

    fresh.manager.authorizer.apply(new.auth)

    assert (await fresh.get("/v1/models", headers=bearing(ALL))).status_code == 401
    assert (await fresh.get("/v1/models", headers=bearing("new-new-new-new-new-new"))).status_code == 200
    fresh.manager.authorizer.apply(AuthConfig())
    assert (await fresh.get("/v1/models")).status_code == 200


async def test_models_never_get_to_see_a_key(closed: Closed) -> None:
    """What a client sends for somebody else stays; our key is gone, from whatever header had it."""
    headers = {"Authorization": "Bearer for-the-upstream", "x-api-key": ALL, "api-key": ALL}
    await closed.post("/v1/completions", json={"model": "one"}, headers=headers)

    seen = cast("Keeper", closed.manager.statuses[0].model).calls[-1].headers
    assert seen["authorization"] == "Bearer for-the-upstream"
    assert ALL not in json.dumps(dict(seen))


async def test_a_refusal_is_in_the_log_without_the_key(closed: Closed) -> None:
    """One event as for any request, with its status."""
    with capture_logs() as events:
        await closed.get("/v1/models", headers=bearing("wrong-wrong-wrong-wrong"))

    assert [event["status"] for event in events if event["event"] == "request.ended"] == [401]
    assert "wrong-wrong" not in json.dumps(events, default=str)
