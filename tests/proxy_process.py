"""A proxy under test whose metrics are read."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess
from upstreams import Upstream

CHAT_PATH = "/v1/chat/completions"
CHAT_REQUEST: dict[str, Any] = {"model": "talk", "messages": [{"role": "user", "content": "hi there"}]}


class ProxyProcess(ServerProcess):
    """A server under test with a proxy, and its metrics."""

    def metric(self, name: str, labels: Mapping[str, str]) -> float:
        """Return the sum of the samples of this name that have these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def write_config(folder: Path, upstream: Upstream, configs: Mapping[str, object]) -> Path:
    """Write a config with a proxy named `talk` that has an alias, and return its path; JSON is YAML."""
    model = {"name": "talk", "aliases": ["gpt"], "class": "proxy", "upstreams": [{"url": upstream.url}]}
    file = folder / "config.yaml"
    file.write_text(json.dumps({"models": [model], **configs}))
    return file
