"""Which hub is asked and with which token, as huggingface_hub would choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from appliance.config.credentials import CredentialsConfig, HubCredentials, block_for, value_of
from appliance.core.errors import StorageError
from appliance.core.uri import redact
from appliance.storage.filesystems.http_client import without_user
from appliance.storage.filesystems.http_errors import AccessHint

_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubAuth:
    """The address of a hub and what it wants to see."""

    endpoint: URL
    credential: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def access(self) -> AccessHint:
        """As whom we ask, and what to do where that is not enough."""
        return AccessHint(self.credential, "set HF_TOKEN to a valid token that may read the model")


def access_to(owner: str, config: CredentialsConfig, environ: Mapping[str, str]) -> HubAuth:
    """The config's token and endpoint for an owner's models, or those of the user's variables and files."""
    block = block_for(config.hf, "owner", owner) or HubCredentials()
    address = block.endpoint_url or environ.get("HF_ENDPOINT") or _ENDPOINT
    endpoint, login = without_user(URL(address.rstrip("/")))
    if endpoint.scheme not in ("http", "https") or not endpoint.host:
        raise StorageError(f"HF_ENDPOINT is {redact(address)!r}, which is no web address; write https://HOST")
    if token := value_of(block.token):
        return HubAuth(endpoint, "token of storage.credentials.hf", _bearer(token))
    credential, token = _token(environ)
    if token:
        return HubAuth(endpoint, credential, _bearer(token))
    return HubAuth(endpoint, "the user in HF_ENDPOINT" if login else "anonymous", login)


def _bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _token(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables"""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return name, token
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "anonymous", None
    try:
        return "the token of hf auth login", _token_file(environ).read_text().strip() or None
    except (OSError, ValueError, RuntimeError):
        return "anonymous", None


def _token_file(environ: Mapping[str, str]) -> Path:
    if path := environ.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "token"
