"""
The committed JSON Schemas of the config: ``python -m appliance.config.write_schemas [--check]`` writes or checks them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from appliance.config.json_schema import schema_of
from appliance.config.models import MODEL_CONFIGS
from appliance.engines.vllm.schema import write_or_check


def files() -> Mapping[str, str]:
    """The text of each schema file, by its name: the whole config's, and one for each model class."""
    schemas = [schema_of(None), *(schema_of(name) for name in MODEL_CONFIGS)]
    return {schema["$id"]: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for schema in schemas}


if __name__ == "__main__":
    sys.exit(write_or_check(files(), sys.argv[1:]))
