"""Whatever a client sends, an adapter answers it or refuses it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.completions import CompletionsOperations
from appliance.adapters.handlers import chat_over_completions
from appliance.adapters.operations import GeneratedText, TokenCounts, chat_over_text, complete_over_text, embed, rerank
from appliance.adapters.templates import ChatTemplate
from appliance.config.adapters import ChatConfig, CompletionsConfig
from appliance.core.errors import RequestError
from appliance.core.model import Operation

TEMPLATE = "{{ tools }}{{ documents }}{% for m in messages %}{{ m.role + m.content }}{{ m.tool_calls }}{% endfor %}"
CHAT = ChatRequestBuilder(ChatTemplate(TEMPLATE), ["END"])
CONFIG = CompletionsConfig.model_validate({"kind": "completions", "chat_template": TEMPLATE, "tool_calls": {}})

scalars = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(allow_nan=False) | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
parts = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url"]), "text": anything})
calls = st.fixed_dictionaries({}, optional={"function": anything, "id": anything})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | anything},
    optional={"content": st.text() | anything | st.lists(parts), "tool_calls": st.none() | anything | st.lists(calls)},
)
FIELDS = (
    *("n", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "tools", "tool_choice", "max_tokens"),
    *("max_completion_tokens", "chat_template_kwargs", "response_format", "add_generation_prompt", "echo"),
    *("continue_final_message", "query", "top_n", "encoding_format", "dimensions", "prompt", "suffix"),
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FIELDS, anything),
        "messages": st.lists(messages, min_size=1, max_size=3) | anything,
        "query": st.text(max_size=3) | anything,
        "prompt": st.text(max_size=3) | st.lists(st.text(max_size=3)) | anything,
        "tools": st.lists(st.dictionaries(st.text(max_size=3), anything, max_size=2), max_size=2) | anything,
        "documents": anything | st.lists(st.text(max_size=3) | st.fixed_dictionaries({"text": anything}), max_size=3),
        "input": anything | st.lists(st.text(max_size=3), max_size=3),
    },
)


class Service:
    """Answers everything well."""

    prompt_defaults: dict[str, Any] = {}  # noqa: RUF012 - never changed

    async def generate(self, body: Any, prompt: str, headers: Any) -> GeneratedText:
        """A word."""
        return GeneratedText("word", "stop", TokenCounts(1, 1))

    async def stream(self, body: Any, prompt: str, headers: Any) -> AsyncGenerator[GeneratedText]:
        """The same."""
        yield GeneratedText("word", "stop")

    async def embed(self, body: Any, texts: Sequence[str], headers: Any) -> Any:
        """A vector each."""
        return [[1.0, 2.0] for _ in texts], TokenCounts()

    async def score(self, body: Any, query: str, documents: Sequence[str], headers: Any) -> Any:
        """A score each."""
        return [1.0 for _ in documents], TokenCounts()

    async def send(self, operation: Operation, body: Any, headers: Any) -> Any:
        """A completion."""
        return {"id": "1", "choices": [{"text": "word", "finish_reason": "stop"}]}

    async def remaining_tokens(self, prompt: str, headers: Any) -> int | None:
        """None."""
        return None


SERVICE = Service()
HANDLERS = (
    partial(chat_over_completions, CompletionsOperations("m", CONFIG, SERVICE), CHAT),
    CompletionsOperations("m", CONFIG, SERVICE).complete,
    partial(chat_over_text, "m", SERVICE, ChatConfig(), CHAT),
    partial(chat_over_text, "m", SERVICE, ChatConfig(), None),
    partial(complete_over_text, "m", SERVICE),
    partial(embed, "m", SERVICE, 1),
    partial(rerank, "m", SERVICE, 2),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies)
async def test_any_request_is_answered_or_refused(body: dict[str, Any]) -> None:
    """A `RequestError` is the only fault a client can cause."""
    for handle in HANDLERS:
        try:
            said = await handle(dict(body), {})
            if not isinstance(said, dict):
                assert [chunk async for chunk in said]
        except RequestError as refused:
            assert refused.status == 400  # noqa: PT017 - either is right
