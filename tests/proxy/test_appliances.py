"""Appliances behind an appliance: any of them may stop, and no client notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
import pytest
from server_process import ServerProcess, wait_until
from upstreams import Asked, Upstream, sse, stream

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
BODY = {"model": "front", "messages": [{"role": "user", "content": "one two three"}]}


def _config(file: Path, *urls: str) -> Path:
    """Return the config of a proxy with the same model name everywhere."""
    upstreams = ", ".join(f"{{url: '{url}'}}" for url in urls)
    file.write_text(f"models: [{{name: front, class: proxy, balance: round_robin, upstreams: [{upstreams}]}}]\n")
    return file


@pytest.fixture
def chain(serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path) -> tuple[ServerProcess, ...]:
    """One appliance in front of three others, and those in front of one upstream."""
    back = _config(tmp_path / "back.yaml", upstream.url)
    # The delay in which a server tells its clients to connect elsewhere; by default it is longer.
    others = [serve("server.drain_delay_seconds=0.5", file=back) for _ in range(3)]
    for server in others:
        server.wait_until_ready(60)
    front = serve(file=_config(tmp_path / "front.yaml", *(server.url for server in others)))
    return front.wait_until_ready(60), *others


class _Traffic:
    """Sends one request after the other, with and without streaming, until it is stopped."""

    def __init__(self, server: ServerProcess) -> None:
        self.answers: list[tuple[int, bool]] = []
        self._url = server.url + CHAT
        self._over = threading.Event()
        self.between_calls = threading.Lock()
        """Whoever holds it holds the next call up."""
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._over.is_set():
                is_stream = len(self.answers) % 2 == 1
                with self.between_calls:
                    response = client.post(self._url, json={**BODY, "stream": is_stream})
                is_whole = "[DONE]" in response.text if is_stream else "three" in response.text
                self.answers.append((response.status_code, is_whole))
                # A lock is not fair: whoever waits for it wants a moment.
                time.sleep(0.002)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def wait_for_more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= goal or not self._thread.is_alive(), 30)


def test_clients_do_not_notice_stopped_appliances(chain: tuple[ServerProcess, ...]) -> None:
    """One drains, another is killed, and the third one answers."""
    front, stopped, killed, _ = chain
    with _Traffic(front) as traffic:
        traffic.wait_for_more(60)
        stopped.process.terminate()
        traffic.wait_for_more(60)
        # What is under way at that moment is broken for good; between two calls there is nothing.
        with traffic.between_calls:
            killed.process.kill()
            killed.process.wait(15)
        traffic.wait_for_more(60)

    assert stopped.process.wait(15) == 0
    assert set(traffic.answers) == {(200, True)}
    assert front.get("/readyz")[0] == 200


def _word_by_word(asked: Asked) -> list[bytes | float]:
    return [piece for one in sse(asked) for piece in (0.2, one)]


def test_running_streams_end_completely_when_their_appliance_drains(
    chain: tuple[ServerProcess, ...], upstream: Upstream
) -> None:
    """A rolling restart interrupts no stream."""
    front, *others = chain
    upstream.on(CHAT, lambda asked: stream(*_word_by_word(asked)))
    received: list[str] = []

    def ask() -> None:
        received.append(httpx.post(front.url + CHAT, json={**BODY, "stream": True}, timeout=30).text)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(upstream.calls) == 4, 10)
    codes = [server.stop() for server in others]
    for thread in threads:
        thread.join()

    assert codes == [0, 0, 0]
    assert len(received) == 4
    assert all("[DONE]" in each and "three" in each and '"error"' not in each for each in received)
