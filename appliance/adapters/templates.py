"""Jinja templates from outside: chat templates as transformers renders them, and JSON for services.

They are rendered in Jinja's sandbox, and for requests in a child process (`Renderer`) as well. A chat template is
inline, in a file, or beside a tokenizer, which is not loaded.

Source: https://huggingface.co/docs/transformers/chat_templating_writing, the files that `save_pretrained` writes, and
transformers' `utils/chat_template_utils.py` for what a chat template can rely on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import msgspec
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

from appliance.adapters.renderer import LENGTH_BYTES, MAX_OUTPUT_BYTES, Renderer, RenderError, message
from appliance.core.child_process import end_with_parent, limit_resources
from appliance.core.errors import LoadError, RequestError
from appliance.core.openai_types import Json

Result = TypeVar("Result")

MAX_SOURCE = 256 * 1024
"""Limit on the characters of a template. The longest have 40,000; Jinja compiles this many in seconds."""

# Address space of the child, of which Python and Jinja take a tenth; a body of 32 MiB needs less than a half.
_MEMORY_BYTES = 1024 * 1024 * 1024

_TOKENIZER_CONFIG = "tokenizer_config.json"

# A template or a tokenizer's config; the vocabulary is a file of its own.
_MAX_FILE_BYTES = 8 * 1024 * 1024


class TemplateFaultError(Exception):
    """A template is wrong: in a `line`, which counts from 1, or None if it compiles and does not render JSON."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class _SandboxedTemplate:
    """The common part of both kinds of templates; without a `renderer` it is rendered in this process, unlimited.

    Raises:
        TemplateFaultError: it is not a template.
    """

    kind: Literal["chat", "json"]
    # Its name in messages, and the value of a missing variable.
    description: str
    undefined: type[Undefined]

    def __init__(self, source: str, renderer: Renderer | None = None) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateFaultError(f"is longer than {MAX_SOURCE} characters", 1)
        environment = create_environment(self.undefined)
        self._template = compile_template(environment, source)
        self._source = source
        self._renderer = renderer
        self.variables: frozenset[str] = undeclared_variables(environment, source)
        """The names of the variables it uses."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which renders this template, without blocking the event loop."""
        return work() if self._renderer is None else await self._renderer.run(work)

    def render_here(self, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Return the text, rendered in this process.

        Raises:
            RenderError: it refuses, or breaks.
        """
        try:
            return self._template.render(variables)
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
    """Renders a conversation as the text of one prompt; `tokens` are the tokenizer's, such as ``bos_token``."""

    kind, description, undefined = "chat", "chat template", Undefined

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None, renderer: Renderer | None = None) -> None:
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
        raise TemplateFaultError("is nested too deeply", 1) from error
    except Exception as error:
        # Python compiles Jinja's output, and has limits of its own: nested blocks, digits of numbers.
        raise TemplateFaultError(f"cannot be compiled: {error}", 1) from error


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


def is_inline(chat_template: str) -> bool:
    """Return whether the text is a template and not the path of one: no path has Jinja's marks, or several lines."""
    return any(mark in chat_template for mark in ("{{", "{%", "{#", "\n"))


def load_chat_template(
    source: str | None,
    tokenizer: Path | None,
    renderer: Renderer | None = None,
    *,
    default: str | None = None,
    tokens: Mapping[str, str] | None = None,
) -> ChatTemplate | None:
    """Return a template that is inline, in a file, or None: beside the `tokenizer`, a local copy, if there is one.

    `default` is the template of a tokenizer that has none, `tokens` are special tokens besides the tokenizer's.

    Raises:
        LoadError: there is no template where it should be, or it is not one.
    """
    paths = [] if tokenizer is None else [tokenizer] if tokenizer.is_file() else list(tokenizer.iterdir())
    files = {path.name: path for path in paths if path.is_file()}
    if source is None:
        if tokenizer is None:
            return None
        source = _tokenizer_template(files, tokenizer, default)
    elif not is_inline(source):
        source = _read(Path(source).expanduser())
    try:
        return ChatTemplate(source, {**(tokens or {}), **_special_tokens(files)}, renderer)
    except TemplateFaultError as error:
        raise LoadError(f"the chat template is wrong in line {error.line}: {error}; correct it") from error


def _tokenizer_template(files: Mapping[str, Path], tokenizer: Path, default: str | None) -> str:
    """Return the tokenizer's template; a file of its own precedes the config's key, as for transformers."""
    jinja = next((name for name in files if name.endswith(".jinja") and len(files) == 1), "chat_template.jinja")
    if jinja in files:
        return _read(files[jinja])
    for name in [name for name in ("chat_template.json", _TOKENIZER_CONFIG) if name in files]:
        found = _read_json(files[name]).get("chat_template")
        if isinstance(found, list):
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    if default is not None:
        return default
    raise LoadError(
        f"{tokenizer}: has no chat template, be it in chat_template.jinja or in {_TOKENIZER_CONFIG}; give chat_template"
    )


def _special_tokens(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the special tokens, such as ``bos_token``, which templates write out."""
    contents: Json = {}
    for name in [name for name in ("special_tokens_map.json", _TOKENIZER_CONFIG) if name in files]:
        for key, value in _read_json(files[name]).items():
            contents[key] = value.get("content") if isinstance(value, dict) else value
    return {key: value for key, value in contents.items() if key.endswith("_token") and isinstance(value, str)}


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path}: is not a JSON object; download it again")
    return content


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise LoadError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes; must be a template")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise LoadError(f"{path}: cannot be read: {reason}; must be a readable file") from error


def serve() -> None:
    """Render templates in the child process until the parent closes the connection."""
    parent = os.getppid()
    end_with_parent(parent)
    limit_resources(memory_bytes=_MEMORY_BYTES)
    _respond({"text": "ready"})
    while os.getppid() == parent and (head := sys.stdin.buffer.read(LENGTH_BYTES)):
        _respond(_render_request(sys.stdin.buffer.read(int.from_bytes(head, "big"))))


def _render_request(request: bytes) -> dict[str, str]:
    try:
        fields = msgspec.json.decode(request)
        text = _compile(fields["kind"], fields["source"]).render_here(fields["variables"])
    except RenderError as error:
        return {"error": error.kind, "message": str(error)}
    except MemoryError:
        return {"error": "broken", "message": "it takes too much memory"}
    if len(text) > MAX_OUTPUT_BYTES:
        return {"error": "broken", "message": f"it gives more than {MAX_OUTPUT_BYTES} characters"}
    return {"text": text}


@lru_cache(maxsize=16)
def _compile(kind: str, source: str) -> ChatTemplate | JsonTemplate:
    return ChatTemplate(source) if kind == "chat" else JsonTemplate(source)


def _respond(response: dict[str, str]) -> None:
    try:
        content = msgspec.json.encode(response)
    except (MemoryError, ValueError) as error:
        # Half of a surrogate pair, which no text over HTTP can have.
        reason = "it takes too much memory" if isinstance(error, MemoryError) else "its text cannot be written as UTF-8"
        content = msgspec.json.encode({"error": "broken", "message": reason})
    sys.stdout.buffer.write(message(content))
    sys.stdout.buffer.flush()
