"""The margins behind exact answers: of the examples' promises, and of the questions that tests ask.

A margin is how far the likeliest token is ahead of the next one, in log probability. Number formats and processors
round differently, so an answer without a margin is another one elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
from questions import CAPITAL_ANSWER, CHAT, COUNT, LONG, MARGIN, REASONED, TALK, THOUGHT
from ruamel.yaml import YAML
from server_process import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
WEIGHTS = "SmolLM2-135M-Instruct"

Body = Mapping[str, Any]

QUESTIONS: Mapping[str, tuple[Body, str]] = {
    "capital": (CHAT, CAPITAL_ANSWER),
    "talk": (CHAT | {"messages": TALK}, CAPITAL_ANSWER),
    "long": (CHAT | {"messages": LONG, "max_tokens": 60}, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    "reasoned": (CHAT | {"messages": REASONED}, THOUGHT.format("Paris")),
    "count": ({"prompt": COUNT, "max_tokens": 64}, " 4, 5, 6, 7, 8, 9, 10, 11, 12"),
    "completion": ({"prompt": "The capital of France is", "max_tokens": 4}, " Paris."),
}
"""What tests ask, and how the answer begins."""


def _promises() -> Iterator[tuple[str, Body, Sequence[str]]]:
    """
    Of each example with the weights that tests have: what it promises of generated text, and what that must contain.
    """
    for file in sorted(EXAMPLES.glob("*.yaml")):
        # What `everything.yaml` promises is a sample of the key.
        if WEIGHTS not in (text := file.read_text()) or file.stem == "everything":
            continue
        config = YAML(typ="safe").load(text)
        models = {model["name"]: model for model in config["models"]}
        for number, expectation in enumerate(config.get("expect", [])):
            body = expectation.get("body", {})
            if not expectation["path"].endswith("/completions") or "contains" not in expectation:
                continue
            if body.get("tool_choice") == "required":
                # The tool's schema leaves no other answer.
                continue
            model = models.get(body.get("model"), config["models"][0])
            template = model.get("chat_template") or model.get("protocol", {}).get("chat_template")
            contains = expectation["contains"]
            # The others tell of the envelope.
            words = [each for each in ([contains] if isinstance(contains, str) else contains) if each.isalpha()]
            yield f"{file.stem}-{number}", _rendered(body, template), words


def _rendered(body: Body, template: str | None) -> Body:
    """A chat with a template of its own, as the prompt that it becomes."""
    if template is None:
        return body
    prompt = jinja2.Template(template).render(messages=body["messages"], add_generation_prompt=True)
    return {"prompt": prompt, "max_tokens": body["max_tokens"]}


PROMISES = {name: (body, words) for name, body, words in _promises()}


def _ask(server: ServerProcess, body: Body) -> tuple[str, float]:
    """The greedy answer to a chat or a prompt, and its smallest margin."""
    prompt = body.get("prompt") or server.post("/tokenize", {"messages": body["messages"]})[1]["tokens"]
    sampling = {"temperature": 0, "logprobs": 2, "max_tokens": body["max_tokens"]}
    status, answer = server.post("/v1/completions", {"prompt": prompt, **sampling})
    assert status == 200, answer
    (choice,) = answer["choices"]
    ranked = [sorted(token.values(), reverse=True) for token in choice["logprobs"]["top_logprobs"]]
    return choice["text"], min(first - second for first, second, *_ in ranked)


def test_every_example_that_writes_is_measured() -> None:
    """None is left out for how it is written: each promise of generated text is greedy, bounded, and held to a word."""
    assert {"chat", "rag", "limits", "chat-custom-template", "adapter-chat-over-completions", "data-parallel"} <= {
        name.rpartition("-")[0] for name in PROMISES
    }
    assert all(words for _, words in PROMISES.values())


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_of_an_example_has_a_margin(server: ServerProcess, name: str) -> None:
    """The answer has the word that the example promises, with a margin at each of its tokens."""
    body, words = PROMISES[name]

    answer, margin = _ask(server, body)

    assert all(word in answer for word in words)
    assert margin >= MARGIN, answer


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_of_the_tests_has_a_margin(server: ServerProcess, name: str) -> None:
    """The answer is the one that tests assert, with a margin at each of its tokens."""
    body, beginning = QUESTIONS[name]

    answer, margin = _ask(server, body)

    assert answer.startswith(beginning)
    assert margin >= MARGIN, answer


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ["DEFAULT", "AVX512_CORE", "AVX2"])
def test_margins_hold_in_both_formats_on_lesser_processors(
    serve: Callable[..., ServerProcess], dtype: str, isa: str
) -> None:
    """With the instructions that oneDNN and Torch may use limited, as processors without AMX and AVX-512 are."""
    capability = {"DEFAULT": "default", "AVX512_CORE": "avx512", "AVX2": "avx2"}[isa]
    limits = [f"ONEDNN_MAX_CPU_ISA={isa}", f"ATEN_CPU_CAPABILITY={capability}"]

    server = serve(
        f"models.smollm2.engine.dtype={dtype}", prefix=["env", *limits] if isa != "DEFAULT" else ()
    ).wait_until_ready()
    asked = {name: (body, [beginning]) for name, (body, beginning) in QUESTIONS.items()} | PROMISES
    answers = {name: (*_ask(server, body), words) for name, (body, words) in asked.items()}

    assert [name for name, (answer, _, words) in answers.items() if any(word not in answer for word in words)] == []
    assert {name: margin for name, (_, margin, _) in answers.items() if margin < MARGIN} == {}
    assert server.stop() == 0
