"""JMESPaths that read the responses of services, and the types of what they find.

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
    """A path into a JSON response."""

    def __init__(self, source: str) -> None:
        """Raises:
        PathFaultError: it is not a JMESPath.
        """
        self._source = source
        try:
            self._path = jmespath.compile(source)
        except LexerError as error:
            message = str(error.message)
            raise PathFaultError(f"{message[:1].lower()}{message[1:]}", error.lexer_position) from error
        except ParseError as error:
            if error.token_value is None:
                raise PathFaultError("ends too early", len(source)) from error
            raise PathFaultError(f"has {error.token_value!r} in a wrong place", error.lex_position) from error
        except JMESPathError as error:
            raise PathFaultError("is empty") from error
        except ValueError as error:
            raise PathFaultError("has a number of too many digits") from error
        except RecursionError as error:
            raise PathFaultError("is nested too deeply") from error
        _require_known_functions(self._path.parsed, source)

    def find(self, response: Any) -> Any:  # Any: JSON values
        """Return the value at the path, or None."""
        try:
            return self._path.search(response)
        except (JMESPathError, RecursionError) as error:
            # The library's message would quote the response.
            raise GatewayError(
                f"The target's response does not fit the functions of the path {self._source!r}"
            ) from error

    def text(self, response: Any) -> str:  # Any: JSON values
        """Return the text at the path."""
        found = self.find(response)
        if not isinstance(found, str):
            raise self._mismatch(found, "a text")
        return found

    def count(self, response: Any) -> int:  # Any: JSON values
        """Return the whole number at the path; 0 if there is none."""
        found = self.find(response)
        return int(found) if _is_number(found) else 0

    def scores(self, response: Any) -> list[float]:  # Any: JSON values
        """Return the list of numbers at the path."""
        found = self.find(response)
        if not _are_numbers(found):
            raise self._mismatch(found, "a list of numbers")
        return [float(number) for number in found]

    def vectors(self, response: Any) -> list[list[float]]:  # Any: JSON values
        """Return the list of vectors at the path; one vector alone is a list of one."""
        found = self.find(response)
        vectors = [found] if _are_numbers(found) else found
        if not isinstance(vectors, list) or not vectors or not all(map(_are_numbers, vectors)):
            raise self._mismatch(found, "a list of vectors")
        return [[float(number) for number in vector] for vector in vectors]

    def _mismatch(self, found: Any, expected: str) -> GatewayError:  # Any: JSON values
        names = {dict: "a mapping", list: "another list", str: "a text", bool: "true or false"}
        kind = "nothing" if found is None else names.get(type(found), "a number")
        return GatewayError(f"The target's response has {kind} at {self._source!r}, where {expected} must be")


def _require_known_functions(node: Any, source: str) -> None:  # Any: a node of the library's tree
    """Reject unknown functions, which the library only notices when it calls them."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "function_expression" and node["value"] not in Functions.FUNCTION_TABLE:
        name = node["value"]
        hint = did_you_mean(name, Functions.FUNCTION_TABLE) or known_names("functions", Functions.FUNCTION_TABLE)
        raise PathFaultError(f"has an unknown function {name}; {hint}", source.find(name))
    for child in node.get("children", ()):
        _require_known_functions(child, source)


def _are_numbers(value: Any) -> bool:  # Any: JSON values
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:  # Any: JSON values
    """Return whether JSON can hold the number: Python's has infinities, and whole numbers of any size."""
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)
