"""The table of routes: path, methods, and whether a key is asked for."""

from __future__ import annotations

import re

from contract.golden import Golden
from contract.server import Server


def test_routes_keep_their_paths_methods_and_keys(keyed_server: Server, open_server: Server, golden: Golden) -> None:
    """Each path that the server lists; `Allow` of a refusal says which methods it takes."""
    paths = open_server.answer("GET", "/")["body"]["routes"]
    documented = open_server.answer("GET", "/schema/openapi.json")["body"]["paths"]
    lines = []
    for path in sorted({*paths, *documented}):
        filled = re.sub(r"\{[^}]*\}", "echo", path)
        allowed = open_server.answer("PATCH", filled)["headers"]["allow"]
        for method in sorted({*re.findall(r"\w+", allowed)} - {"OPTIONS"}):
            status = keyed_server.answer(method, filled)["status"]
            key = "key" if status == 401 else "open"
            operation = documented.get(path, {}).get(method.lower())
            lines.append(f"{method:6} {path} {key}{'' if operation is None else ' documented'}")

    golden.check("routes.txt", "\n".join(lines))
