"""Run a command beside scripted upstreams, as examples that forward want them.

``python tests/with_upstreams.py appliance smoke examples/proxy.yaml`` starts them on free ports, tells the command
where they are, and ends with its exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from example_files import VARIABLES
from services import install
from upstreams import Upstream


@contextmanager
def example_upstreams() -> Iterator[dict[str, str]]:
    """The upstreams of examples, and the variables that say where they are."""
    with Upstream() as one, Upstream() as two, Upstream() as service:
        install(service)
        urls = {
            "UPSTREAM_URL": one.url,
            "UPSTREAM_URL_2": two.url,
            "SERVICE_URL": service.origin,
            "RESERVE_URL": two.url,
        }
        yield {**VARIABLES, **urls}


def main(command: Sequence[str]) -> int:
    """The exit code of the command."""
    with example_upstreams() as variables:
        return subprocess.run(command, check=False, env={**os.environ, **variables}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
