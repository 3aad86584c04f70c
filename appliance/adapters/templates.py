"""Jinja templates from outside: chat templates as transformers renders them, and JSON for services.

They are rendered in Jinja's sandbox, and for requests in a child process (`Renderer`) as well.

Source: https://huggingface.co/docs/transformers/chat_templating_writing and transformers'
`utils/chat_template_utils.py` for what a chat template can rely on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, NoReturn, ParamSpec, Protocol, TypeVar

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    meta,
    nodes,
    pass_context,
)
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.core.errors import RequestError

P = ParamSpec("P")
Result = TypeVar("Result")

MAX_SOURCE = 256 * 1024
"""
Largest number of characters of a template. The longest chat templates have 40,000; Jinja compiles this many in seconds.
"""


class TemplateFaultError(Exception):
    """A template is wrong; `line` of it counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class RenderError(Exception):
    """A template could not be rendered; `kind` is "refused", "undefined", "broken", "not_json" or "ended"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TemplateRenderer(Protocol):
    """Renders templates elsewhere, within limits."""

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return the result of `work`, which renders, without blocking the event loop."""

    def render(self, kind: str, source: str, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Return the text of a template; blocks.

        Raises:
            RenderError: the template refuses, breaks, takes too long, or takes or gives too much.
        """


class _SandboxedTemplate:
    """The common part of both kinds of templates."""

    kind: Literal["chat", "json"]
    description: str
    """Its name in messages."""
    undefined: type[Undefined]
    """The value of a missing variable."""

    def __init__(self, source: str, renderer: TemplateRenderer | None = None) -> None:
        """`renderer` renders it; None renders in this process, without limits.

        Raises:
            TemplateFaultError: it is not a template.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateFaultError(f"is longer than {MAX_SOURCE} characters")
        environment = create_environment(self.undefined)
        self._template = compile_template(environment, source)
        self._source = source
        self._renderer = renderer
        self.variables: frozenset[str] = undeclared_variables(environment, source)
        """The names of the variables it uses."""

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return the result of `work`, which renders this template, without blocking the event loop."""
        if self._renderer is None:
            return work(*args, **kwargs)
        return await self._renderer.run(work, *args, **kwargs)

    def render_here(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Return the text, rendered in this process.

        Raises:
            RenderError: it refuses, or breaks.
        """
        return _render(self._template, variables)

    def _text(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Return the text.

        Raises:
            RequestError: the template rejects the request, or cannot cope with it.
            TemplateFaultError: the text is not JSON, but must be.
        """
        try:
            if self._renderer is None:
                return self.render_here(variables)
            return self._renderer.render(self.kind, self._source, variables)
        except RenderError as error:
            if error.kind == "not_json":
                raise TemplateFaultError(str(error)) from error
            verb = "refuses" if error.kind in ("refused", "undefined") else "cannot take"
            raise RequestError(f"The {self.description} of this model {verb} the request: {error}") from error


class ChatTemplate(_SandboxedTemplate):
    """Renders a conversation as the text of one prompt."""

    kind, description, undefined = "chat", "chat template", Undefined

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, renderer: TemplateRenderer | None = None
    ) -> None:
        """`tokens` are the tokenizer's special ones, such as ``bos_token``.

        Raises:
            TemplateFaultError: it is not a template.
        """
        super().__init__(source, renderer)
        self._tokens = dict(tokens or {})
        self.knows_developer = "developer" in source

    def render(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Return the prompt.

        Raises:
            RequestError: the template rejects the request, or cannot cope with it.
        """
        return self._text(self._tokens | dict(variables))


class JsonTemplate(_SandboxedTemplate):
    """Renders a request as the JSON of a service."""

    kind, description, undefined = "json", "request template", StrictUndefined

    def render(self, variables: Mapping[str, Any]) -> bytes:  # Any: JSON values
        """Return the service's request as compact JSON.

        Raises:
            RequestError: the template rejects the request, or cannot cope with it.
            TemplateFaultError: its text is not JSON.
        """
        return self._text(variables).encode()

    def render_here(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        text = super().render_here(variables)
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise RenderError("not_json", f"does not render JSON: {error}") from error


def _render(template: Template, variables: Mapping[str, Any]) -> str:  # Any: JSON values
    try:
        return template.render(variables)
    except UndefinedError as error:
        raise RenderError("undefined", str(error.message)) from error
    except TemplateError as error:
        raise RenderError("refused", str(error.message)) from error
    except MemoryError as error:
        raise RenderError("broken", "it takes too much memory") from error
    except RecursionError as error:
        raise RenderError("broken", "it calls itself too often") from error
    except Exception as error:
        # A template is code: it can break in any way, and only because of the client's values.
        raise RenderError("broken", f"one of its expressions fails: {error}") from error


class _GenerationBlock(Extension):
    """The block that marks text for training; rendering only needs its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def create_environment(undefined: type[Undefined]) -> Environment:
    """Return a sandbox for templates; `undefined` is the value of missing variables."""
    # No autoescape: prompts and JSON are not HTML.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, loopcontrols],
        undefined=undefined,
        # Else constant expressions, such as 'a' * 2000000000, would be computed when the template is compiled.
        optimized=False,
        finalize=_finalize,
    )
    # Jinja's own filter escapes for HTML, which no model and no service expects.
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def undeclared_variables(environment: Environment, source: str) -> frozenset[str]:
    """Return the variables that a template uses, as ``find_undeclared_variables`` of Jinja does."""
    generator = meta.TrackingCodeGenerator(environment)
    # Jinja's own function ignores `optimized`, and would compute constants.
    generator.optimizer = None
    generator.visit(environment.parse(source))
    return frozenset(generator.undeclared_identifiers)


def compile_template(environment: Environment, source: str) -> Template:
    """Return a compiled template.

    Raises:
        TemplateFaultError: it is not a template.
    """
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateFaultError(str(error.message), error.lineno) from error
    except RecursionError as error:
        raise TemplateFaultError("is nested too deeply") from error
    except Exception as error:
        # Python compiles Jinja's output, and has limits of its own: nested blocks, digits of numbers.
        raise TemplateFaultError(f"cannot be compiled: {error}") from error


@pass_context
def _finalize(_context: Context, value: Any) -> Any:  # Any: what an expression comes to
    # Jinja computes no constants where an expression's last step depends on the context.
    return value


def _tojson(
    value: Any,  # Any: JSON values
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Undefined):
        # Raises its own error, which names the variable.
        str(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    # The local time, as transformers has it.
    return datetime.now().strftime(form)  # noqa: DTZ005
