"""The words nearest to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# More than this many equally near words say nothing.
_MOST_SUGGESTED = 3

# A section has at most about twenty keys; vLLM has hundreds of arguments.
_MOST_LISTED = 40


def distance(left: str, right: str) -> int:
    """The fewest insertions, deletions, substitutions and swaps of neighbours that turn `left` into `right`.

    This is the optimal string alignment distance.
    """
    before: Sequence[int] = ()
    last: Sequence[int] = range(len(right) + 1)
    for row, char in enumerate(left, 1):
        this = [row]
        for column, other in enumerate(right, 1):
            cost = min(last[column] + 1, this[-1] + 1, last[column - 1] + (char != other))
            if row > 1 and column > 1 and left[row - 2 : row] == other + right[column - 2]:
                cost = min(cost, before[column - 2] + 1)
            this.append(cost)
        before, last = last, this
    return last[-1]


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """The words nearest to `word`, in order; none where none is near enough to be meant."""
    near: dict[int, list[str]] = {}
    for other in sorted(words):
        limit = max(1, len(other) // 3)
        # The difference in length is a lower bound, which spares the work for most words.
        if abs(len(word) - len(other)) <= limit and (far := distance(word, other)) <= limit:
            near.setdefault(far, []).append(other)
    found = near[min(near)] if near else []
    return found if len(found) <= _MOST_SUGGESTED else []


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The question that ends a message about a misspelt word, or "" where no word is near."""
    found = [f'"{other}"' for other in nearest(word, words)]
    return f"did you mean {' or '.join(found)}?" if found else ""


def known_names(what: str, words: Iterable[str]) -> str:
    """
    What ends a message about a word that no other is near: the words themselves, where they are few enough to read.
    """
    known = sorted(words)
    if len(known) > _MOST_LISTED:
        return f"none of the {len(known)} {what} here is like it"
    return f"the {what} here are {', '.join(known)}" if known else f"there are no {what} here"
