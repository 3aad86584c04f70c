"""Bodies that are no requests: too large, no UTF-8, and almost right."""

from __future__ import annotations

import contextlib
import socket

import psutil
import pytest
from faults import wire
from faults.conftest import talks
from faults.ledger import FLAT_BYTES, Ledger
from faults.mutants import Mutant, mutants
from hypothesis import HealthCheck, given, settings
from server_process import ServerProcess

BAD = b"\xff\xfe\xc3("
GIB = 1 << 30
CHAT = b"/v1/chat/completions"

LARGE = [
    (b"POST", CHAT),
    (b"POST", b"/v2/models/doubling/infer"),
    (b"POST", b"/v1/models/doubling:predict"),
    (b"POST", b"/no/such/route"),
    (b"GET", b"/livez"),
]


def _send_large(server: ServerProcess, method: bytes, path: bytes, *, is_chunked: bool) -> tuple[int, int]:
    """
    Status of a request with a body of 1 GiB, and the most memory it took; 0 where the connection was closed first.
    """
    process, peak = psutil.Process(server.process.pid), 0
    size = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % GIB
    piece = b" " * (1 << 20)
    sent = b"100000\r\n" + piece + b"\r\n" if is_chunked else piece
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + size + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(GIB // len(piece)):
                connection.sendall(sent)
                if number % 64 == 0:
                    peak = max(peak, process.memory_info().rss)
            connection.sendall(b"0\r\n\r\n" if is_chunked else b"")
        try:
            return wire.answer(connection)[0], peak
        except OSError:
            return 0, peak


def _large(path: bytes, *, is_chunked: bool) -> str:
    return f"1 GiB body, {'chunked' if is_chunked else 'length said'}: {path.decode()}"


@pytest.mark.faults
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("method", "path"), LARGE, ids=[path.decode() for _, path in LARGE])
def test_a_gibibyte_is_refused_unread(
    sound: ServerProcess, ledger: Ledger, method: bytes, path: bytes, is_chunked: bool
) -> None:
    """Whether its length is said or not, it is refused, and never lies in memory."""
    with ledger.survived(_large(path, is_chunked=is_chunked), sound, talks) as row:
        status, peak = _send_large(sound, method, path, is_chunked=is_chunked)
        row.happened = f"{status or 'connection closed'}, peak {peak >> 20} MiB"

    assert row.before is not None
    assert status in {0, 200, 404, 413}
    assert status in {0, 413} or path not in {each for verb, each in LARGE[:3]}
    assert peak < row.before.rss_bytes + FLAT_BYTES


UNREADABLE = [
    ("a key for an adapter", wire.post(b"/rerank", b'{"model":"tensors","' + BAD + b'":1,"documents":["a"]}')),
    ("a key for a proxy", wire.post(CHAT, b'{"model":"prompted","' + BAD + b'":1,"messages":[]}')),
    ("a role for a proxy", wire.post(CHAT, b'{"model":"prompted","messages":[{"role":"' + BAD + b'"}]}')),
    ("no role for a proxy", wire.post(CHAT, b'{"model":"prompted","messages":[{"role":[]}]}')),
    ("no message for a proxy", wire.post(CHAT, b'{"model":"prompted","messages":[1]}')),
    ("a text", wire.post(CHAT, b'{"model":"talker","messages":[{"role":"user","content":"' + BAD + b'"}]}')),
    ("the name of the model", wire.post(CHAT, b'{"model":"' + BAD + b'","messages":[]}')),
    ("a key", wire.post(CHAT, b'{"model":"talker","' + BAD + b'":1,"messages":[]}')),
    ("half a surrogate", wire.post(CHAT, b'{"model":"\\ud800","messages":[]}')),
    ("the path", wire.post(b"/v1/models/" + BAD + b":predict", b'{"instances":[1]}')),
    ("an escape in the path", wire.post(b"/v1/models/%FF%FE%C3:predict", b'{"instances":[1]}')),
    ("the path of a tensor model", wire.post(b"/v2/models/%FF%FE/infer", b'{"inputs":[]}')),
    ("the query", wire.post(CHAT + b"?a=%FF&" + BAD, b'{"model":"nobody"}')),
    ("a header", wire.post(CHAT, b'{"model":"nobody"}', {b"X-Team": BAD})),
    ("the request id", wire.post(CHAT, b'{"model":"nobody"}', {b"X-Request-Id": BAD})),
    ("the media type", wire.post(CHAT, b'{"model":"nobody"}', {b"Content-Type": BAD})),
    ("the authorization", wire.post(CHAT, b'{"model":"nobody"}', {b"Authorization": b"Bearer " + BAD})),
    ("the gateway's header", wire.post(CHAT, b'{"model":"nobody"}', {b"X-Gateway-Model-Name": BAD})),
    ("an event's header", wire.post(b"/v1/models/nobody:predict", b"{}", {b"Ce-Id": BAD, b"Ce-Type": BAD})),
    ("a tensor", wire.post(b"/v2/models/talker/infer", b'{"inputs":[{"name":"text_input","datatype":"BYTES",'
                           b'"shape":[1],"data":["' + BAD + b'"]}]}')),
    ("a form", wire.post(b"/v1/audio/transcriptions", b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
                         + BAD + b"\r\n--x--\r\n", {b"Content-Type": b"multipart/form-data; boundary=x"})),
    ("a form's boundary", wire.post(b"/v1/audio/transcriptions", b"--x--",
                                    {b"Content-Type": b"multipart/form-data; boundary=" + BAD})),
]  # fmt: skip


def test_what_is_no_utf_8_is_a_clients_error_wherever_it_is(sound: ServerProcess, ledger: Ledger) -> None:
    """
    In texts, names, keys, paths, queries, headers, tensors and forms: never a 500, and nothing of the kind in the log.
    """
    with ledger.survived("invalid UTF-8", sound, talks) as row:
        shown = {name: wire.exchange(sound.port, request) for name, request in UNREADABLE}
        row.happened = f"{len(shown)} places: " + ", ".join(sorted({str(status) for status, _ in shown.values()}))

    assert {name: said for name, said in shown.items() if said[0] >= 500} == {}


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.faults, pytest.mark.timeout(1200)])])
def test_no_body_breaks_a_route(sound: ServerProcess, ledger: Ledger, count: int) -> None:
    """Whatever a grammar makes of a request, it is answered, or refused in the protocol's own envelope."""
    statuses: dict[int, int] = {}

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutants())
    def ask(mutant: Mutant) -> None:
        request = wire.post(mutant.path.encode(), mutant.body, {**mutant.headers, b"Connection": b"close"})
        status, body = wire.exchange(sound.port, request)
        statuses[status] = statuses.get(status, 0) + 1
        assert status == 200 or wire.is_refusal(mutant.path, status, body), (status, body[:500])

    with ledger.survived(f"{count} malformed bodies", sound, talks) as row:
        ask()
        row.happened = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
