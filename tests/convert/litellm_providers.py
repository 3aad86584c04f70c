"""Where LiteLLM itself sends requests: ``litellm_providers.py`` reads ``{PROVIDER: VARIABLE or null}``.

It prints ``{PROVIDER: [KEY, BASE URL]}``, with the name of each variable as its value.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

variables = json.load(sys.stdin)
os.environ.update({name: name for name in variables.values() if name})
print(json.dumps({name: litellm.get_llm_provider(f"{name}/model")[2:] for name in variables}))
