"""gRPC beside HTTP in the process that people run: started, drained and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from server_process import free_port, wait_until

from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

PROGRAM = Path(__file__).parent.parent / "inference_doubles.py"


class Program:
    """The doubles as a process, with `workers` of them."""

    def __init__(self, log: Path, workers: int) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        ports = [f"port={self.port}", f"grpc_port={self.grpc_port}"]
        words = [*ports, f"workers={workers}", "host=127.0.0.1", "drain_delay_seconds=0"]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen([sys.executable, PROGRAM, *words], stdout=output, stderr=output)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")

    def is_serving(self) -> bool:
        """Whether gRPC's health service says so."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            stub: Any = HealthStub(self.channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def ask(self, text: str) -> Any:
        """An inference under way."""
        raw = len(text).to_bytes(4, "little") + text.encode()
        tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1]}
        request = pb.ModelInferRequest(model_name="writer", inputs=[tensor], raw_input_contents=[raw])
        stub: Any = GRPCInferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]  # generated
        return stub.ModelInfer.future(request, timeout=30)


@pytest.fixture(params=[1, 2])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """Alone, and as two workers on one port."""
    program = Program(tmp_path / "log", request.param)
    yield program
    program.channel.close()
    if program.process.poll() is None:
        program.process.kill()
        program.process.wait(30)


def test_grpc_starts_and_stops_with_the_server(program: Program) -> None:
    """It says when it is ready, answers, and leaves with exit code 0 after a drain."""
    wait_until(program.is_serving, 30, program.log.read_text)

    answer = program.ask("a").result()
    os.kill(program.process.pid, signal.SIGTERM)

    assert answer.raw_output_contents[0] == b"\x01\x00\x00\x00A"
    assert program.process.wait(30) == 0, program.log.read_text()


def test_taken_port_is_an_error(tmp_path: Path) -> None:
    """Exit code 1, and which port it is."""
    port = free_port()
    words = [f"port={free_port()}", f"grpc_port={port}", "host=127.0.0.1"]
    server = grpc.server(None, options=[("grpc.so_reuseport", 0)])  # type: ignore[arg-type]  # it serves nobody
    server.add_insecure_port(f"127.0.0.1:{port}")

    done = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, timeout=60)
    server.stop(None)

    assert done.returncode == 1
    assert f"port {port}" in done.stdout + done.stderr
