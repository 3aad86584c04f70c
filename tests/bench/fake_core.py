"""An engine core that computes nothing: a token for each request at each step, over vLLM's own wire.

``python -m bench.fake_core --input ipc:///tmp/in --output ipc:///tmp/out --words tokenizer.json --step 0.02``; several
front ends have addresses with a number, as `client_addresses` says.

A front end of vLLM's classes that was told these addresses takes it for a real one. It is done with a prompt at once,
gives the first token then and the others one a step, and each is one word that begins with a space, so that a client
can count them. It imports nothing of vLLM or of ours: what it costs is what is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

# What may come on the wire (vllm.v1.engine.EngineCoreRequestType).
_ADD, _ABORT, _UTILITY = b"\0", b"\1", b"\3"

# Where a request has what (vllm.v1.engine.EngineCoreRequest), and how long an answer is unless it says.
_ID, _SAMPLING, _TOKENS = 0, 3, 16

# Why an answer ends: it is as long as it may be (vllm.v1.engine.FinishReason).
_LENGTH = 1

# Moments that an engine tells of a request: it came, and was begun (vllm.v1.engine.EngineCoreEventType).
_QUEUED, _SCHEDULED = 1, 2

# After a pause nobody gets the steps that were missed, but for these.
_MOST_STEPS_LATE = 5

# How the tokenizers of this kind write a space.
_WORD = re.compile("Ġ[a-z]+")


@dataclass(slots=True)
class Request:
    """One that is answered: its id, and how many tokens are still to come."""

    id: str
    left: int


def client_addresses(sending: str, receiving: str, number: int) -> tuple[str, str]:
    """The addresses of one of several front ends, from those of the first."""
    return (sending, receiving) if number == 0 else (f"{sending}{number}", f"{receiving}{number}")


class _Client:
    """A front end: its sockets, and its requests that are being answered, by their ids."""

    def __init__(self, sending: str, receiving: str) -> None:
        self.requests: dict[str, Request] = {}
        self.input: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.input.setsockopt(zmq.IDENTITY, (0).to_bytes(2, "little"))
        self.output: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        pairs: Sequence[tuple[zmq.Socket[bytes], str]] = ((self.input, sending), (self.output, receiving))
        for socket, address in pairs:
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(address)


class FakeCore:
    """An engine core on two sockets for each front end, and what is answered to each."""

    def __init__(
        self, addresses: Sequence[tuple[str, str]], words: Sequence[int], step_seconds: float, length: int
    ) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ext_hook=lambda _code, _data: None).decode
        self._words: Iterator[int] = itertools.cycle(words)
        self._step_seconds = step_seconds
        self._clients = [_Client(*pair) for pair in addresses]
        self._poller = zmq.Poller()
        for client in self._clients:
            self._poller.register(client.input, zmq.POLLIN)
            client.input.send(self._encode({**_READY, "max_model_len": length}))

    def run(self) -> None:
        """Answer until somebody ends the process."""
        due = time.monotonic()
        while True:
            if not any(client.requests for client in self._clients):
                self._poller.poll()
                due = time.monotonic() + self._step_seconds
            if self._poller.poll(max(0, int((due - time.monotonic()) * 1000))):
                for client in self._clients:
                    self._take(client)
            now = time.monotonic()
            if now >= due:
                due = max(due + self._step_seconds, now - _MOST_STEPS_LATE * self._step_seconds)
                for client in self._clients:
                    self._give(client, list(client.requests.values()))

    def _take(self, client: _Client) -> None:
        """
        All that has come; those that begin get their first token together, as those do that are prefilled together.
        """
        begun = []
        while client.input.poll(0):
            kind, *frames = client.input.recv_multipart()
            if kind == _ADD:
                begun.append(self._begin(client, self._decode(frames[0])))
            elif kind == _ABORT:
                for name in self._decode(frames[0]):
                    client.requests.pop(name, None)
            elif kind == _UTILITY:
                self._reply(client, *self._decode(frames[0])[1:3])
        self._give(client, begun, events=(_QUEUED, _SCHEDULED))

    def _begin(self, client: _Client, wire: Sequence[Any]) -> Request:  # Any: vLLM's request, as an array
        request = Request(wire[_ID], (wire[_SAMPLING] or {}).get("max_tokens", _TOKENS))
        client.requests[request.id] = request
        return request

    def _give(self, client: _Client, requests: Sequence[Request], events: Sequence[int] = ()) -> None:
        """A token for each of them, and what happened to it now."""
        now = time.monotonic()
        told = [{"type": kind, "timestamp": now} for kind in events] or None
        outputs, done = [], []
        for request in requests:
            request.left -= 1
            if request.left <= 0:
                del client.requests[request.id]
                done.append(request.id)
            reason = None if request.left > 0 else _LENGTH
            output = [request.id, [next(self._words)], None, None, None, reason, None, told]
            outputs.append(output if told or reason else output[:2])
        if outputs:
            self._send(client, outputs, done)

    def _reply(self, client: _Client, call: int, method: str) -> None:
        # One rank, which knows nothing of weights.
        results = {"get_supported_tasks": ["generate"], "collective_rpc": [None]}
        self._send(
            client, [], [], [call, None, [None, results.get(method, False if method.startswith("is_") else None)]]
        )

    def _send(
        self, client: _Client, outputs: Sequence[object], done: Sequence[str], utility: Sequence[object] | None = None
    ) -> None:
        # vllm.v1.engine.EngineCoreOutputs
        client.output.send(self._encode([0, outputs, None, time.monotonic(), utility, done or None]))


# What vLLM wants to hear before it is ready (vllm.v1.engine.EngineCoreReadyResponse).
_READY = {
    "num_gpu_blocks": 100_000,
    "block_size": 16,
    "dp_stats_address": None,
    "dtype": "bfloat16",
    "vllm_version": "fake",
    "world_size": 1,
    "data_parallel_size": 1,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "data_parallel_rank": 0,
    "max_num_seqs": 2048,
    "max_num_batched_tokens": 2048,
    "instance_id": "fake",
    "supports_lora": False,
    "max_loras": 0,
}


def words_of(tokenizer: Path) -> list[int]:
    """The tokens that are one word and the space before it."""
    vocabulary: dict[str, int] = json.loads(tokenizer.read_text())["model"]["vocab"]
    return [number for text, number in vocabulary.items() if _WORD.fullmatch(text)]


def main() -> None:
    """Be one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--words", type=Path, required=True, help="the model's tokenizer.json")
    parser.add_argument("--step", type=float, required=True, help="seconds")
    parser.add_argument("--length", type=int, default=2048, help="most tokens of a prompt and its answer")
    parser.add_argument("--clients", type=int, default=1, help="front ends")
    given = parser.parse_args()
    addresses = [client_addresses(given.input, given.output, number) for number in range(given.clients)]
    FakeCore(addresses, words_of(given.words), given.step, given.length).run()


if __name__ == "__main__":
    main()
