"""Jinja templates from outside: chat templates as transformers renders them, and JSON for services.

They are rendered in Jinja's sandbox, and where requests are served in a process of their own as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError

from appliance.adapters.renderer import Renderer, RenderError
from appliance.adapters.sandbox import TemplateFaultError, compiled, sandbox, undeclared
from appliance.core.errors import RequestError

P = ParamSpec("P")
Result = TypeVar("Result")

MAX_SOURCE = 256 * 1024
"""
Most characters of a template. The longest chat templates have 40,000; Jinja compiles this many in seconds.
"""


class _SandboxedTemplate:
    """What the kinds of templates have in common."""

    kind: str
    """The word by which the renderer's process knows it."""

    what: str
    """Its name in messages."""

    undefined: type[Undefined]
    """What stands in for a variable that there is none of."""

    def __init__(self, source: str, renderer: Renderer | None = None) -> None:
        """`renderer` is the process that renders it; None renders here, without limits.

        Raises:
            TemplateFaultError: it is not a template.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateFaultError(f"is longer than {MAX_SOURCE} characters")
        environment = sandbox(self.undefined)
        self._template = compiled(environment, source)
        self._source = source
        self._renderer = renderer
        self.variables: frozenset[str] = undeclared(environment, source)
        """The names it asks for."""

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return the result of `work`, which renders this template, without blocking the event loop."""
        if self._renderer is None:
            return work(*args, **kwargs)
        return await self._renderer.run(work, *args, **kwargs)

    def render_here(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """The text it renders to, made in this process.

        Raises:
            RenderError: it refuses, or breaks.
        """
        return _rendered(self._template, variables)

    def _text(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """The text it renders to.

        Raises:
            RequestError: the template refuses the request, or cannot cope with it.
            TemplateFaultError: what it gives is not JSON, where it must be.
        """
        try:
            if self._renderer is None:
                return self.render_here(variables)
            return self._renderer.render(self.kind, self._source, variables)
        except RenderError as error:
            if error.kind == "not_json":
                raise TemplateFaultError(str(error)) from error
            verb = "refuses" if error.kind in ("refused", "undefined") else "cannot take"
            raise RequestError(f"The {self.what} of this model {verb} the request: {error}") from error


class ChatTemplate(_SandboxedTemplate):
    """A conversation as the text of one prompt."""

    kind, what, undefined = "chat", "chat template", Undefined

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None, renderer: Renderer | None = None) -> None:
        """`tokens` are the tokenizer's special ones, such as ``bos_token``.

        Raises:
            TemplateFaultError: it is not a template.
        """
        super().__init__(source, renderer)
        self._tokens = dict(tokens or {})
        self.knows_developer = "developer" in source

    def render(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """The prompt.

        Raises:
            RequestError: the template refuses the request, or cannot cope with it.
        """
        return self._text(self._tokens | dict(variables))


class JsonTemplate(_SandboxedTemplate):
    """A request as the JSON that a service of its own kind takes."""

    kind, what, undefined = "json", "request template", StrictUndefined

    def render(self, variables: Mapping[str, Any]) -> bytes:  # Any: JSON values
        """The service's request, as compact JSON.

        Raises:
            RequestError: the template refuses the request, or cannot cope with it.
            TemplateFaultError: what it gives is not JSON.
        """
        return self._text(variables).encode()

    def render_here(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        text = super().render_here(variables)
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise RenderError("not_json", f"gives no JSON: {error}") from error


def _rendered(template: Template, variables: Mapping[str, Any]) -> str:  # Any: JSON values
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
        # A template is code: it can break in any way, and only over what the client said.
        raise RenderError("broken", f"one of its expressions fails: {error}") from error
