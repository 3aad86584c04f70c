"""What editors make of the published schemas: the YAML language server, and any validator of JSON Schema."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from ruamel.yaml import YAML

from appliance.config.json_schema import directory

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SCHEMA_LINE = f"# yaml-language-server: $schema={directory() / 'appliance.schema.json'}\n"
PACKAGE = "yaml-language-server@1.24.0"

REFERENCES = """\
models:
  - name: ${env:NAME}
    class: generative
    aliases: ["${env:ALIAS}"]
    storage: {uri: "s3://${env:BUCKET}/model"}
    layout: ${env:LAYOUT:-auto}
    engine: {max_model_len: "${env:LENGTH}", dtype: "${env:DTYPE}", args: {block_size: "${env:BLOCK}"}}
server: {port: "${env:PORT:-8080}", admin: "${env:ADMIN}", tls: {certificate: a, key: b, key_password: "${file:key}"}}
logging: {level: "${env:LEVEL}"}
expect: ${file:expect.yaml}
"""

WRONG = """\
models:
  - name: a
    class: generative
    storage: {uri: file:///a}
    engine: {dtype: half, args: {block_size: many}}
server: {port: "${PORT}", prot: 1}
"""


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """A validator that has the published files and nothing of ours."""
    schemas = [json.loads(path.read_text(encoding="utf-8")) for path in directory().glob("*.json")]
    registry = Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in schemas])
    root = next(schema for schema in schemas if schema["$id"] == "appliance.schema.json")
    return Draft202012Validator(root, registry=registry)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_published_schema_accepts_every_example(example: Path, validator: Draft202012Validator) -> None:
    """References and all, as the file is written."""
    data = YAML(typ="safe", pure=True).load(example.read_text(encoding="utf-8"))

    assert [error.json_path for error in validator.iter_errors(data)] == []


def test_the_published_schema_accepts_references_and_refuses_what_is_none(validator: Draft202012Validator) -> None:
    """In the place of numbers, flags, choices, lists and mappings; another text with `${` is no reference."""
    yaml = YAML(typ="safe", pure=True)
    wrong = yaml.load(WRONG)
    right = yaml.load(REFERENCES)

    assert validator.is_valid(right)
    assert not validator.is_valid(right | {"models": wrong["models"]})
    assert not validator.is_valid(right | {"server": wrong["server"]})
    assert not validator.is_valid(right | {"server": {"port": "${PORT}"}})


class LanguageServer:
    """The YAML language server as a child process, spoken to over its standard input and output."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._diagnostics: dict[str, list[dict[str, Any]]] = {}
        self.request("initialize", {"processId": None, "rootUri": None, "capabilities": {}})
        self._send({"method": "initialized", "params": {}})
        settings = {"yaml": {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}}
        self._send({"method": "workspace/didChangeConfiguration", "params": {"settings": settings}})

    def open(self, path: Path) -> list[str]:
        """What the server finds wrong with a file, as ``LINE: MESSAGE``."""
        uri = path.as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": path.read_text(encoding="utf-8")}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        while uri not in self._diagnostics:
            self._receive()
        return [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in self._diagnostics[uri]]

    def request(self, method: str, params: object) -> Any:  # Any: JSON
        """The result of a request."""
        self._send({"id": "ours", "method": method, "params": params})
        while (message := self._receive()).get("id") != "ours":
            pass
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        assert length, "the language server ended"
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            self._diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:
            self._send({"id": message["id"], "result": None})
        return message

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()


@pytest.fixture(scope="module")
def language_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    """A running language server; skips where npm cannot install it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    prefix = tmp_path_factory.mktemp("npm")
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(prefix), PACKAGE]
    if subprocess.run(install, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip(f"npm cannot install {PACKAGE}")
    server = LanguageServer([str(prefix / "node_modules" / ".bin" / "yaml-language-server"), "--stdio"])
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a config that names the published schema."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(SCHEMA_LINE + text, encoding="utf-8")
        return path

    return write


def test_the_language_server_finds_no_error_in_any_example(language_server: LanguageServer) -> None:
    """An editor underlines nothing in an example."""
    assert {path.name: found for path in EXAMPLES if (found := language_server.open(path))} == {}


def test_the_language_server_finds_errors(language_server: LanguageServer, write: Callable[[str], Path]) -> None:
    """Beside references, values are checked as without them, each on its line."""
    found = language_server.open(write(WRONG))

    assert sorted({error.partition(":")[0] for error in found}) == ["6", "7"]
    assert '6: Value is not accepted. Valid values: "auto", "bfloat16", "float16", "float32".' in found
    assert "7: Property prot is not allowed." in found


def test_the_language_server_explains_and_completes(
    language_server: LanguageServer, write: Callable[[str], Path]
) -> None:
    """Keys have their descriptions, and choices are offered, although a reference would do."""
    path = write("server:\n  port: 8080\nlogging:\n  level: \n")
    language_server.open(path)
    document = {"uri": path.as_uri()}
    port = {"textDocument": document, "position": {"line": 2, "character": 3}}
    level = {"textDocument": document, "position": {"line": 4, "character": 9}}

    assert "Port of all routes." in json.dumps(language_server.request("textDocument/hover", port))
    offered = language_server.request("textDocument/completion", level)["items"]
    assert {"debug", "info", "warning", "error"} <= {item["label"] for item in offered}
