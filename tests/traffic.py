"""Clients of many kinds that send requests without a pause, and record each incomplete response."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import openai
from server_process import wait_until

PATH = "/v1/chat/completions"
# Bounded: a real model may go on for minutes.
BODY = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 32}

Ask = Callable[[], str]
"""Sends one request and returns the text of the response; raises if there is none."""


class Traffic:
    """Two clients of each kind, without retries."""

    def __init__(self, port: int, end: str, kinds: tuple[str, ...] = ()) -> None:
        """`end` is the last word of each complete response."""
        self.answers: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []
        self._end = end
        self._url = f"http://127.0.0.1:{port}"
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(kind,)) for kind in kinds or tuple(KINDS) for _ in range(2)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Wait until each kind of client has got so many more answers, or one has failed."""
        goal = {kind: self.answers[kind] + count for kind in self.answers}
        wait_until(lambda: bool(self.failures) or all(self.answers[kind] >= goal[kind] for kind in goal), 120)

    def _run(self, kind: str) -> None:
        self.answers[kind] += 0
        with KINDS[kind](self._url) as ask:
            while not self._over.is_set():
                try:
                    text = ask()
                except Exception as error:
                    self.failures.append(f"{kind}: {type(error).__name__}: {error}")
                    continue
                self.answers[kind] += 1
                self.seen[text.split()[0]] += 1
                if not text.endswith(self._end):
                    self.failures.append(f"{kind}: broke off: {text}")


@contextmanager
def _openai(url: str) -> Iterator[Ask]:
    """OpenAI's client, whole answers, connections kept."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        def ask() -> str:
            answer = client.chat.completions.create(
                model="one", messages=[{"role": "user", "content": "hi"}], max_tokens=32
            )
            return answer.choices[0].message.content or ""

        yield ask


@contextmanager
def _openai_stream(url: str) -> Iterator[Ask]:
    """OpenAI's client, streams."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        def ask() -> str:
            chunks = client.chat.completions.create(
                model="one", messages=[{"role": "user", "content": "hi"}], max_tokens=32, stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

        yield ask


@contextmanager
def _kept(url: str) -> Iterator[Ask]:
    """The standard library's client: one connection, for as long as the server keeps it."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def ask() -> str:
        connection.request("POST", PATH, json.dumps(BODY), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            return _content(response.status, response.read())

    try:
        yield ask
    finally:
        connection.close()


@contextmanager
def _fresh(url: str) -> Iterator[Ask]:
    """A connection for each request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=60, limits=limits) as client:
        yield lambda: _posted(client)


@contextmanager
def _http2(url: str) -> Iterator[Ask]:
    """
    HTTP/2, one connection. Not httpx, whose h2 breaks off what is under way when a server says goodbye in two frames.

    Source: https://github.com/python-hyper/h2/issues/1199
    """
    command = ["node", str(Path(__file__).parent / "clients/http2.mjs"), url, PATH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        questions, answers = client.stdin, client.stdout
        assert questions is not None
        assert answers is not None

        def ask() -> str:
            print(json.dumps(BODY), file=questions, flush=True)
            answer = json.loads(answers.readline())
            return _content(answer["status"], answer["text"].encode())

        yield ask


def _posted(client: httpx.Client) -> str:
    response = client.post(PATH, json=BODY)
    return _content(response.status_code, response.content)


def _content(status: int, body: bytes) -> str:
    if status != 200:
        raise ConnectionError(f"{status} {body!r}")
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


KINDS = {"openai": _openai, "openai stream": _openai_stream, "kept": _kept, "fresh": _fresh}
"""The kinds of clients there are everywhere."""

if shutil.which("node") is not None:
    KINDS["http2"] = _http2
