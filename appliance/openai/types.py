"""OpenAI's requests, responses and errors as objects."""

from appliance.python_api.types import *  # noqa: F403 - exactly its __all__
