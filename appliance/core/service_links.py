"""Environment variables that Kubernetes sets for each Service of a namespace, and that are no settings.

Source: https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
"""

from __future__ import annotations

import re
from collections.abc import Mapping

REMEDY = "Kubernetes sets them for a Service of this name; set enableServiceLinks: false in the pod"

_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)
_PORT = "_PORT"
_REST = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?")


def service_links(environ: Mapping[str, str], prefix: str) -> frozenset[str]:
    """The variables of Services that begin with `prefix`: `VLLM_PORT=tcp://10.0.0.1:8000` and the others of `vllm`."""
    ports = (name for name in environ if name.startswith(prefix) and name.endswith(_PORT))
    services = [name.removesuffix(_PORT) for name in ports if _ADDRESS.fullmatch(environ[name])]
    return frozenset(
        name
        for name in environ
        if any(name.startswith(each) and _REST.fullmatch(name.removeprefix(each)) for each in services)
    )


def addresses(environ: Mapping[str, str], prefix: str) -> frozenset[str]:
    """Those of these variables that are a URL, which no setting with such a name is."""
    return frozenset(name for name in service_links(environ, prefix) if _ADDRESS.fullmatch(environ[name]))
