"""Checks of adapters in a config that need their template engines: templates render, and JMESPaths compile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from appliance.adapters.http_service import JmesPath, PathFaultError, smallest_variables
from appliance.adapters.renderer import Renderer, RenderError
from appliance.adapters.templates import ChatTemplate, JsonTemplate, TemplateFaultError, is_inline
from appliance.config.adapters import OPERATIONS
from appliance.config.raw_config import DataPath, Diagnostic, RawConfig
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
    found: list[_Template] = []
    for path in [(*path, "protocol") for path, model in raw.models() if model.get("class") == "adapter"]:
        for keys in (("chat_template",), ("chat", "chat_template")):
            source = raw.find(where := (*path, *keys))
            try:
                found += [_chat_template(where, source)] if isinstance(source, str) else []
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
                message = f"is {raw.quote(where)}, a file that cannot be read: {reason}; must be a template"
                yield raw.diagnostic(where, message)
        for key, operation in OPERATIONS.items() if raw.find((*path, "kind")) == "http" else ():
            source = raw.find(where := (*path, key, "request"))
            if isinstance(source, str):
                found.append(_Template(where, source, operation))
            yield from _path_errors(raw, (*path, key))
    results = _errors_of(tuple((template.source, template.operation) for template in found))
    for template, result in zip(found, results, strict=True):
        if result is not None:
            yield from _diagnostics(raw, template, result)


@dataclass(frozen=True, slots=True)
class _Template:
    """A template of requests for an operation; None where it is of chats. `file` is where it was read."""

    path: DataPath
    source: str
    operation: Operation | None = None
    file: Path | None = None


def _chat_template(path: DataPath, text: str) -> _Template:
    """Return the chat template that `text` is, or that is in the file which it names."""
    if is_inline(text):
        return _Template(path, text)
    file = Path(text).expanduser()
    return _Template(path, file.read_text(encoding="utf-8"), file=file)


def _diagnostics(raw: RawConfig, template: _Template, error: Exception) -> Iterator[Diagnostic]:
    """The error with its location and remedy; none where a template may refuse this request."""
    path, cause = template.path, error.__cause__
    if isinstance(error, TemplateFaultError):
        if error.line is not None:
            yield _syntax_error(raw, template, str(error), error.line)
        else:
            must = "must render JSON for the smallest request, so put values through | tojson"
            yield raw.diagnostic(path, f"{error}; {must}")
    elif isinstance(cause, RenderError) and (remedy := _remedy(template.operation, cause)):
        kind = "conversation" if template.operation is None else "request"
        yield raw.diagnostic(path, f"fails for the smallest {kind}{_detail(raw, path, cause)}; {remedy}")


def _remedy(operation: Operation | None, error: RenderError) -> str | None:
    if operation is None:
        # It may refuse the chat, or need a token of the tokenizer, which is not here.
        return "must render in little time and memory" if error.kind in ("broken", "ended") else None
    if error.kind == "undefined":
        return "must have a default for what requests may leave out, such as {{ top_p | default(1) }}"
    return None if error.kind == "refused" else "must render in little time and memory"


def _syntax_error(raw: RawConfig, template: _Template, error: str, line: int) -> Diagnostic:
    path = template.path
    if template.file is not None:
        return raw.diagnostic(path, f"is {raw.quote(path)}, and line {line} of it is not Jinja: {error}")
    # The line is all that may be shown of a text from outside.
    where = f" in line {line}" if raw.secrets(path) else ""
    message = f"is not a Jinja template{where}{_detail(raw, path, error)}"
    return Diagnostic(path, message, raw.location_inside(path, line))


@lru_cache(maxsize=8)
def _errors_of(templates: tuple[tuple[str, Operation | None], ...]) -> tuple[Exception | None, ...]:
    """What goes wrong when each template is compiled, and rendered for the smallest request.

    Cached, because a watched file is loaded again after each change, and few changes are in a template.
    """
    if not templates:
        return ()
    with Renderer() as renderer:
        return tuple(_error_of(source, operation, renderer) for source, operation in templates)


def _error_of(source: str, operation: Operation | None, renderer: Renderer) -> Exception | None:
    try:
        if operation is None:
            ChatTemplate(source, renderer=renderer).render(_SMALLEST_CHAT)
        else:
            JsonTemplate(source, renderer).render(smallest_variables(operation))
    except (TemplateFaultError, RequestError) as error:
        return error
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


def _detail(raw: RawConfig, where: DataPath, error: object) -> str:
    """The text of an error, unless it may quote a secret."""
    return "" if raw.secrets(where) else f": {error}"
