"""
Jinja templates from outside, in a sandbox: chat templates as transformers renders them, and JSON for services.

Source: https://huggingface.co/docs/transformers/chat_templating_writing and transformers'
`utils/chat_template_utils.py` for what a chat template can count on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import CallError


class TemplateFaultError(Exception):
    """
    A template is wrong; `line` of it counts from 1.
    """

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class _Generation(Extension):
    """
    The block that marks what a model is trained on; rendering only needs what stands in it.
    """

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """
        The nodes inside the block.
        """
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """
    A conversation as the text of one prompt.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """
        `tokens` are the tokenizer's special ones, such as ``bos_token``.

        Raises:
            TemplateFaultError: it is not a template.
        """
        environment = _environment(Undefined)
        self._template = _compiled(environment, source)
        self._tokens = dict(tokens or {})
        self.variables: frozenset[str] = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        """The names it asks for."""
        self.knows_developer = "developer" in source

    def render(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """
        The prompt.

        Raises:
            CallError: the template refuses the request, or cannot cope with it.
        """
        return _rendered(self._template, self._tokens | dict(variables), "chat template")


class JsonTemplate:
    """
    A request as the JSON that a service of its own kind takes.
    """

    def __init__(self, source: str) -> None:
        """
        Raises:
            TemplateFaultError: it is not a template.
        """
        environment = _environment(StrictUndefined)
        self._template = _compiled(environment, source)
        self.variables: frozenset[str] = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        """The names it asks for."""

    def render(self, variables: Mapping[str, Any]) -> bytes:  # Any: JSON values
        """
        The service's request, as compact JSON.

        Raises:
            CallError: the template refuses the request, or cannot cope with it.
            TemplateFaultError: what it gives is not JSON.
        """
        text = _rendered(self._template, variables, "request template")
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise TemplateFaultError(f"gives no JSON: {error}") from error


def _environment(undefined: type[Undefined]) -> Environment:
    # No autoescape: prompts and JSON are no HTML.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], undefined=undefined
    )
    # Jinja's own filter escapes for HTML, which no model and no service expects.
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _compiled(environment: Environment, source: str) -> Template:
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateFaultError(str(error.message), error.lineno) from error
    except (RecursionError, MemoryError) as error:
        raise TemplateFaultError("is nested too deeply") from error


def _rendered(template: Template, variables: Mapping[str, Any], what: str) -> str:  # Any: JSON values
    try:
        return template.render(variables)
    except TemplateError as error:
        raise CallError(f"The {what} of this model refuses the request: {error.message}") from error
    except Exception as error:
        # A template is code: it can break in any way, and only over what the client said.
        raise CallError(f"The {what} of this model cannot take the request: {type(error).__name__}: {error}") from error


def _tojson(
    value: Any,  # Any: JSON values
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Undefined):
        # Named by its own error, rather than as a type that JSON lacks.
        str(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    # The local time, as transformers has it.
    return datetime.now().strftime(form)  # noqa: DTZ005
