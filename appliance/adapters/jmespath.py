"""JMESPaths into the answers of services, and what must be found there.

Source: https://jmespath.org/specification.html
"""

from __future__ import annotations

import math
import sys
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, LexerError, ParseError
from jmespath.functions import Functions

from appliance.core.errors import GatewayError
from appliance.core.suggestions import did_you_mean, known_names


class PathFaultError(Exception):
    """A path is wrong; `offset` of it counts from 0."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class JmesPath:
    """A place in a JSON answer."""

    def __init__(self, source: str) -> None:
        """Raises:
        PathFaultError: it is not a JMESPath.
        """
        self._source = source
        try:
            self._path = jmespath.compile(source)
        except LexerError as error:
            said = str(error.message)
            raise PathFaultError(f"{said[:1].lower()}{said[1:]}", error.lexer_position) from error
        except ParseError as error:
            at = len(source) if error.token_value is None else error.lex_position
            what = "ends too early" if error.token_value is None else f"has {error.token_value!r} in a wrong place"
            raise PathFaultError(what, at) from error
        except JMESPathError as error:
            raise PathFaultError("is empty") from error
        except ValueError as error:
            raise PathFaultError("has a number of too many digits") from error
        except RecursionError as error:
            raise PathFaultError("is nested too deeply") from error
        _require_functions(self._path.parsed, source)

    def find(self, answer: Any) -> Any:  # Any: JSON values
        """What is there, or None.

        Raises:
            GatewayError: a function of the path cannot take what it finds.
        """
        try:
            return self._path.search(answer)
        except (JMESPathError, RecursionError) as error:
            # Its own text would quote the answer.
            raise GatewayError(
                f"The target's answer does not fit the functions of the path {self._source!r}"
            ) from error

    def text(self, answer: Any) -> str:  # Any: JSON values
        """The text there.

        Raises:
            GatewayError: there is none.
        """
        found = self.find(answer)
        if not isinstance(found, str):
            raise self._unlike(found, "a text")
        return found

    def count(self, answer: Any) -> int:  # Any: JSON values
        """The whole number there; 0 where there is none."""
        found = self.find(answer)
        return int(found) if _is_number(found) else 0

    def scores(self, answer: Any) -> list[float]:  # Any: JSON values
        """The list of numbers there.

        Raises:
            GatewayError: there is none.
        """
        found = self.find(answer)
        if not _are_numbers(found):
            raise GatewayError(
                f"The target's answer has {_kind(found)} at {self._source!r}, where a list of numbers must be"
            )
        return [float(number) for number in found]

    def vectors(self, answer: Any) -> list[list[float]]:  # Any: JSON values
        """The list of vectors there; a vector alone is a list of one.

        Raises:
            GatewayError: there is none.
        """
        found = self.find(answer)
        vectors = [found] if _are_numbers(found) else found
        if not isinstance(vectors, list) or not vectors or not all(map(_are_numbers, vectors)):
            raise GatewayError(
                f"The target's answer has {_kind(found)} at {self._source!r}, where a list of vectors must be"
            )
        return [[float(number) for number in vector] for vector in vectors]

    def _unlike(self, found: Any, wanted: str) -> GatewayError:  # Any: JSON values
        return GatewayError(f"The target's answer has {_kind(found)} at {self._source!r}, where {wanted} must be")


def _require_functions(node: Any, source: str) -> None:  # Any: a node of the library's tree
    """Refuse a function that there is none of; the library would only notice when it is called."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "function_expression" and node["value"] not in Functions.FUNCTION_TABLE:
        name = node["value"]
        hint = did_you_mean(name, Functions.FUNCTION_TABLE) or known_names("functions", Functions.FUNCTION_TABLE)
        raise PathFaultError(f"has an unknown function {name}; {hint}", source.find(name))
    for child in node.get("children", ()):
        _require_functions(child, source)


def _are_numbers(value: Any) -> bool:  # Any: JSON values
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:  # Any: JSON values
    """
    Whether it is a number that clients can be sent; Python's JSON has infinities, and whole numbers without an end.
    """
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)


def _kind(value: Any) -> str:  # Any: JSON values
    names = {dict: "a mapping", list: "another list", str: "a text", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), "a number")
