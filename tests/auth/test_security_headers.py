"""What browsers are told."""

from __future__ import annotations

import pytest
from auth_doubles import FULL_KEY, AppClient, bearer_header, config_with_keys

PAGE = "https://chat.example.com"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere", "/schema", "/metrics"])
async def test_every_answer_is_safe_in_a_browser(closed: AppClient, path: str) -> None:
    """Nothing is sniffed, framed or referred to, with a key and without; nothing speaks of TLS where there is none."""
    for answer in (await closed.get(path), await closed.get(path, headers=bearer_header(FULL_KEY))):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers


async def test_pages_may_run_nothing_but_their_own(closed: AppClient) -> None:
    """The page of the routes names its script and its style by their digests."""
    policy = (await closed.get("/schema", headers=bearer_header(FULL_KEY))).headers["content-security-policy"]

    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy


async def test_no_other_page_may_ask_unless_the_config_says_so(closed: AppClient) -> None:
    """Closed by default: neither a question before a request nor an answer allows an origin."""
    before = await closed.options("/v1/models", headers={"Origin": PAGE, **ASKING})
    after = await closed.get("/v1/models", headers={"Origin": PAGE, **bearer_header(FULL_KEY)})

    assert before.status_code == 401
    assert not [name for answer in (before, after) for name in answer.headers if name.startswith("access-control")]


async def test_pages_of_the_config_may_ask() -> None:
    """The question needs no key, the request does, and its refusal can be read by the page too."""
    async with AppClient(config_with_keys(cors={"origins": [PAGE]})) as client:
        before = await client.options("/v1/chat/completions", headers={"Origin": PAGE, **ASKING})
        refused = await client.get("/v1/models", headers={"Origin": PAGE})
        answered = await client.get("/v1/models", headers={"Origin": PAGE, **bearer_header(FULL_KEY)})
        other = await client.options("/v1/models", headers={"Origin": "https://other.example.com", **ASKING})

    assert (before.status_code, refused.status_code, answered.status_code, other.status_code) == (204, 401, 200, 401)
    assert {each.headers["access-control-allow-origin"] for each in (before, refused, answered)} == {PAGE}
    assert before.headers["access-control-allow-headers"] == ASKING["Access-Control-Request-Headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    assert answered.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == answered.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answered.headers


async def test_every_page_may_ask_where_the_config_says_so() -> None:
    """A star is all of them."""
    async with AppClient(config_with_keys(cors={"origins": ["*"]})) as client:
        answer = await client.get("/livez", headers={"Origin": PAGE})

    assert answer.headers["access-control-allow-origin"] == "*"
