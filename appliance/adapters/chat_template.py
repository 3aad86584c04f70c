"""A chat template from where the config says: inline, a file, or what lies beside a tokenizer; no tokenizer is loaded.

Source: https://huggingface.co/docs/transformers/chat_templating and the files that `save_pretrained` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.adapters.jinja import ChatTemplate
from appliance.adapters.messages import Json
from appliance.adapters.renderer import Renderer
from appliance.adapters.sandbox import TemplateFaultError
from appliance.config.adapters import ChatConfig
from appliance.core.errors import LoadError

_CONFIG = "tokenizer_config.json"

# A template or a tokenizer's config; the vocabulary is a file of its own.
_MAX_BYTES = 8 * 1024 * 1024


def is_inline(chat_template: str) -> bool:
    """The text is a template itself, and not the path of one; no path has Jinja's signs, or several lines."""
    return any(sign in chat_template for sign in ("{{", "{%", "{#", "\n"))


def chat_template(config: ChatConfig, tokenizer: Path | None, renderer: Renderer | None = None) -> ChatTemplate | None:
    """The template of a section, None where it has none; `tokenizer` is where its storage was materialized.

    It is rendered by `renderer`, or in this process.

    Raises:
        LoadError: there is no template in the place it should be, or it is not one.
    """
    files = {} if tokenizer is None else _files(tokenizer)
    source = config.chat_template
    if source is None:
        if tokenizer is None:
            return None
        source = _of_tokenizer(files, tokenizer)
    elif not is_inline(source):
        source = _text(Path(source).expanduser())
    try:
        return ChatTemplate(source, _tokens(files), renderer)
    except TemplateFaultError as error:
        raise LoadError(f"the chat template is wrong in line {error.line}: {error}; correct it") from error


def _files(tokenizer: Path) -> Mapping[str, Path]:
    """The files beside the tokenizer by their names; a file alone is the only one."""
    paths = [tokenizer] if tokenizer.is_file() else list(tokenizer.iterdir())
    return {path.name: path for path in paths if path.is_file()}


def _of_tokenizer(files: Mapping[str, Path], tokenizer: Path) -> str:
    """The file of its own wins over the config's key, as it does for transformers."""
    if "chat_template.jinja" in files:
        return _text(files["chat_template.jinja"])
    only = next(iter(files.values())) if len(files) == 1 else None
    if only is not None and only.suffix == ".jinja":
        return _text(only)
    for name in ("chat_template.json", _CONFIG):
        found = _chosen(_json(files[name]).get("chat_template")) if name in files else None
        if found is not None:
            return found
    raise LoadError(
        f"{tokenizer}: has no chat template, be it in chat_template.jinja or in {_CONFIG}; give chat_template"
    )


def _chosen(template: Any) -> str | None:  # Any: JSON values
    """The default one, where there are several with names."""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _tokens(files: Mapping[str, Path]) -> dict[str, str]:
    """The special tokens, such as ``bos_token``, which templates write out."""
    found: Json = {}
    for name in ("special_tokens_map.json", _CONFIG):
        if name in files:
            found |= {key: value for key, value in _json(files[name]).items() if key.endswith("_token")}
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in contents.items() if isinstance(value, str)}


def _json(path: Path) -> Json:
    try:
        said = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: is no JSON: {error}; bring it anew") from error
    if not isinstance(said, dict):
        raise LoadError(f"{path}: is no JSON object; bring it anew")
    return said


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LoadError(f"{path}: is larger than {_MAX_BYTES} bytes; must be a template")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise LoadError(f"{path}: cannot be read: {reason}; must be a readable file") from error
