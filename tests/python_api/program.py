"""Programs of users, as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from openai import OpenAI
from server_process import ServerProcess, free_port

PROGRAMS = Path(__file__).parent / "programs"

# As if no engine were installed.
_RUN = """
import runpy, sys
sys.modules.update(vllm=None, torch=None, transformers=None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Program(ServerProcess):
    """A program on free ports of the loopback, its log in a file; it finds no engine."""

    def __init__(self, name: str, log: Path, *words: str) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.grpc_port = free_port()
        self.log = log
        self.started = time.monotonic()
        ports = [str(self.port), str(self.grpc_port)]
        command = [sys.executable, "-W", "error", "-c", _RUN, str(PROGRAMS / name), *ports, *words]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def client(self) -> OpenAI:
        """OpenAI's own client, pointed here."""
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=30)
