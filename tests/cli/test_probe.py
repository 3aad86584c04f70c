"""The command `probe`: it asks the server of a file where that listens, and says what it hears."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from faults.confined import require_root
from server_process import ServerProcess, free_port, wait_until

from appliance.cli.main import main

# Nobody listens there, so the model is unavailable: live, and not ready.
MODELS = "models: [{name: one, class: proxy, upstreams: [{url: 'http://127.0.0.1:9/v1'}]}]"


def _probe(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["probe", *words])
    return done.exit_code, done.output


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a config with a proxy and this section `server`; `TLS` in it is a certificate's."""
    leaf = trustme.CA().issue_cert("server.example")
    (tmp_path / "tls.crt").write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    (tmp_path / "tls.key").write_bytes(leaf.private_key_pem.bytes())

    def write(server: str) -> Path:
        file = tmp_path / "config.yaml"
        tls = f"certificate: {tmp_path}/tls.crt, key: {tmp_path}/tls.key"
        file.write_text(f"{MODELS}\nserver: {{{server.replace('TLS', tls)}}}\n")
        return file

    return write


def _start(file: Path, log: Path, host: str, port: int) -> ServerProcess:
    server = ServerProcess(file, log, f"server.host={host}", f"server.port={port}")
    wait_until(lambda: _probe("live", str(file))[0] == 0, 60, server.log_tail)
    return server


def test_a_server_with_a_certificate_on_all_addresses_is_asked(config: Callable[[str], Path], tmp_path: Path) -> None:
    """At the port of the file, whatever the certificate's name; what is wrong with each model is printed."""
    port = free_port()
    file = config(f"port: {port}, tls: {{TLS}}")
    server = _start(file, tmp_path / "log", "0.0.0.0", port)
    try:
        wait_until(lambda: "unavailable" in _probe("ready", str(file))[1], 60, server.log_tail)

        assert _probe("live", str(file)) == (0, "live\n")
        code, said = _probe("ready", str(file))
        assert (code, said.splitlines()[0]) == (1, "not ready")
        assert "one is unavailable: " in said
        assert _probe("live", str(file), "--set", "server.tls=")[0] == 1
    finally:
        server.stop()


def test_a_server_that_requires_client_certificates_is_asked_at_its_probe_port(
    config: Callable[[str], Path], tmp_path: Path
) -> None:
    """On IPv6 as well; without a probe port the probe says what to do."""
    port = free_port()
    model_config = f"host: '::1', port: {port}, tls: {{TLS, client_ca: {tmp_path}/tls.crt}}"
    file = config(f"{model_config}, probe_port: {free_port()}")
    server = _start(file, tmp_path / "log", "::1", port)
    server.stop()

    code, said = _probe("live", str(config(model_config)))
    assert code == 1
    assert "set server.probe_port" in said


def test_a_server_with_keys_tells_where_the_reasons_are(config: Callable[[str], Path], tmp_path: Path) -> None:
    """The probe has no key, and names are for those who have one."""
    port = free_port()
    file = config(f"host: 127.0.0.1, port: {port}, api_keys: [{{name: one, value: {'k' * 32}}}]")
    server = _start(file, tmp_path / "log", "127.0.0.1", port)
    try:
        code, said = _probe("ready", str(file))
    finally:
        server.stop()

    assert code == 1
    assert "The server's log has the reasons." in said


def test_a_server_that_does_not_answer_is_not_live(config: Callable[[str], Path]) -> None:
    """Where it was asked is said."""
    port = free_port()
    code, said = _probe("ready", str(config(f"port: {port}")))

    assert code == 1
    assert f"not ready: 127.0.0.1 port {port} does not answer: " in said


def test_a_wrong_file_exits_with_2(tmp_path: Path) -> None:
    """With the exit code of one, which is neither yes nor no."""
    assert _probe("live", str(tmp_path / "none.yaml"))[0] == 2


@pytest.mark.slow
def test_without_a_file_the_running_server_is_asked(config: Callable[[str], Path], tmp_path: Path) -> None:
    """
    As its command line, its environment and its directory have it, in a container of which this is the one server.
    """
    require_root("nsenter")
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    file = config(f"tls: {{TLS}}, probe_port: {free_port()}, workers: 2")
    server = ServerProcess(file, tmp_path / "log", prefix=alone)
    try:
        wait_until(lambda: any(each["event"] == "server.started" for each in server.events()), 60, server.log_tail)
        first = server.descendants()[0].pid
        inside = [shutil.which("nsenter") or "", "--target", str(first), "--pid", "--mount", sys.executable]
        done = subprocess.run(
            [*inside, "-m", "appliance", "probe"], capture_output=True, text=True, check=False, timeout=120
        )

        assert (done.returncode, done.stdout) == (0, "live\n"), done.stderr
    finally:
        server.process.kill()
        server.process.wait(30)
