"""LiteLLM's providers are where LiteLLM itself finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.convert.litellm import PROVIDERS

# Their addresses and keys are in other parts of LiteLLM, which this function leaves out.
ELSEWHERE = {"openai", "openrouter", "gemini", "ollama", "ollama_chat"}


@pytest.mark.slow
def test_providers_are_at_the_addresses_of_litellm() -> None:
    """Each base URL and each variable of a key is the one that LiteLLM's own library has for the provider."""
    variables = {name: provider.key for name, provider in PROVIDERS.items() if name not in ELSEWHERE}

    program = Path(__file__).with_name("litellm_providers.py")
    done = subprocess.run(
        [sys.executable, program], input=json.dumps(variables), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])

    for name, (key, url) in found.items():
        assert url == PROVIDERS[name].url, name
        assert key == PROVIDERS[name].key or key == "fake-api-key", name
