"""The command `bench`: measures a running server with one and with many clients at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import click

from appliance.cli.remote import RemoteError, RemoteServer, api_key_option, connected, refusal, url_argument
from appliance.core.model import OPENAI_PATHS, Operation
from appliance.core.sse import DONE, EventReader

# The operations that can be measured, the first one that a model has.
_MEASURED = (Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.EMBEDDING)

_WORDS = ("sea", "ship", "wind", "harbour", "light", "rope", "captain", "island", "storm", "morning")

_PERCENTILES = (50, 90, 99)

# Longer than any answer should take.
_ANSWER_SECONDS = 600.0

_MAX_EVENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a measurement."""

    model: str
    operation: Operation
    input_tokens: int
    output_tokens: int
    has_fixed_length: bool = True
    """The server takes vLLM's `ignore_eos`, by which every answer has all its tokens."""

    def body(self) -> dict[str, Any]:  # Any: JSON
        """A request; its prompt begins unlike all others, so that no cache has it."""
        words = [str(random.randrange(10**6)), *random.choices(_WORDS, k=max(1, self.input_tokens - 6))]  # noqa: S311 - no secret
        text = " ".join(words)
        if self.operation is Operation.EMBEDDING:
            return {"model": self.model, "input": text}
        is_chat = self.operation is Operation.CHAT_COMPLETION
        prompt = {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
        fixed = {"ignore_eos": True} if self.has_fixed_length else {}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "max_tokens": self.output_tokens, **prompt, **fixed, **streamed}


@dataclass(slots=True)
class Answer:
    """What was measured of one request, in seconds since it was sent."""

    first: float = 0.0
    last: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def per_token(self) -> float | None:
        """Seconds of each token after the first; None for an answer that has no second one."""
        return (self.last - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(slots=True)
class Run:
    """A measurement with so many clients, each of which sends its next request when the last one is answered."""

    streams: int
    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """The figures; seconds are percentiles over the requests."""
        return {
            "streams": self.streams,
            "seconds": round(self.seconds, 3),
            "requests": len(self.answers),
            "errors": dict(self.errors),
            "requests_per_second": round(len(self.answers) / self.seconds, 3),
            "input_tokens_per_second": round(sum(each.input_tokens for each in self.answers) / self.seconds, 1),
            "output_tokens_per_second": round(sum(each.output_tokens for each in self.answers) / self.seconds, 1),
            "first_token_seconds": percentiles([each.first for each in self.answers]),
            "per_token_seconds": percentiles([each.per_token for each in self.answers if each.per_token is not None]),
            "request_seconds": percentiles([each.last for each in self.answers]),
        }


@click.command()
@url_argument
@click.option("--model", help="The model to measure; by default the first one that generates or embeds.")
@click.option(
    "--streams",
    type=click.IntRange(1, 10_000),
    multiple=True,
    default=(1, 16, 64),
    show_default=True,
    help="Clients at once; may be given several times.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=10,
    show_default=True,
    help="How long each number of clients sends requests.",
)
@click.option(
    "--input-tokens", type=click.IntRange(1), default=128, show_default=True, help="Length of prompts, about."
)
@click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True, help="Length of answers.")
@api_key_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    url: str,
    model: str | None,
    streams: Sequence[int],
    seconds: float,
    input_tokens: int,
    output_tokens: int,
    api_key: str | None,
    is_json: bool,
) -> None:
    """Measure a running server at URL.

    It is sent requests by 1, 16 and 64 clients at once: time to the first token, time of each further token, and
    throughput. The default URL is http://localhost:8080; any server with OpenAI's protocol can be measured. Measure
    from another machine than the server's, or both share its processors.
    """
    measured = asyncio.run(_measure(url, api_key, model, streams, seconds, (input_tokens, output_tokens)))
    click.echo(json.dumps(measured, indent=2) if is_json else as_table(measured))


async def _measure(
    url: str, api_key: str | None, model: str | None, streams: Sequence[int], seconds: float, tokens: tuple[int, int]
) -> dict[str, Any]:  # Any: JSON
    async with connected(url, api_key) as server:
        load = await choose(server, model, *tokens)
        runs = []
        for count in streams:
            click.echo(f"{load.model}: {count} client{'s' if count > 1 else ''} for {seconds:g} s", err=True)
            runs.append(await measure(server, load, count, seconds))
    about = {"url": server.url, "model": load.model, "operation": load.operation}
    lengths = {"input_tokens": load.input_tokens, "output_tokens": load.output_tokens}
    return {**about, **lengths, "runs": [run.as_json() for run in runs]}


async def choose(server: RemoteServer, name: str | None, input_tokens: int, output_tokens: int) -> Load:
    """The load for a model of the server, once it has answered a first request.

    Raises:
        RemoteError: the server has no such model, or does not answer.
    """
    models = await server.models()
    names = [str(each.get("id")) for each in models]
    # Other servers do not list operations; most have chats.
    offered = {str(each.get("id")): each.get("operations", [Operation.CHAT_COMPLETION]) for each in models}
    measurable = {each: next((one for one in _MEASURED if one in offered[each]), None) for each in names}
    name = name or next((each for each, operation in measurable.items() if operation), None)
    if name is None:
        raise RemoteError(f"{server.url} has no model that generates or embeds; its models are {', '.join(names)}")
    operation = measurable.get(name)
    if name not in names:
        raise RemoteError(f"{server.url} has no model {name!r}; its models are {', '.join(names) or 'none'}")
    if operation is None:
        raise RemoteError(f"the model {name!r} neither generates nor embeds; bench measures nothing else")
    load = Load(name, operation, input_tokens, output_tokens)
    try:
        await ask(server, load)
    except RemoteError:
        # Only vLLM knows `ignore_eos`.
        load = Load(name, operation, input_tokens, output_tokens, has_fixed_length=False)
        await ask(server, load)
    return load


async def measure(server: RemoteServer, load: Load, streams: int, seconds: float) -> Run:
    """Send requests by so many clients for so long; those that are running at the end are waited for.

    Raises:
        RemoteError: no request had an answer.
    """
    run, began = Run(streams), time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - began < seconds:
            try:
                run.answers.append(await ask(server, load))
            except RemoteError as error:
                run.errors[str(error)] += 1
                # A server that refuses at once is not to be flooded.
                await asyncio.sleep(0.1)

    await asyncio.gather(*(client() for _ in range(streams)))
    run.seconds = time.perf_counter() - began
    if not run.answers:
        message, count = run.errors.most_common(1)[0]
        raise RemoteError(f"none of {run.errors.total()} requests was answered; {count} times: {message}")
    return run


async def ask(server: RemoteServer, load: Load) -> Answer:
    """Send one request, and read its answer.

    Raises:
        RemoteError: there is none, or it is an error.
    """
    path, answer, began = OPENAI_PATHS[load.operation][0], Answer(), time.perf_counter()
    usage: Mapping[str, Any] = {}  # Any: JSON
    pieces = 0
    try:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        async with server.session.post(path.removeprefix("/"), json=load.body(), timeout=timeout) as response:
            if response.status != 200:
                raise RemoteError(f"{server.url}{path} {refusal(response.status, await response.text())}")
            async for event in _events(response):
                if "error" in event:
                    raise RemoteError(f"{server.url}{path} ends its answer with {json.dumps(event['error'])}")
                usage = event.get("usage") or usage
                if load.operation is Operation.EMBEDDING or _has_token(event):
                    answer.last = time.perf_counter() - began
                    answer.first = answer.first or answer.last
                    pieces += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        raise server.unreachable(error) from error
    except ValueError as error:
        raise RemoteError(f"{server.url}{path} answers with no JSON: {error}") from error
    if not pieces:
        raise RemoteError(f"{server.url}{path} ends its answer without a token")
    answer.input_tokens = int(usage.get("prompt_tokens", 0))
    answer.output_tokens = int(usage.get("completion_tokens", 0 if load.operation is Operation.EMBEDDING else pieces))
    return answer


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:  # Any: JSON
    if not response.content_type.startswith("text/event-stream"):
        yield json.loads(await response.read())
        return
    reader = EventReader(_MAX_EVENT_BYTES)
    async for chunk in response.content.iter_any():
        for data in reader.feed(chunk):
            if data.strip() not in (b"", DONE):
                yield json.loads(data)


def _has_token(event: Mapping[str, Any]) -> bool:  # Any: JSON
    """Whether an event has text of the model, or the reasons of one that thinks first."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning", "reasoning_content")):
            return True
    return False


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The percentiles of some values, by name; empty without values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {f"p{each}": round(ordered[min(each * len(ordered) // 100, last)], 5) for each in _PERCENTILES if ordered}


def as_table(measured: Mapping[str, Any]) -> str:  # Any: JSON
    """The figures as a table."""
    is_embedding = measured["operation"] == Operation.EMBEDDING
    times = ("ANSWER p50", "p99") if is_embedding else ("FIRST TOKEN p50", "p99", "PER TOKEN p50", "p99")
    head = ("CLIENTS", "REQUESTS", "ERRORS", "REQ/S", "INPUT TOK/S" if is_embedding else "TOK/S", *times)
    rows: list[tuple[str, ...]] = [head, *(tuple(_cells(measured["operation"], run)) for run in measured["runs"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lengths = f"prompts of about {measured['input_tokens']} tokens"
    if not is_embedding:
        lengths += f", answers of {measured['output_tokens']}"
    errors = Counter[str]()
    for run in measured["runs"]:
        errors.update(run["errors"])
    faults = [f"{count} times: {message}" for message, count in errors.most_common(5)]
    return "\n".join(
        [f"{measured['model']} at {measured['url']}: {lengths}", "", *lines, *([""] if faults else []), *faults]
    )


def _cells(operation: str, run: Mapping[str, Any]) -> Iterator[str]:  # Any: JSON
    is_embedding = operation == Operation.EMBEDDING
    yield from (str(run["streams"]), str(run["requests"]), str(sum(run["errors"].values())))
    yield f"{run['requests_per_second']:.2f}"
    yield f"{run['input_tokens_per_second' if is_embedding else 'output_tokens_per_second']:.0f}"
    for key in ("request_seconds",) if is_embedding else ("first_token_seconds", "per_token_seconds"):
        yield from (milliseconds(run[key].get(name)) for name in ("p50", "p99"))


def milliseconds(seconds: float | None) -> str:
    """A duration for a table."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
