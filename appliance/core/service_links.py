"""Variables that Kubernetes sets in a container for each Service of its namespace, which nobody meant as settings.

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
    """
    Those of Services whose variables begin with `prefix`: of a Service `vllm`, `VLLM_PORT=tcp://10.0.0.1:8000` and all
    that comes with it.
    """
    ports = (name for name in environ if name.startswith(prefix) and name.endswith(_PORT))
    services = [name.removesuffix(_PORT) for name in ports if _ADDRESS.fullmatch(environ[name])]
    return frozenset(
        name
        for name in environ
        if any(name.startswith(each) and _REST.fullmatch(name.removeprefix(each)) for each in services)
    )


def addresses(environ: Mapping[str, str], prefix: str) -> frozenset[str]:
    """Those of them that are a URL, which is never what a setting of that name is."""
    return frozenset(name for name in service_links(environ, prefix) if _ADDRESS.fullmatch(environ[name]))
