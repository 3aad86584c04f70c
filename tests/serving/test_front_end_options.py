"""Options of vLLM's front end: the reasoning parser of a model, and `engine.serving`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from questions import CAPITAL, REASONED
from server_process import ServerProcess

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
CONTEXT = 256
SERVING = {
    "clamp_max_tokens": True,
    "default_chat_template_kwargs": {"note": "Note: be very brief."},
    "enable_force_include_usage": True,
    "enable_prompt_tokens_details": True,
    "enable_tokenizer_info_endpoint": True,
    "fingerprint_mode": "custom",
    "fingerprint_value": "a-fingerprint",
    "response_role": "robot",
    "return_tokens_as_token_ids": True,
}


@pytest.fixture(scope="module")
def options_server(chat_file: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """SmolLM2 with a reasoning parser, options of serving, and a template that writes a note if it is asked for it."""
    folder = tmp_path_factory.mktemp("options")
    template = (smollm2 / "chat_template.jinja").read_text()
    (folder / "note.jinja").write_text("{% if messages[0].content == 'note' %}{{ note }}{% endif %}" + template)
    served = ServerProcess(
        chat_file,
        folder / "server.log",
        "models.smollm2.reasoning_parser=granite",
        f"models.smollm2.chat_template={folder / 'note.jinja'}",
        f"models.smollm2.engine.max_model_len={CONTEXT}",
        f"models.smollm2.engine.serving={json.dumps(SERVING)}",
    ).wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


def test_reasoning_comes_apart_from_the_answer(options_server: ServerProcess) -> None:
    """Whole and streamed, the thought is in `reasoning` and only the answer is in `content`."""
    with openai.OpenAI(base_url=f"{options_server.url}/v1", api_key="none", timeout=120) as client:
        whole = client.chat.completions.create(model="smollm2", messages=REASONED, temperature=0, max_tokens=40)
        stream = client.chat.completions.create(
            model="smollm2", messages=REASONED, temperature=0, max_tokens=40, stream=True
        )
        deltas = [chunk.choices[0].delta.model_dump() for chunk in stream if chunk.choices]
    message = whole.choices[0].message.model_dump()

    assert message["reasoning"].strip() == "Easy."
    assert message["content"].strip() == "Paris."
    assert "".join(delta.get("reasoning") or "" for delta in deltas).strip() == "Easy."
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "Paris."


def test_options_of_serving_shape_responses(options_server: ServerProcess) -> None:
    """The role, the fingerprint, the usage of every stream, its details, and tokens as ids."""
    whole = options_server.post("/v1/chat/completions", {**CHAT, "logprobs": True})[1]
    stream = options_server.stream("/v1/chat/completions", {**CHAT, "stream": True})

    assert whole["choices"][0]["message"]["role"] == "robot"
    assert whole["system_fingerprint"] == "a-fingerprint"
    assert "cached_tokens" in whole["usage"]["prompt_tokens_details"]
    assert whole["choices"][0]["logprobs"]["content"][0]["token"].startswith("token_id:")
    assert b'"completion_tokens":2' in stream


def test_a_variable_of_the_template_has_a_default(options_server: ServerProcess) -> None:
    """A request may set it to something else."""
    note = {"messages": [{"role": "user", "content": "note"}]}

    default = options_server.post("/tokenize", note)[1]["count"]
    none = options_server.post("/tokenize", {**note, "chat_template_kwargs": {"note": ""}})[1]["count"]

    assert default > none


def test_the_tokenizer_is_shown_without_paths(options_server: ServerProcess, smollm2: Path) -> None:
    """Its settings are those of its files; the template is the one of the config."""
    status, info = options_server.get("/tokenizer_info")
    models = options_server.get("/v1/models")[1]["data"]

    assert status == 200
    assert (info["eos_token"], info["added_tokens_decoder"]["1"]) == ("<|im_end|>", "<|im_start|>")
    assert "{{ note }}" in info["chat_template"]
    assert str(smollm2) not in json.dumps(info)
    assert "tokenizer_info" in models[0]["operations"]


def test_a_response_longer_than_the_context_ends_with_it(options_server: ServerProcess) -> None:
    """Agents ask for 32,000 tokens whatever the model; with `clamp_max_tokens` each protocol says what ended it."""
    system, user = "You are helpful.", {"role": "user", "content": CAPITAL}
    count = 0
    while count < CONTEXT - 6:
        system += " Be kind."
        body = {"messages": [{"role": "system", "content": system}, user]}
        count = options_server.post("/tokenize", body)[1]["count"]
    left = CONTEXT - count

    for limit in ("max_tokens", "max_completion_tokens"):
        chat = options_server.post("/v1/chat/completions", {**body, limit: 32_000, "temperature": 0})[1]
        assert (chat["choices"][0]["finish_reason"], chat["usage"]["completion_tokens"]) == ("length", left)
    fields = {"model": "smollm2", "system": system, "messages": [user], "temperature": 0}
    message = options_server.post("/v1/messages", {**fields, "max_tokens": 32_000})[1]
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", left)
    fields = {"instructions": system, "input": CAPITAL, "temperature": 0}
    response = options_server.post("/v1/responses", {**fields, "max_output_tokens": 32_000})[1]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["usage"]["output_tokens"] == left
    text = "Count: " + ", ".join(map(str, range(1, 60)))
    completion = options_server.post("/v1/completions", {"prompt": text, "max_tokens": 32_000, "temperature": 0})[1]
    assert (completion["choices"][0]["finish_reason"], completion["usage"]["total_tokens"]) == ("length", CONTEXT)
