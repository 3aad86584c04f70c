"""Finds the chat template of a config: inline, in a file, or beside a tokenizer, which is not loaded.

Source: https://huggingface.co/docs/transformers/chat_templating and the files that `save_pretrained` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.adapters.templates import ChatTemplate, TemplateFaultError, TemplateRenderer
from appliance.config.adapters import ChatConfig
from appliance.core.errors import LoadError
from appliance.core.openai_types import Json

_TOKENIZER_CONFIG = "tokenizer_config.json"

# A template or a tokenizer's config; the vocabulary is a file of its own.
_MAX_BYTES = 8 * 1024 * 1024


def is_inline(chat_template: str) -> bool:
    """Return whether the text is a template and not the path of one: no path has Jinja's marks, or several lines."""
    return any(mark in chat_template for mark in ("{{", "{%", "{#", "\n"))


def load_chat_template(
    config: ChatConfig, tokenizer: Path | None, renderer: TemplateRenderer | None = None
) -> ChatTemplate | None:
    """Return the template of a config, None if it has none; `tokenizer` is the local copy of its storage.

    `renderer` renders it; None renders in this process.

    Raises:
        LoadError: there is no template where it should be, or it is not one.
    """
    files = {} if tokenizer is None else _files(tokenizer)
    source = config.chat_template
    if source is None:
        if tokenizer is None:
            return None
        source = _tokenizer_template(files, tokenizer)
    elif not is_inline(source):
        source = _read(Path(source).expanduser())
    try:
        return ChatTemplate(source, _special_tokens(files), renderer)
    except TemplateFaultError as error:
        raise LoadError(f"the chat template is wrong in line {error.line}: {error}; correct it") from error


def _files(tokenizer: Path) -> Mapping[str, Path]:
    """Return the files of a tokenizer's directory by name, or the file that it is."""
    paths = [tokenizer] if tokenizer.is_file() else list(tokenizer.iterdir())
    return {path.name: path for path in paths if path.is_file()}


def _tokenizer_template(files: Mapping[str, Path], tokenizer: Path) -> str:
    """Return the tokenizer's template; a file of its own precedes the config's key, as for transformers."""
    if "chat_template.jinja" in files:
        return _read(files["chat_template.jinja"])
    only = next(iter(files.values())) if len(files) == 1 else None
    if only is not None and only.suffix == ".jinja":
        return _read(only)
    for name in ("chat_template.json", _TOKENIZER_CONFIG):
        found = _default_template(_read_json(files[name]).get("chat_template")) if name in files else None
        if found is not None:
            return found
    raise LoadError(
        f"{tokenizer}: has no chat template, be it in chat_template.jinja or in {_TOKENIZER_CONFIG}; give chat_template"
    )


def _default_template(template: Any) -> str | None:  # Any: JSON values
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the special tokens, such as ``bos_token``, which templates write out."""
    found: Json = {}
    for name in ("special_tokens_map.json", _TOKENIZER_CONFIG):
        if name in files:
            found |= {key: value for key, value in _read_json(files[name]).items() if key.endswith("_token")}
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in contents.items() if isinstance(value, str)}


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
        if path.stat().st_size > _MAX_BYTES:
            raise LoadError(f"{path}: is larger than {_MAX_BYTES} bytes; must be a template")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise LoadError(f"{path}: cannot be read: {reason}; must be a readable file") from error
