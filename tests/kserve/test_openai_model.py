"""Models of OpenAI's clients that were written for KServe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from reference_servers import Reference
from upstreams import Upstream

from appliance.core.errors import ConfigError
from appliance.kserve.protocol.rest.openai import OpenAIProxyModel
from appliance.kserve.protocol.rest.openai.errors import OpenAIError, create_error_response

# The first request of a server on a loaded machine may import for long.
post = partial(httpx.post, timeout=60)

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A server that the proxies of the program send their requests to."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def url(start: Callable[..., Reference], upstream: Upstream) -> str:
    """The URL of the program, which needs no vLLM here."""
    server = start(sys.executable, "openai_model.py", "appliance.kserve", f"--predictor_url={upstream.url}")
    return server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    """A client below KServe's prefix."""
    with OpenAI(base_url=f"{url}/openai/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_an_adapter_completes_and_chats(client: OpenAI) -> None:
    """With its own template."""
    completion = client.completions.create(model="model", prompt="Hello")
    chat = client.chat.completions.create(model="model", messages=HELLO)

    assert (completion.choices[0].text, completion.id) == ("Hello", "1")
    assert chat.choices[0].message.content == "Hello there"
    assert chat.usage is not None
    assert chat.usage.total_tokens == 3


def test_a_generative_model_chats_and_streams(client: OpenAI) -> None:
    """Objects, and server-sent events as texts."""
    chat = client.chat.completions.create(model="speaker", messages=HELLO)
    chunks = list(client.chat.completions.create(model="speaker", messages=HELLO, stream=True))

    assert chat.choices[0].message.content == "Hello there"
    assert [each.choices[0].delta.content for each in chunks if each.choices] == ["Hello", "there"]


def test_a_model_reads_headers_and_sets_some(url: str) -> None:
    """Through the request as HTTP has it, and the context."""
    body = {"model": "speaker", "messages": HELLO}
    answer = post(f"{url}/openai/v1/chat/completions", json=body, headers={"X-Client": "me"})

    assert answer.headers["x-client"] == "me"


def test_an_encoder_embeds(client: OpenAI) -> None:
    """As numbers or base64, whatever the client asks for."""
    assert client.embeddings.create(model="embedder", input="four").data[0].embedding == [4.0]


@pytest.mark.parametrize(("prompt", "text", "param"), [("raise", "too long", "prompt"), ("a", "no completions", None)])
def test_errors_may_be_raised_or_returned(client: OpenAI, prompt: str, text: str, param: str | None) -> None:
    """In OpenAI's shape."""
    with pytest.raises(BadRequestError, match=text) as refused:
        client.completions.create(model="speaker", prompt=prompt)

    assert (refused.value.param or None) == param


def test_hooks_of_a_proxy_change_requests_and_responses(client: OpenAI, upstream: Upstream) -> None:
    """In place, chunks of streams too."""
    chat = client.chat.completions.create(model="polite", messages=HELLO)
    asked = [each["content"] for each in upstream.calls[-1].json()["messages"]]
    chunks = list(client.chat.completions.create(model="polite", messages=HELLO, stream=True))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)

    assert asked == ["Hello there", "please"]
    assert chat.choices[0].message.content == "You said: please!"
    assert text == "YOU SAID: PLEASE"


def test_a_proxy_without_hooks_passes_requests_on(client: OpenAI) -> None:
    """Embeddings, too."""
    assert client.chat.completions.create(model="proxy", messages=HELLO).choices[0].message.content
    assert client.embeddings.create(model="proxy", input="a").data


def test_a_proxy_takes_documented_and_real_arguments() -> None:
    """What it cannot honour is refused."""
    documented = OpenAIProxyModel("a", "http://there", "key")
    real = OpenAIProxyModel("a", predictor_url="http://there", skip_upstream_validation=True, health_endpoint=None)

    assert documented.backing is not None
    assert real.backing is not None
    with pytest.raises(TypeError, match="http_client is not used"):
        OpenAIProxyModel("a", "http://there", object())
    with pytest.raises(TypeError, match="predictor_url is missing"):
        OpenAIProxyModel("a")
    with pytest.raises(ConfigError, match="upstreams"):
        OpenAIProxyModel("a", "nowhere")


def test_errors_have_a_status() -> None:
    """A text is the server's fault."""
    assert OpenAIError("broken").status == 500
    assert OpenAIError(create_error_response("no", status_code=404)).status == 404
