"""The digest of a config."""

from __future__ import annotations

from pathlib import Path

from appliance.config import load
from appliance.config.loader import digest

CHAT = Path(__file__).parents[2] / "examples" / "chat.yaml"
PROXY = "models: [{name: a, class: proxy, upstreams: [{url: http://u/, api_key: KEY}]}]\n"


def test_a_change_at_any_depth_is_another_digest() -> None:
    """Wherever the value came from."""
    plain, again = digest(load(CHAT).config), digest(load(CHAT).config)
    deeper = digest(load(CHAT, ["models.smollm2.engine.max_model_len=1024"]).config)

    assert plain == again
    assert plain != deeper


def test_the_digest_does_not_depend_on_secrets(tmp_path: Path) -> None:
    """Nothing can be learned of it from a metric."""
    made = []
    for key in ("one-key", "another-key"):
        file = tmp_path / f"{key}.yaml"
        file.write_text(PROXY.replace("KEY", key))
        made.append(digest(load(file).config))

    assert made[0] == made[1]
