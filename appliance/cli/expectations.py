"""What the `expect:` of a config asks of the body of a response."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from operator import mul
from pathlib import Path

import msgspec

from appliance.config.root import CosineConfig, ExpectConfig
from appliance.core.errors import ApplianceError


class ExpectationError(ApplianceError):
    """A response is not as expected, or there is nothing that it can be compared with."""


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def check_body(expectation: ExpectConfig, body: str, directory: Path) -> str:
    """Return in words what was found in a response, given the directory of the config.

    Raises:
        ExpectationError: something is not as expected.
    """
    texts = (expectation.contains,) if isinstance(expectation.contains, str) else expectation.contains
    if missing := [each for each in texts if each not in body]:
        raise ExpectationError(f"does not contain {missing[0]!r}: {body}")
    found = [f"{each!r} in it" for each in texts]
    if (cosine := expectation.cosine) is not None:
        try:
            embeddings = _embeddings(body)
        except ValueError as error:
            raise ExpectationError(f"has no embeddings as numbers ({error}): {body}") from error
        least = _least_cosine(embeddings, read_reference(cosine, directory), cosine)
        found.append(f"a cosine of at least {least:.4f} with {cosine.of}")
    return "".join(f", {each}" for each in found)


def read_reference(cosine: CosineConfig, directory: Path) -> Sequence[Sequence[float]]:
    """Return the embeddings that those of a response are compared with.

    Raises:
        ExpectationError: the file cannot be read, or is not a response with embeddings.
    """
    file = directory / cosine.of
    try:
        return _embeddings(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ExpectationError(
            f"{file}: has no embeddings ({error}); save a response of /v1/embeddings there, as with: curl ... > FILE"
        ) from error


def _embeddings(body: str | bytes) -> Sequence[Sequence[float]]:
    return [each.embedding for each in msgspec.json.decode(body, type=_Embeddings).data]


def _least_cosine(
    embeddings: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], expected: CosineConfig
) -> float:
    shapes = [[len(each) for each in vectors] for vectors in (embeddings, reference)]
    if shapes[0] != shapes[1] or not embeddings:
        raise ExpectationError(f"has embeddings of {shapes[0]} numbers, and {expected.of} of {shapes[1]}")
    cosines = [_cosine(*pair) for pair in zip(embeddings, reference, strict=True)]
    least = min(cosines)
    if least < expected.at_least:
        where = f"in data[{cosines.index(least)}], whose cosine with {expected.of} is {least:.4f}"
        raise ExpectationError(f"has another embedding {where}; must be at least {expected.at_least:g}")
    return least


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    # Next to nothing is added to the product of the lengths, for that of zeros.
    product: float = sum(map(mul, one, other))
    return product / (hypot(*one) * hypot(*other) + 1e-30)
