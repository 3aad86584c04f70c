"""An appliance that tests look at from where its operators do."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from served import Served
from upstreams import Upstream

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "talk", "messages": [{"role": "user", "content": "hi there"}]}


class Watched(Served):
    """A proxy whose metrics are read."""

    def metric(self, name: str, labels: Mapping[str, str]) -> float:
        """The sum of the samples of this name that have these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def write(folder: Path, upstream: Upstream, configs: Mapping[str, object]) -> Path:
    """A file of a proxy named `talk`, with an alias; JSON is YAML."""
    model = {"name": "talk", "aliases": ["gpt"], "class": "proxy", "upstreams": [{"url": upstream.url}]}
    file = folder / "config.yaml"
    file.write_text(json.dumps({"models": [model], **configs}))
    return file
