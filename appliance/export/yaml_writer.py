"""Documents of YAML with a comment at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from ruamel.yaml import YAML


def to_yaml(comment: str, documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as YAML, the comment's lines before them."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    for number, document in enumerate(documents):
        text.write("---\n" if number else "")
        yaml.dump(document, text)
    return "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines()) + text.getvalue()
