"""Configs and clients of servers that store responses."""

from __future__ import annotations

from pathlib import Path

from openai import OpenAI
from server_process import ServerProcess
from upstreams import Upstream

ALICE, BOB, EMBEDDER, OTHER_MODEL = (f"sk-{name:-<20}" for name in ("alice", "bob", "embedder", "other"))

CONFIG = """\
models:
  - {{name: ours, class: proxy, aliases: [nick], upstreams: [{{url: '{url}'}}], limits: {{concurrent: 4}}}}
  - {{name: chats, class: proxy, upstreams: [{{url: '{url}', translate: [responses]}}]}}
  - {{name: other, class: proxy, upstreams: [{{url: '{url}'}}]}}
  - {{name: preset, class: proxy, request: {{system_prompt: Secret.}}, upstreams: [{{url: '{url}'}}]}}
{more}
"""

KEYS = f"""\
server:
  workers: 2
  max_body_bytes: 1048576
  api_keys:
    - {{name: team/alice, value: {ALICE}}}
    - {{name: bob, value: {BOB}}}
    - {{name: embedder, value: {EMBEDDER}, operations: [embedding]}}
    - {{name: other, value: {OTHER_MODEL}, models: [other]}}
"""


def client_of(server: ServerProcess, key: str = ALICE) -> OpenAI:
    """Return OpenAI's client, for a block."""
    return OpenAI(base_url=f"{server.url}/openai/v1", api_key=key, max_retries=0)


def config_file(folder: Path, upstream: Upstream, more: str) -> Path:
    """Write a config without keys."""
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(url=upstream.url, more=more))
    return file
