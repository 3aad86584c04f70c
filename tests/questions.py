"""Questions to SmolLM2 whose answers every processor and number format agree on.

The likeliest token of each answer is at least `MARGIN` ahead of the next in log probability, which
`serving/test_margins.py` measures. A step of bfloat16 is 1/8 at the size of its logits.
"""

from __future__ import annotations

from typing import Any, Final

from openai.types.chat import ChatCompletionMessageParam

MARGIN = 1.0

CAPITAL: Final = "Can you tell me the capital of France?"
CAPITAL_ANSWER: Final = "The capital of France is Paris."

MESSAGES: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": CAPITAL}]

TALK: Final[list[ChatCompletionMessageParam]] = [
    {"role": "system", "content": "You are a friendly teacher of geography."},
    {"role": "user", "content": [{"type": "text", "text": "Can you tell me the capital of Italy? 🙂"}]},
    {"role": "assistant", "content": "The capital of Italy is Rome."},
    {"role": "user", "content": CAPITAL},
]
"""A conversation; its last answer is `CAPITAL_ANSWER`."""

CHAT: Final[dict[str, Any]] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 20}
"""The body of a chat completion."""

COUNT: Final = "Count: 1, 2, 3,"
"""A prompt for completions, whose answer counts on past the hundredth token."""

LONG: Final[list[ChatCompletionMessageParam]] = [
    {"role": "user", "content": "Count to 3."},
    {"role": "assistant", "content": "1, 2, 3."},
    {"role": "user", "content": "Count to 5."},
    {"role": "assistant", "content": "1, 2, 3, 4, 5."},
    {"role": "user", "content": "Count to 10."},
]
"""A conversation whose last answer ends by itself, after more than 16 tokens."""

THOUGHT: Final = "Here is my thought process: Easy. Here is my response: {}."

REASONED: Final[list[ChatCompletionMessageParam]] = [
    {"role": "user", "content": "Capital of Italy?"},
    {"role": "assistant", "content": THOUGHT.format("Rome")},
    {"role": "user", "content": "Capital of Spain?"},
    {"role": "assistant", "content": THOUGHT.format("Madrid")},
    {"role": "user", "content": "Capital of France?"},
]
"""A conversation in the form of Granite's reasoning, which SmolLM2 then keeps to."""
