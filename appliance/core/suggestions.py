"""Suggestions for misspelt words."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

# Words of one or two letters differ by half with one wrong letter.
_MIN_SIMILARITY = 0.65
_MIN_SIMILARITY_OF_SHORT_WORDS = 0.5

# More equally similar words are no help.
_MAX_SUGGESTIONS = 3

# A part of the file has at most about twenty keys; vLLM has hundreds of arguments.
_MAX_LISTED = 40


def nearest(word: str, words: Iterable[str], min_similarity: float | None = None) -> list[str]:
    """The words most similar to `word`, in order; none where none is similar enough to be meant."""
    if min_similarity is None:
        min_similarity = _MIN_SIMILARITY if len(word) > 2 else _MIN_SIMILARITY_OF_SHORT_WORDS
    close = get_close_matches(word, sorted(words), n=_MAX_SUGGESTIONS + 1, cutoff=min_similarity)
    ranks = {other: (SequenceMatcher(None, other, word).ratio(), -abs(len(other) - len(word))) for other in close}
    found = sorted(other for other, rank in ranks.items() if rank == max(ranks.values()))
    return found if len(found) <= _MAX_SUGGESTIONS else []


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The question that ends a message about a misspelt word, or "" where no word is similar."""
    found = [f'"{other}"' for other in nearest(word, words)]
    return f"did you mean {' or '.join(found)}?" if found else ""


def known_names(kind: str, words: Iterable[str]) -> str:
    """What ends a message about a word that is like no other: the known words, where they are few enough to read."""
    known = sorted(words)
    if len(known) > _MAX_LISTED:
        return f"none of the {len(known)} {kind} here is like it"
    return f"the {kind} here are {', '.join(known)}" if known else f"there are no {kind} here"
