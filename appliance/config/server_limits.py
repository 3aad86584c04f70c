"""How a client may say what it wants: how deep, and how slowly."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance.config.base import BaseConfig
from appliance.config.limits import Seconds


class ServerLimitsConfig(BaseConfig):
    """What a request may look like, whatever model it is for."""

    json_depth: Annotated[int, Field(ge=8, le=500)] = 100
    """Most objects and lists within each other in a body; a deeper one is 400, before anything decodes it."""

    json_members: Annotated[int, Field(ge=16, le=10_000)] = 1000
    """Most members of a body's outermost object; one with more is 400. Objects within it are not counted."""

    form_parts: Annotated[int, Field(ge=8, le=1000)] = 100
    """Most fields and files of a form; one with more is 400. The header of each has 4 KiB a line, and eight lines."""


class ServerTimeoutsConfig(BaseConfig):
    """How long clients may take."""

    header_seconds: Seconds = 30
    """
    Until a client has sent the head of a request, in seconds; then its connection is closed, as is one that has been
    idle for so long. A connection on which nothing was ever sent is left open.
    """

    body_seconds: Seconds = 120
    """Until a client has sent the whole body of a request, in seconds; then it is 408."""

    send_seconds: Seconds = 60
    """
    Longest time for which a client may take nothing of an answer that is there for it, in seconds; then its request is
    ended, so that it does not hold a place in a model.
    """
