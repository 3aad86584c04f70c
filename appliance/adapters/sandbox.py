"""Jinja's sandbox with what chat templates count on, and without the computing that Jinja does when it compiles.

Source: https://huggingface.co/docs/transformers/chat_templating_writing and transformers'
`utils/chat_template_utils.py` for what a chat template can count on.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import (
    Environment,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_context,
)
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateFaultError(Exception):
    """A template is wrong; `line` of it counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class _Generation(Extension):
    """The block that marks what a model is trained on; rendering only needs what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandbox(undefined: type[Undefined]) -> Environment:
    """An environment for templates; `undefined` stands in for a variable that there is none of."""
    # No autoescape: prompts and JSON are no HTML.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        undefined=undefined,
        # Else constant expressions, such as 'a' * 2000000000, would be computed when the template is compiled.
        optimized=False,
        finalize=_finalize,
    )
    # Jinja's own filter escapes for HTML, which no model and no service expects.
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def undeclared(environment: Environment, source: str) -> frozenset[str]:
    """The names that a template asks for, as ``find_undeclared_variables`` of Jinja finds them."""
    generator = meta.TrackingCodeGenerator(environment)
    # Jinja's own function ignores `optimized`, and would compute constants.
    generator.optimizer = None
    generator.visit(environment.parse(source))
    return frozenset(generator.undeclared_identifiers)


@pass_context
def _finalize(_context: Context, value: Any) -> Any:  # Any: what an expression comes to
    # Jinja computes no constants where an expression's last step depends on the context.
    return value


def compiled(environment: Environment, source: str) -> Template:
    """The template of this text.

    Raises:
        TemplateFaultError: it is none.
    """
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateFaultError(str(error.message), error.lineno) from error
    except RecursionError as error:
        raise TemplateFaultError("is nested too deeply") from error
    except Exception as error:
        # Python compiles what Jinja makes of it, and has limits of its own: blocks in blocks, digits of numbers.
        raise TemplateFaultError(f"cannot be compiled: {error}") from error


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
