"""One file for each wire protocol: its wire types and its routes."""

PROTOCOL = "protocol"
"""Key of a handler's `opt`: the name of its protocol."""

PROBE = "is_probe"
"""Key of a handler's `opt`: whether platforms request it every few seconds, so that it is not logged and counted."""
