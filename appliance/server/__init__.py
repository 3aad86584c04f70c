"""The HTTP server: the web application, and the process that serves it."""

from appliance.server.app import create_app
from appliance.server.process import serve

__all__ = ["create_app", "serve"]
