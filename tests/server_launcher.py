"""Starts processes under test as forks of one that has imported the appliance, and vLLM where a model needs it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from appliance.config.layout import LayoutConfig
from appliance.engines.vllm.env import CpuProfile

# linux/prctl.h
_PR_SET_PDEATHSIG = 1

# pytest's own, and the one that a forked server applies itself.
_HARMLESS = {"PYTEST_CURRENT_TEST", "PYTHONPATH"}

# What imports without vLLM depend on.
_LOADER = ("LD_", "PYTHON")

COMMAND = str(Path(sys.executable).with_name("appliance"))
_COMMAND_SECONDS = 120

# Standard output and error may be one file.
_TO_LOG = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_ENGINE = re.compile(r"class\"?: *\"?(generative|encoder)\b")
_PYTHON = re.compile(r"\bpython\"?:")


class ForkedProcess:
    """A process that the launcher forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, request: Mapping[str, Any]) -> None:  # Any: JSON values
        self._connection = connection
        self._received = b""
        self._lock = threading.Lock()
        self.returncode: int | None = None
        connection.sendall(json.dumps(request).encode() + b"\n")
        first = self._line(None)
        assert first is not None, "the launcher died"
        self.pid: int = json.loads(first)

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self._exit_code(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("appliance", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _exit_code(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and (line := self._line(timeout)) is not None:
                self.returncode = json.loads(line)
                self._connection.close()
            return self.returncode

    def _line(self, timeout: float | None) -> bytes | None:
        """The launcher's next line; None when it does not come in time."""
        ends = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._received:
            left = None if ends is None else max(0, ends - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            piece = self._connection.recv(4096)
            assert piece, "the launcher died"
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line


def launch(
    file: Path, arguments: Sequence[str], log: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> ForkedProcess | None:
    """Start `appliance` with the arguments, its output in `log`, for the config `file`.

    None where the launcher's imports may depend on a variable that has changed since this module was imported; those
    of vLLM may depend on any, and a start without them takes many times as long, which a test must want.
    `variables` are added to the environment; no import may depend on them.
    """
    try:
        text = file.read_text()
    except OSError:
        # The server says what is wrong with it.
        return None
    with_engine = bool(_ENGINE.search(text)) and not _PYTHON.search(text)
    if changed := _changed(os.environ, with_engine=with_engine):
        assert not with_engine, f"set variables of the environment with `variables`, or start cold: {changed}"
        return None
    return _launcher(with_engine).launch(arguments, log, log, Path.cwd(), {**os.environ, **variables})


def run_appliance(
    *words: object, folder: Path | None = None, variables: Mapping[str, str] | None = None, is_cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `appliance` with the words to its end; `variables` are its whole environment.

    It is forked, unless it `is_cold` or its imports may depend on the variables.
    """
    arguments = [str(word) for word in words]
    environment, place = os.environ if variables is None else variables, folder or Path.cwd()
    if is_cold or _changed(environment, with_engine=False):
        command = [COMMAND, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS, env=environment, cwd=place
        )
    with tempfile.TemporaryDirectory(prefix="command-") as outputs:
        out, err = Path(outputs, "stdout"), Path(outputs, "stderr")
        process = _launcher(False).launch(arguments, out, err, place, environment, is_script=True)
        try:
            code = process.wait(_COMMAND_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(["appliance", *arguments], code, out.read_text(), err.read_text())


def _changed(environment: Mapping[str, str], *, with_engine: bool) -> list[str]:
    """The names of variables with other values than at the first import that the launcher's imports may depend on."""
    names = (environment.keys() | _FIRST.keys()) - _HARMLESS
    changed = (name for name in names if environment.get(name) != _FIRST.get(name))
    return [name for name in changed if with_engine or name.startswith(_LOADER)]


_FIRST = {name: value for name, value in os.environ.items() if name not in _HARMLESS}


class _Launcher:
    """A handle of the process that imports and forks; that process ends with this one."""

    def __init__(self, with_engine: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="launcher-")
        self._address = f"{self._folder.name}/socket"
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._address, str(int(with_engine))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # Engines compute with the libraries that they are usually born with.
                env=_FIRST | dict(CpuProfile.of(LayoutConfig()).environment if with_engine else {}),
            )
        atexit.register(self._end)
        assert self._ours.recv(1) == b"+", "the launcher did not start"

    def _end(self) -> None:
        self._ours.close()
        # What it has forked dies with it; its own end as Python ends would take seconds.
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def launch(
        self,
        arguments: Sequence[str],
        out: Path,
        err: Path,
        folder: Path,
        environment: Mapping[str, str],
        *,
        is_script: bool = False,
    ) -> ForkedProcess:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        words = {"arguments": arguments, "environment": {**environment}, "is_script": is_script}
        return ForkedProcess(connection, {**words, "folder": str(folder), "out": str(out), "err": str(err)})


@functools.cache
def _launcher(with_engine: bool) -> _Launcher:
    return _Launcher(with_engine)


class _Program:
    """The process that imports and forks; it has one thread, so that it can fork."""

    def __init__(self, control: socket.socket, address: str, *, with_engine: bool) -> None:
        self._control = control
        self._with_engine = with_engine
        _import(with_engine=with_engine)
        # Forks share what is never collected.
        gc.collect()
        gc.freeze()
        # Threads of OpenBLAS are there too, which knows about forks.
        assert threading.active_count() == 1, f"no process to fork: {threading.enumerate()}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._clients: dict[int, tuple[int, socket.socket]] = {}
        """Process id and connection by the descriptor of the process."""

    def run(self) -> None:
        """Fork a server for each connection and write its exit code there, until the tests have ended."""
        self._control.send(b"+")
        while True:
            control, listener = self._control.fileno(), self._listener.fileno()
            ready, _, _ = select.select([control, listener, *self._clients], [], [])
            if control in ready:
                return
            if listener in ready:
                self._fork()
            for descriptor in set(ready) & set(self._clients):
                self._report(descriptor)

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline())
        pid = os.fork()
        if pid == 0:
            _serve(request, with_engine=self._with_engine)
        connection.sendall(f"{pid}\n".encode())
        self._clients[os.pidfd_open(pid)] = pid, connection

    def _report(self, descriptor: int) -> None:
        pid, connection = self._clients.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with connection, contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _import(*, with_engine: bool) -> None:
    import appliance.cli.main
    import appliance.cli.serve
    import appliance.server  # noqa: F401 - as the others: for its time

    if not with_engine:
        return
    from appliance.engines.vllm.engine import import_vllm
    from appliance.engines.vllm.env import set_environment

    before = dict(os.environ)
    set_environment(LayoutConfig())
    import_vllm()
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401 - likewise

    os.environ.clear()
    os.environ.update(before)


def _serve(request: Mapping[str, Any], *, with_engine: bool) -> None:  # Any: JSON values
    """Run what ``python -m appliance`` or the script `appliance` runs, and end the process."""
    places = (os.devnull, os.O_RDONLY), (request["out"], _TO_LOG), (request["err"], _TO_LOG)
    for number, (path, flags) in enumerate(places):
        os.dup2(os.open(path, flags, 0o644), number)
    os.closerange(3, 1024)
    _die_with_parent()
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["folder"])
    # As Python does for -m: the working directory, PYTHONPATH, the rest.
    added = [str(Path(each).absolute()) for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:0] = [request["folder"], *added]
    if with_engine:
        _ForkServers()
    sys.argv = ["appliance", *request["arguments"]]
    code = 1
    try:
        if request["is_script"]:
            from appliance.cli.main import main

            main()
        runpy.run_module("appliance", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _ForkServers:
    """Replaces the start of multiprocessing's fork server by a fork of this process, which has imported vLLM.

    The fork is made while there is one thread, and waits for its orders. Each worker has its own, which ends with it.
    """

    def __init__(self) -> None:
        from multiprocessing import util

        self._start_new = util.spawnv_passfds
        util.spawnv_passfds = self._start
        self._server = os.getpid()
        self._fork()
        os.register_at_fork(after_in_child=self._renew)

    def _fork(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._orders.close()
            _die_with_parent()
            # The parent of workers waits for signals itself.
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            _become_fork_server(theirs)
        theirs.close()

    def _renew(self) -> None:
        if os.getppid() == self._server:
            self._orders.close()
            self._fork()

    # Any: as typeshed has it.
    def _start(self, path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
        is_used = self._orders.fileno() < 0
        if is_used or "multiprocessing.forkserver" not in args[-1]:
            return self._start_new(path, args, passfds)
        message = json.dumps({"code": args[-1], "environment": dict(os.environ)}).encode()
        socket.send_fds(self._orders, [message], list(passfds))
        self._orders.close()
        return self._pid


def _become_fork_server(orders: socket.socket) -> None:
    try:
        message, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 2)
        orders.close()
        if message:
            order = json.loads(message)
            os.environ.clear()
            os.environ.update(order["environment"])
            # The numbers are those of the process that sent them.
            code = re.sub(r"main\(\d+, \d+", "main({}, {}".format(*descriptors), order["code"])
            exec(code, {})
    except SystemExit:
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    # Its folder holds modules of the tests, which a server does not see.
    sys.path.pop(0)
    _Program(socket.socket(fileno=os.dup(0)), sys.argv[1], with_engine=sys.argv[2] == "1").run()
