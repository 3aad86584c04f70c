"""Chat templates: rendered as transformers renders them, from wherever a tokenizer keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.adapters.templates import ChatTemplate, JsonTemplate, TemplateFaultError, load_chat_template
from appliance.core.errors import LoadError, RequestError

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": "Grüße 🙂"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "ü"}}}]},
    {"role": "tool", "content": "7", "name": "f"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "Ünïcode", "parameters": {"type": "object"}}}]

TEMPLATES = {
    "trimmed": "{% for message in messages %}\n    {% if true %}\n{{ message.role }}\n    {% endif %}\n{% endfor %}\n",
    "tools": "{%- if tools %}\n{{ tools | tojson(indent=2) }}\n{% endif %}{{ messages | tojson }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "tokens": "{{ bos_token }}{{ messages[0]['content'] + eos_token }}{% if not documents %}none{% endif %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "undefined": "{{ nothing }}{% if nothing is defined %}x{% endif %}{{ messages[0].absent }}",
    "prompt": "{{ messages[-1].content }}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_renders_as_in_transformers(source: str) -> None:
    """Whitespace, JSON, tags, tokens and functions: the same prompt, so the model sees what it was trained on."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs, _ = render_jinja_template([MESSAGES], TOOLS, chat_template=source, add_generation_prompt=True, **tokens)
    ours = ChatTemplate(source, tokens).render(
        {"messages": MESSAGES, "tools": TOOLS, "documents": None, "add_generation_prompt": True}
    )

    assert ours == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages + 1 }}",
    ],
)
def test_a_template_is_sandboxed(source: str) -> None:
    """The sandbox holds, and whatever breaks is the request's refusal and not ours to break over."""
    with pytest.raises(RequestError, match="chat template of this model"):
        ChatTemplate(source).render({"messages": [1]})


def test_a_rendered_request_that_is_not_json_is_an_error() -> None:
    """A template can give JSON for one request and none for another."""
    template = JsonTemplate('{"a": {{ a }}}')

    assert template.render({"a": 1}) == b'{"a":1}'
    with pytest.raises(TemplateFaultError, match="does not render JSON"):
        template.render({"a": "text"})


def test_tojson_escapes_the_text_of_a_client() -> None:
    """A client's text stays a text, whatever signs are in it."""
    nasty = 'a", "admin": true, "b": "\\ \u2028 </script> {{ 1 + 1 }}'

    assert json.loads(JsonTemplate('{"a": {{ a | tojson }}}').render({"a": nasty})) == {"a": nasty}


def _write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


CONFIG = {"chat_template": "{{ bos_token }}config", "bos_token": {"content": "<s>", "lstrip": False}, "model_max": 5}
SEVERAL = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ eos_token }}default"}]


@pytest.mark.parametrize(
    ("files", "prompt"),
    [
        ({"tokenizer_config.json": CONFIG}, "<s>config"),
        ({"tokenizer_config.json": CONFIG, "chat_template.jinja": "{{ bos_token }}file"}, "<s>file"),
        ({"tokenizer_config.json": CONFIG, "chat_template.json": {"chat_template": "json"}}, "json"),
        ({"tokenizer_config.json": {"chat_template": SEVERAL, "eos_token": "</s>"}}, "</s>default"),
        (
            {"chat_template.jinja": "{{ bos_token }}{{ pad_token }}", "special_tokens_map.json": {"bos_token": "<b>"}},
            "<b>",
        ),
    ],
    ids=["config", "file", "json", "several", "map"],
)
def test_the_template_of_a_tokenizer_is_found(tmp_path: Path, files: dict[str, Any], prompt: str) -> None:
    """In each place transformers writes it to, with the special tokens beside it."""
    template = load_chat_template(None, _write(tmp_path, files))

    assert template is not None
    assert template.render({}) == prompt


def test_a_tokenizer_may_be_one_file(tmp_path: Path) -> None:
    """A tokenizer's config, or a template, is enough: nobody fetches weights for a template."""
    _write(tmp_path, {"tokenizer_config.json": CONFIG, "my.jinja": "mine"})
    config, own = (load_chat_template(None, tmp_path / name) for name in ("tokenizer_config.json", "my.jinja"))

    assert config is not None
    assert own is not None
    assert (config.render({}), own.render({})) == ("<s>config", "mine")


def test_a_configured_template_precedes_that_of_the_tokenizer(tmp_path: Path) -> None:
    """The tokenizer's special tokens serve it; it is inline, or a file."""
    _write(tmp_path, {"tokenizer_config.json": CONFIG, "own.jinja": "{{ bos_token }}file"})
    inline = load_chat_template("{{ bos_token }}inline", tmp_path)
    file = load_chat_template(str(tmp_path / "own.jinja"), tmp_path)

    assert inline is not None
    assert file is not None
    assert (inline.render({}), file.render({})) == ("<s>inline", "<s>file")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, "has no chat template"),
        ({"tokenizer_config.json": "{"}, "is not JSON"),
        ({"chat_template.jinja": "a\n{% if %}"}, "wrong in line 2"),
    ],
)
def test_a_tokenizer_without_a_valid_template_fails_to_load(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    """The reason names the place and the remedy."""
    with pytest.raises(LoadError, match=message):
        load_chat_template(None, _write(tmp_path, files))
