"""The command `init`: writes a first config."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from appliance.cli.options import DEFAULT_FILES, Choice, load_config
from appliance.cli.remote import RemoteError, connected
from appliance.config.engine import FrameworkConfig
from appliance.core.errors import ConfigError

_Answer = TypeVar("_Answer", str, int)

# Plain text in YAML 1.2 without quotes, outside and inside of flow mappings.
_PLAIN = re.compile(r"[A-Za-z/][\w./:@=-]*[\w/]")

_STORAGE = """\
    storage:
      uri: {uri}    # {schemes}
"""
_SCHEMES = "or s3://, gs://, az://, oci://, https://, pvc://, pypi://, a path"

_UPSTREAM = """\
    upstreams:
      - url: {uri}    # with or without /v1
        # api_key: ${{env:UPSTREAM_KEY}}    # from the environment; never logged
        {model}    # its name there, if it is another one
"""

_ANSWERS_A_CHAT = """\
  - path: /v1/chat/completions
    body: {{model: {name}, messages: [{{role: user, content: Hello}}], max_tokens: 8}}
    contains: '"finish_reason"'
"""

# A server that does not list its models by then is asked nothing.
_LIST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Template:
    """A first config of one model class: defaults, the body of the model, and one request with its answer."""

    about: str
    name: str
    uri: str
    body: str
    expect: str


TEMPLATES: Mapping[str, Template] = {
    "generative": Template(
        "a language model: chat completions, completions, responses",
        "smollm2",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        _STORAGE
        + """\
    engine:
      max_model_len: 2048    # tokens of prompt and response together; without it, the model's own limit
    # layout: {{tensor_parallel: 2}}    # GPUs that share the model
""",
        _ANSWERS_A_CHAT,
    ),
    "encoder": Template(
        "embeddings, rerank, scores or classes of texts",
        "minilm",
        "hf://sentence-transformers/all-MiniLM-L6-v2",
        _STORAGE,
        """\
  - path: /v1/embeddings
    body: {{model: {name}, input: Hello}}    # for a reranker: path /rerank, with query and documents
    contains: '"embedding"'
""",
    ),
    "predictor": Template(
        "scikit-learn, XGBoost, LightGBM or ONNX",
        "iris",
        "./iris.onnx",
        _STORAGE
        + """\
    engine: {{framework: {framework}}}    # onnx, sklearn, xgboost or lightgbm
""",
        """\
  - path: /v2/models/{name}
    contains: '"inputs"'
""",
    ),
    "proxy": Template(
        "models on other servers that speak OpenAI's protocol",
        "assistant",
        "http://127.0.0.1:8000/v1",
        _UPSTREAM,
        _ANSWERS_A_CHAT,
    ),
    "adapter": Template(
        "OpenAI's protocol for a service without it",
        "writer",
        "http://127.0.0.1:9000",
        """\
    target: {{url: {uri}}}
    protocol:
      kind: http
      chat:
        path: /generate
        # A Jinja template that renders JSON from the fields of the client's request.
        request: '{{"prompt": {{{{ messages[-1].content | tojson }}}}}}'
        response: text    # JMESPath: where the answer has its text
""",
        """\
  - path: /v1/chat/completions
    body: {{model: {name}, messages: [{{role: user, content: Hello}}]}}
    contains: '"role":"assistant"'
""",
    ),
}

_HEAD = """\
# yaml-language-server: $schema=./appliance.schema.json
# Check it: appliance validate {file}
# Serve it: appliance serve {file}

models:
  - name: {name}    # what clients send as "model"
    class: {class_}    # {about}
"""

_SERVER = """
server:
  port: {port}
"""

_KEY = """\
  api_keys:
    - {{name: default, sha256: {digest}}}
"""

_EXPECT = """
# `appliance smoke {file}` serves the models, sends these requests and checks the answers.
expect:
"""


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILES[0])
@click.option("--class", "class_", type=Choice(list(TEMPLATES)), help="The model class.")
@click.option("--uri", help="Where the model is; for a proxy or an adapter, the URL of the other server.")
@click.option("--name", help="The name that clients send.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the server.")
@click.option("--key/--no-key", "has_key", default=None, help="Make an API key that requests must have.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def init(
    file: Path,
    class_: str | None,
    uri: str | None,
    name: str | None,
    port: int | None,
    has_key: bool | None,
    force: bool,
) -> None:
    """Write a first config.

    On a terminal it asks for what no option gives; elsewhere it takes the defaults, which are a small model of the
    class. The default FILE is appliance.yaml, which the other commands read.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; name another FILE, or replace it with --force")
    if class_ is None:
        class_ = _ask("Model class", "generative", Choice(list(TEMPLATES)))
    template = TEMPLATES[class_]
    is_server = class_ in ("proxy", "adapter")
    uri = uri or _ask("URL of the server" if is_server else "URI of the model", template.uri)
    models = _models_at(uri) if class_ == "proxy" else ()
    is_named_by_uri = not is_server and uri != template.uri
    named = models[0] if models else name_of(uri) if is_named_by_uri else template.name
    name = name or _ask("Name of the model", named)
    model = None if not models or name in models else models[0]
    port = port or _ask("Port", 8080, click.IntRange(1, 65535))
    if has_key is None:
        has_key = sys.stdin.isatty() and click.confirm("Require an API key?", err=True)
    key, digest = _new_key() if has_key else (None, None)
    _write(file, render(file, class_, uri, name, port, digest, model))
    click.echo(f"{file}: written; serve it with: appliance serve{'' if file == DEFAULT_FILES[0] else f' {file}'}")
    click.echo(f"completion in an editor: appliance schema --write {file.parent}", err=True)
    if key:
        click.echo(f"key of clients, shown once: {key}")


def render(
    file: Path, class_: str, uri: str, name: str, port: int, digest: str | None = None, model: str | None = None
) -> str:
    """The text of a first config; `digest` is the SHA-256 of a key, `model` the upstream's name if it is another."""
    template = TEMPLATES[class_]
    text = _HEAD + template.body + _SERVER + (_KEY if digest else "") + _EXPECT + template.expect
    return text.format(
        file=file,
        class_=class_,
        about=template.about,
        name=_scalar(name),
        uri=_scalar(uri),
        schemes=_SCHEMES,
        framework=_framework_of(uri),
        port=port,
        digest=digest,
        model=f"model: {_scalar(model)}" if model else "# model: NAME",
    )


def _models_at(url: str) -> Sequence[str]:
    """The models that the server at a URL lists; none where it cannot be asked."""

    async def ask() -> Sequence[str]:
        async with asyncio.timeout(_LIST_SECONDS), connected(url, None) as server:
            return [str(each["id"]) for each in await server.models()]

    with suppress(RemoteError, TimeoutError, click.BadParameter, KeyError, TypeError):
        return asyncio.run(ask())
    return ()


def _framework_of(uri: str) -> str:
    """The framework whose files have the suffix of the URI; ONNX for any other."""
    suffix = Path(uri).suffix
    found = (each for each in FrameworkConfig.__subclasses__() if suffix in each.suffixes)
    return next((str(get_args(each.model_fields["framework"].annotation)[0]) for each in found), "onnx")


def name_of(uri: str) -> str:
    """A name for a model at a URI: the last part of it that is one."""
    last = re.split(r"[/@]", re.sub(r"[?#].*|@[^/]*$", "", uri).rstrip("/"))[-1]
    name = re.sub(r"\.(gguf|onnx|zip|tar(\.\w+)?)$|:\w+$", "", last)
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


def _ask(question: str, default: _Answer, type_: Any = None) -> _Answer:  # Any: as click
    """The answer of a person at a terminal; elsewhere the default."""
    if not sys.stdin.isatty():
        return default
    answer: _Answer = click.prompt(question, default=default, type=type_, err=True)
    return answer


def _new_key() -> tuple[str, str]:
    from appliance.config.server import new_key

    return new_key()


def _scalar(text: str) -> str:
    """The text as YAML, in quotes where it needs them."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "null") else json.dumps(text)


def _write(file: Path, text: str) -> None:
    """Write the file, unless its text is no valid config.

    Raises:
        ConfigError: a value is wrong.
    """
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        load_config(draft)
        draft.replace(file)
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from error
    except ConfigError as error:
        faults = "\n".join(f"{problem.path}: {problem.message}" for problem in error.problems)
        raise click.UsageError(f"{file} is not written, because it would be wrong:\n{faults}") from error
    finally:
        draft.unlink(missing_ok=True)
