"""Writes the committed JSON Schemas of the config, or checks them: ``python -m appliance.config.write_schemas``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from appliance.config.json_schema import directory, schema_of
from appliance.config.models import MODEL_CONFIGS


def files() -> Mapping[str, str]:
    """The text of each schema file, by its name: the whole config's, and one for each model class."""
    schemas = [schema_of(None), *(schema_of(name) for name in MODEL_CONFIGS)]
    return {schema["$id"]: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for schema in schemas}


def write_or_check(texts: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Write each schema file, or with ``--check`` name those that are out of date; return the exit status."""
    paths = {directory() / name: text for name, text in texts.items()}
    if "--check" not in arguments:
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in paths.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path} is out of date; run: just schemas", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(write_or_check(files(), sys.argv[1:]))
