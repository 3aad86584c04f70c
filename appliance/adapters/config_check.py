"""Checks of adapters in a config that need their template engines: templates render, and JMESPaths compile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from appliance.adapters.chat_template import is_inline
from appliance.adapters.http_service import smallest_variables
from appliance.adapters.jmespath import JmesPath, PathFaultError
from appliance.adapters.renderer import Renderer
from appliance.adapters.templates import ChatTemplate, JsonTemplate, RenderError, TemplateFaultError
from appliance.config.adapters import OPERATIONS
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic
from appliance.core.errors import RequestError
from appliance.core.model import Operation

_JMESPATHS = (
    ("response",),
    ("stream",),
    ("finish_reason",),
    ("usage", "prompt_tokens"),
    ("usage", "completion_tokens"),
)

_SMALLEST_CHAT = {
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
}


def check(raw: RawConfig) -> Iterator[Diagnostic]:
    """The errors of templates and paths; a template must render the smallest request, and that of a request as JSON."""
    adapters = [path for path, model in raw.models() if model.get("class") == "adapter"]
    found: list[_Template] = []
    for path in adapters:
        for keys in (("chat_template",), ("chat", "chat_template")):
            source = raw.find(where := (*path, "protocol", *keys))
            if isinstance(source, str):
                try:
                    found.append(_Template.of_chat(where, source))
                except (OSError, ValueError) as error:
                    yield _unreadable(raw, where, error)
        for key, operation in OPERATIONS.items() if _is_http(raw, path) else ():
            source = raw.find(where := (*path, "protocol", key, "request"))
            if isinstance(source, str):
                found.append(_Template(where, source, operation))
            yield from _path_errors(raw, (*path, "protocol", key))
    results = _errors_of(tuple((template.source, template.operation) for template in found))
    for template, result in zip(found, results, strict=True):
        if result is not None:
            yield from template.diagnostics(raw, result)


def _is_http(raw: RawConfig, path: DataPath) -> bool:
    return bool(raw.find((*path, "protocol", "kind")) == "http")


@dataclass(frozen=True, slots=True)
class _TemplateError:
    """What is wrong with a template; `is_syntax` is that it does not compile."""

    cause: Exception
    is_syntax: bool


@dataclass(frozen=True, slots=True)
class _Template:
    """A template of requests for an operation; None where it is of chats."""

    path: DataPath
    source: str
    operation: Operation | None = None
    file: Path | None = None

    @classmethod
    def of_chat(cls, path: DataPath, text: str) -> _Template:
        """The chat template that `text` is, or that is in the file which it names.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not UTF-8 text.
        """
        if is_inline(text):
            return cls(path, text)
        file = Path(text).expanduser()
        return cls(path, file.read_text(encoding="utf-8"), file=file)

    def diagnostics(self, raw: RawConfig, error: _TemplateError) -> Iterator[Diagnostic]:
        """The error with its location and remedy; none where a template may refuse this request."""
        cause = error.cause.__cause__
        if isinstance(error.cause, TemplateFaultError) and error.is_syntax:
            yield self._syntax_error(raw, error.cause)
        elif isinstance(error.cause, TemplateFaultError):
            must = "must render JSON for the smallest request, so put values through | tojson"
            yield raw.diagnostic(self.path, f"{error.cause}; {must}")
        elif isinstance(cause, RenderError) and (remedy := self._remedy(cause)):
            kind = "conversation" if self.operation is None else "request"
            message = f"fails for the smallest {kind}{_detail(raw, self.path, cause)}; {remedy}"
            yield raw.diagnostic(self.path, message)

    def _remedy(self, error: RenderError) -> str | None:
        if self.operation is None:
            # It may refuse the chat, or need a token of the tokenizer, which is not here.
            return "must render in little time and memory" if error.kind in ("broken", "ended") else None
        if error.kind == "undefined":
            return "must have a default for what requests may leave out, such as {{ top_p | default(1) }}"
        return None if error.kind == "refused" else "must render in little time and memory"

    def _syntax_error(self, raw: RawConfig, error: TemplateFaultError) -> Diagnostic:
        if self.file is not None:
            quoted = raw.quote(self.path)
            return raw.diagnostic(self.path, f"is {quoted}, and line {error.line} of it is not Jinja: {error}")
        # The line is all that may be shown of a text from outside.
        line = f" in line {error.line}" if raw.secrets(self.path) else ""
        message = f"is not a Jinja template{line}{_detail(raw, self.path, error)}"
        return Diagnostic(self.path, message, raw.location_inside(self.path, error.line))


@lru_cache(maxsize=8)
def _errors_of(templates: tuple[tuple[str, Operation | None], ...]) -> tuple[_TemplateError | None, ...]:
    """What goes wrong when each template is compiled, and rendered for the smallest request.

    Cached, because a watched file is loaded again after each change, and few changes are in a template.
    """
    if not templates:
        return ()
    with Renderer() as renderer:
        return tuple(_error_of(source, operation, renderer) for source, operation in templates)


def _error_of(source: str, operation: Operation | None, renderer: Renderer) -> _TemplateError | None:
    template: ChatTemplate | JsonTemplate
    try:
        template = ChatTemplate(source, renderer=renderer) if operation is None else JsonTemplate(source, renderer)
    except TemplateFaultError as error:
        return _TemplateError(error, is_syntax=True)
    try:
        template.render(_SMALLEST_CHAT if operation is None else smallest_variables(operation))
    except (TemplateFaultError, RequestError) as error:
        return _TemplateError(error, is_syntax=False)
    return None


def _path_errors(raw: RawConfig, exchange: DataPath) -> Iterator[Diagnostic]:
    for keys in _JMESPATHS:
        source = raw.find(where := (*exchange, *keys))
        if not isinstance(source, str):
            continue
        try:
            JmesPath(source)
        except PathFaultError as error:
            above = source[: error.offset]
            line, offset = above.count("\n") + 1, len(above) - above.rfind("\n") - 1
            message = f"is not a JMESPath{_detail(raw, where, error)}"
            yield Diagnostic(where, message, raw.location_inside(where, line, offset))


def _unreadable(raw: RawConfig, where: DataPath, error: OSError | ValueError) -> Diagnostic:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
    message = f"is {raw.quote(where)}, a file that cannot be read: {reason}; must be a template"
    return raw.diagnostic(where, message)


def _detail(raw: RawConfig, where: DataPath, error: object) -> str:
    """The text of an error, unless it may quote a secret."""
    return "" if raw.secrets(where) else f": {error}"
