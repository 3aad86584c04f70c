"""How many tokens a prompt has, before anybody has counted them."""

from __future__ import annotations

from math import ceil

# https://help.openai.com/en/articles/4936856: a token is about four characters of English.
_USUAL = 0.25

# What is learned is worth as much as this many bytes of the requests before it, so that it follows what is asked now.
_MEMORY_BYTES = 256 * 1024


class TokenEstimator:
    """Tokens of a byte of request body, learned from requests whose tokens were counted."""

    def __init__(self) -> None:
        self._bytes = 1024.0
        self._tokens = self._bytes * _USUAL

    def learn(self, size: int, tokens: int) -> None:
        """A body of this many bytes had this many prompt tokens."""
        kept = min(1.0, _MEMORY_BYTES / (self._bytes + size))
        self._bytes = self._bytes * kept + size
        self._tokens = self._tokens * kept + tokens

    def tokens(self, size: int) -> int:
        """Prompt tokens that a body of this many bytes likely has."""
        return ceil(size * self._tokens / self._bytes)
