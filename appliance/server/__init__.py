"""The appliance as a web application, and the process that serves it."""

from appliance.server.app import create_app
from appliance.server.process import run, serve

__all__ = ["create_app", "run", "serve"]
