"""The command `key`."""

from __future__ import annotations

import secrets

import click

from appliance.config.security import digest_of

# 256 bits, as many as the SHA-256 that the file has of it.
_BYTES = 32


@click.command()
def key() -> None:
    """Make a random API key, and print it with its SHA-256.

    Give the key to the client, and put the SHA-256 into the file, under server.api_keys: the key cannot be computed
    from it.
    """
    secret, digest = new_key()
    click.echo(f"key:    {secret}\nsha256: {digest}")


def new_key() -> tuple[str, str]:
    """Return a random key and its SHA-256 in hexadecimal."""
    secret = f"sk-{secrets.token_urlsafe(_BYTES)}"
    return secret, digest_of(secret.encode())
