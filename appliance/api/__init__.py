"""One file for each wire protocol: its wire types and its routes.

What is wrong with a request, or with a model's response, is raised as a `RequestError` and rendered by the protocol.
"""

PROTOCOL = "protocol"
"""Key of a handler's `opt`: the name of its protocol."""

PROBE = "is_probe"
"""Key of a handler's `opt`: whether platforms request it every few seconds, so that it is not logged and counted."""
