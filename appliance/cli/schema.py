"""The command `schema`."""

from __future__ import annotations

import json

import click

from appliance.config import schema_of
from appliance.config.models import MODEL_CONFIGS


@click.command()
@click.argument("class_", metavar="[CLASS]", type=click.Choice(sorted(MODEL_CONFIGS)), required=False)
def schema(class_: str | None) -> None:
    """Print the JSON Schema of the whole file, or of one model CLASS."""
    click.echo(json.dumps(schema_of(class_), indent=2))
