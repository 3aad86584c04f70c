"""Rules of adapters: targets that exist and can do what is asked, templates and paths that are some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from appliance.adapters.chat_template import is_inline
from appliance.adapters.http import smallest
from appliance.adapters.jinja import ChatTemplate, JsonTemplate
from appliance.adapters.jmespath import JmesPath, PathFaultError
from appliance.adapters.renderer import Renderer, RenderError
from appliance.adapters.sandbox import TemplateFaultError
from appliance.config.adapters import OPERATIONS
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic
from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.core.suggestions import did_you_mean, known_names

_PATHS = (("response",), ("stream",), ("finish_reason",), ("usage", "prompt_tokens"), ("usage", "completion_tokens"))

_SMALLEST_CHAT = {
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
}

Model = dict[str, Any]  # Any: what a file holds before it is checked


@dataclass(frozen=True, slots=True)
class _Template:
    """A template of requests for an operation; None where it is of chats."""

    source: str
    operation: Operation | None = None

    def compiled(self, renderer: Renderer) -> Callable[[], object]:
        """What renders it for the smallest request.

        Raises:
            TemplateFaultError: it is no template.
        """
        if self.operation is None:
            return partial(ChatTemplate(self.source, renderer=renderer).render, _SMALLEST_CHAT)
        return partial(JsonTemplate(self.source, renderer).render, smallest(self.operation))


class _SyntaxError(Exception):
    """The text is no template."""

    def __init__(self, fault: TemplateFaultError) -> None:
        super().__init__(str(fault))
        self.fault = fault


def targets_answer(raw: RawConfig) -> Iterator[Diagnostic]:
    """A target that is a name is that of another model, of one that completes, and no circle leads back."""
    models = _by_name(raw)
    for path, model in _adapters(raw):
        target, where = model.get("target"), (*path, "target")
        if not isinstance(target, str):
            continue
        kind = _mapping(model, "protocol").get("kind")
        if kind in ("oip", "http"):
            message = f"is {raw.quote(where)}, and models of this file speak OpenAI's protocol; "
            yield raw.diagnostic(where, f"{message}must be a mapping with the url of what speaks {kind}")
        elif target not in models:
            hint = "" if raw.secrets(where) else did_you_mean(target, models)
            yield raw.diagnostic(
                where, f"is {raw.quote(where)}, the name of no model here; {hint or known_names('models', models)}"
            )
        elif models[target] is model:
            yield raw.diagnostic(where, f"is {raw.quote(where)}, this model itself; must be another one")
        elif circle := _circle(model, models):
            yield raw.diagnostic(where, f"goes in a circle, {' -> '.join(circle)}; must lead to a model that computes")
        elif not _completes(models[target]):
            what = f"{raw.quote(where)} of class {models[target].get('class')}, which does not complete prompts"
            yield raw.diagnostic(where, f"is {what}; must be one that does")


def templates_render(raw: RawConfig) -> Iterator[Diagnostic]:
    """What is a Jinja template is one that renders the smallest request there is, and that of a request gives JSON."""
    found: list[tuple[DataPath, Path | None, _Template]] = []
    for path, model in _adapters(raw):
        for keys in (("protocol", "chat_template"), ("protocol", "chat", "chat_template")):
            source = raw.find(where := (*path, *keys))
            if not isinstance(source, str):
                continue
            file = None if is_inline(source) else Path(source).expanduser()
            try:
                found.append((where, file, _Template(source if file is None else file.read_text(encoding="utf-8"))))
            except (OSError, ValueError) as error:
                yield _unread(raw, where, error)
        for key, operation in OPERATIONS.items() if _mapping(model, "protocol").get("kind") == "http" else ():
            source = raw.find(where := (*path, "protocol", key, "request"))
            if isinstance(source, str):
                found.append((where, None, _Template(source, operation)))
    errors = _errors_of(tuple(template for *_, template in found))
    for (where, file, template), wrong in zip(found, errors, strict=True):
        if isinstance(wrong, _SyntaxError):
            yield _no_template(raw, where, file, wrong.fault)
        elif wrong is not None:
            fault = _wrong_chat if template.operation is None else _wrong_request
            yield from fault(raw, where, wrong)


def paths_compile(raw: RawConfig) -> Iterator[Diagnostic]:
    """What is a JMESPath is one."""
    for path, model in _adapters(raw):
        for key in OPERATIONS if _mapping(model, "protocol").get("kind") == "http" else ():
            for keys in _PATHS:
                where = (*path, "protocol", key, *keys)
                source = raw.find(where)
                if isinstance(source, str):
                    yield from _wrong_path(raw, where, source)


@lru_cache(maxsize=8)
def _errors_of(templates: tuple[_Template, ...]) -> tuple[Exception | None, ...]:
    """What goes wrong with each when it is compiled, and rendered for the smallest request.

    Remembered, because a file that is watched is read again for each of its changes, which are seldom in a template.
    """
    with Renderer() as renderer:
        return tuple(_error_of(template, renderer) for template in templates)


def _error_of(template: _Template, renderer: Renderer) -> Exception | None:
    try:
        render = template.compiled(renderer)
    except TemplateFaultError as error:
        return _SyntaxError(error)
    try:
        render()
    except (TemplateFaultError, RequestError) as error:
        return error
    return None


def _wrong_chat(raw: RawConfig, where: DataPath, error: Exception) -> Iterator[Diagnostic]:
    # It may refuse, or want a token of the tokenizer, which is not here.
    if isinstance(error.__cause__, RenderError) and error.__cause__.kind in ("broken", "ended"):
        fault = f"fails for the smallest conversation{_told(raw, where, error.__cause__)}"
        yield raw.diagnostic(where, f"{fault}; must render in little time and memory")


def _wrong_request(raw: RawConfig, where: DataPath, error: Exception) -> Iterator[Diagnostic]:
    if isinstance(error, TemplateFaultError):
        yield raw.diagnostic(where, f"{error}; must give some for the smallest request, so put values through | tojson")
    # What it refuses by itself is its own business.
    elif isinstance(error.__cause__, RenderError) and error.__cause__.kind != "refused":
        remedy = "must have a default for what requests may leave out, such as {{ top_p | default(1) }}"
        if error.__cause__.kind != "undefined":
            remedy = "must render in little time and memory"
        yield raw.diagnostic(where, f"fails for the smallest request{_told(raw, where, error.__cause__)}; {remedy}")


def _wrong_path(raw: RawConfig, where: DataPath, source: str) -> Iterator[Diagnostic]:
    try:
        JmesPath(source)
    except PathFaultError as error:
        above = source[: error.offset]
        line, offset = above.count("\n") + 1, len(above) - above.rfind("\n") - 1
        yield Diagnostic(where, f"is no JMESPath{_told(raw, where, error)}", raw.location_inside(where, line, offset))


def _unread(raw: RawConfig, where: DataPath, error: OSError | ValueError) -> Diagnostic:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
    return raw.diagnostic(where, f"is {raw.quote(where)}, a file that cannot be read: {reason}; must be a template")


def _no_template(raw: RawConfig, where: DataPath, file: Path | None, error: TemplateFaultError) -> Diagnostic:
    if file is not None:
        return raw.diagnostic(where, f"is {raw.quote(where)}, and line {error.line} of it no Jinja: {error}")
    # Where the text came from elsewhere, the line is all that can be told.
    line = f" in line {error.line}" if raw.secrets(where) else ""
    return Diagnostic(
        where, f"is no Jinja template{line}{_told(raw, where, error)}", raw.location_inside(where, error.line)
    )


def _told(raw: RawConfig, where: DataPath, error: object) -> str:
    """What an error says, unless it may quote a secret."""
    return "" if raw.secrets(where) else f": {error}"


def _adapters(raw: RawConfig) -> Iterator[tuple[DataPath, Model]]:
    for path, model in raw.models():
        if model.get("class") == "adapter":
            yield path, model


def _by_name(raw: RawConfig) -> dict[str, Model]:
    """Every model by each of its names, those of LoRA adapters among them."""
    made: dict[str, Model] = {}
    for _, model in raw.models():
        loras = [each.get("name") for each in _list(model.get("adapters")) if isinstance(each, dict)]
        for name in (model.get("name"), *_list(model.get("aliases")), *loras):
            if isinstance(name, str):
                made.setdefault(name, model)
    return made


def _circle(model: Model, models: Mapping[str, Model]) -> list[str]:
    """The names on the way from a model back to itself; none where the way ends, or goes round elsewhere."""
    way, at = [str(model.get("name"))], model
    while isinstance(target := at.get("target"), str) and target in models and len(way) <= len(models):
        at = models[target]
        way.append(str(at.get("name")))
        if at is model:
            return way
    return []


def _completes(model: Model) -> bool:
    protocol = _mapping(model, "protocol")
    if model.get("class") == "adapter":
        return protocol.get("kind") == "completions" or "completions" in protocol
    return model.get("class") != "encoder"


def _mapping(model: Model, key: str) -> Model:
    value = model.get(key)
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:  # Any: what a file holds before it is checked
    return value if isinstance(value, list) else []
