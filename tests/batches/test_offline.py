"""`appliance batch`: a file of requests without a server, or by a running one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from server_launcher import COMMAND, run_appliance
from terminal import Terminal
from upstreams import Upstream, error, well_behaved

CONFIG = "models: [{name: one, class: generative, engine: {python: 'examples.parrot:Parrot'}}]\n"
ENDPOINT = "/v1/chat/completions"


def _files(folder: Path, *prompts: Any) -> tuple[Path, Path]:
    config, requests = folder / "config.yaml", folder / "requests.jsonl"
    config.write_text(CONFIG + "server: {api_keys: [{name: a, value: aaaaaaaaaaaaaaaa}]}\n")
    messages = ([{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts)
    bodies = ({"model": "one", "messages": each} for each in messages)
    lines = ({"custom_id": str(number), "url": ENDPOINT, "body": body} for number, body in enumerate(bodies))
    requests.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return config, requests


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    """Results that are whole are kept, and a line that was being written is run again."""
    config, requests = _files(tmp_path, *map(str, range(200)))
    output = tmp_path / "out.jsonl"
    words = ["batch", str(requests), "--config", str(config), "-o", str(output)]
    first = run_appliance(*words)
    kept = output.read_bytes().splitlines(keepends=True)[:50]
    output.write_bytes(b"".join(kept) + b'{"id":"batch_req_1","custom_')
    second = run_appliance(*words)
    lines = output.read_bytes().splitlines(keepends=True)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "200 of 200 requests have results, 0 failed" in second.stderr
    assert lines[:50] == kept
    results = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, lines)}
    assert len(lines) == len(results) == 200
    assert results["7"]["choices"][0]["message"]["content"].strip().endswith("7")


def test_a_request_that_fails_is_a_result_and_an_exit_code(tmp_path: Path) -> None:
    """The results are printed, and nothing else is on standard output."""
    config, requests = _files(tmp_path, "hello", 3)
    done = run_appliance("batch", str(requests), "--config", str(config))

    assert done.returncode == 1
    statuses = {
        line["custom_id"]: line["response"]["status_code"] for line in map(json.loads, done.stdout.splitlines())
    }
    assert (statuses["0"], statuses["1"] >= 400) == (200, True)


def test_a_model_that_fails_ends_the_run(tmp_path: Path) -> None:
    """Its reason is printed, with an exit code of its own."""
    config, requests = _files(tmp_path, "hello")
    config.write_text(CONFIG.replace("Parrot'", "Raven'"))
    done = run_appliance("batch", str(requests), "--config", str(config))

    assert done.returncode == 4
    assert "Raven" in done.stderr


def test_a_person_sees_how_far_it_is_and_may_stop_it(tmp_path: Path) -> None:
    """The last line of the terminal shows a bar; Ctrl-C keeps the results, and says how to go on."""
    config, requests = _files(tmp_path, *["hello"] * 20_000)
    output = tmp_path / "out.jsonl"
    words = ["batch", str(requests), "--config", str(config), "-o", str(output)]
    with closing(Terminal(*words, folder=Path(__file__).parents[2])) as terminal:
        terminal.wait_for(" s left")
        terminal.interrupt()
        terminal.wait_for("the same command goes on where it stopped")
        code = terminal.wait(30)

    assert code == 130
    assert 0 < output.read_bytes().count(b"\n") < 20_000


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_file_of_requests_is_not_written(tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    """By whatever name it is the output."""
    config, requests = _files(tmp_path, "hello", "again")
    # Without an end of its last line, which would be cut.
    before = requests.read_bytes().rstrip()
    requests.write_bytes(before)
    output = requests if link is None else tmp_path / "link.jsonl"
    if link is not None:
        link(requests, output)
    done = run_appliance("batch", str(requests), "--config", str(config), "-o", str(output))

    assert (done.returncode, requests.read_bytes()) == (2, before)
    assert "the file of the requests" in done.stderr


RESULT = '{"custom_id": "0", "response": null, "error": {"code": "a", "message": "b"}}\n'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"custom_id": "0", "url": "/v1/embeddings", "body": {}}\n', 1),
        ('{"custom_id": "0", "url": "/v1/embeddings", "body": {}}', 1),
        (RESULT + '{"custom_id": "1"}\n' + RESULT, 2),
        (RESULT + "a note\n" + RESULT, 2),
    ],
)
def test_a_file_with_something_else_is_no_output(tmp_path: Path, content: str, line: int) -> None:
    """Its first other line is named, and it stays as it was."""
    config, requests = _files(tmp_path, "hello")
    output = tmp_path / "out.jsonl"
    output.write_text(content)
    done = run_appliance("batch", str(requests), "--config", str(config), "-o", str(output))

    assert (done.returncode, output.read_text()) == (2, content)
    assert f"{output}:{line}: this is no result of a batch" in done.stderr


def test_a_device_is_no_output(tmp_path: Path) -> None:
    """It is refused before it is read: some never end."""
    config, requests = _files(tmp_path, "hello")
    done = run_appliance("batch", str(requests), "--config", str(config), "-o", "/dev/full")

    assert done.returncode == 2
    assert "/dev/full is no regular file" in done.stderr


def test_an_input_that_is_no_file_of_requests_is_named(tmp_path: Path) -> None:
    """A device has no requests, and a directory cannot be read."""
    config, _ = _files(tmp_path)
    empty, folder, nothing = (
        run_appliance("batch", path, "--config", str(config)) for path in ("/dev/null", str(tmp_path), "nothing.jsonl")
    )

    assert [done.returncode for done in (empty, folder, nothing)] == [2] * 3
    assert "has no requests" in empty.stderr
    assert "Is a directory" in folder.stderr
    assert "there is no such file" in nothing.stderr


def test_results_that_cannot_be_printed_end_the_run(tmp_path: Path) -> None:
    """The reason is the only line about it."""
    config, requests = _files(tmp_path, *["hello"] * 10)
    with Path("/dev/full").open("wb") as full:
        command = [COMMAND, "batch", str(requests), "--config", str(config)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, check=False)

    assert done.returncode == 2, done.stderr
    assert "The results cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_running_server_answers(tmp_path: Path) -> None:
    """With its key; what it refuses for now is tried again, and what has a result is not."""
    config, requests = _files(tmp_path, "hello", "again", 3)
    requests.write_text(requests.read_text().replace('"one"', '"upstream-model"'))
    output = tmp_path / "out.jsonl"
    words = ["batch", str(requests), "-o", str(output), "--concurrent", "1", "--api-key", "secret"]
    with Upstream() as server:
        server.on(ENDPOINT, error(503), error(502), well_behaved, well_behaved, error(400))
        first = run_appliance(*words, "--url", server.url)
        second = run_appliance(*words, "--url", server.url)
        calls = [asked for asked in server.asked if asked.path == ENDPOINT]
        both = run_appliance(*words, "--url", server.url, "--config", str(config))
    results = {line["custom_id"]: line["response"] for line in map(json.loads, output.read_bytes().splitlines())}

    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert "3 of 3 requests have results, 1 failed" in second.stderr
    assert {each: result["status_code"] for each, result in results.items()} == {"0": 200, "1": 200, "2": 400}
    assert results["1"]["body"]["choices"]
    assert len(calls) == 5
    assert {asked.header("authorization") for asked in server.asked} == {"Bearer secret"}
    assert (both.returncode, "leave out --config" in both.stderr) == (2, True)


def test_a_server_that_does_not_answer_ends_the_run(tmp_path: Path) -> None:
    """So do a key that it refuses, and a model that it does not have; nothing is written then."""
    _, requests = _files(tmp_path, "hello")
    output = tmp_path / "out.jsonl"
    words = ["batch", str(requests), "-o", str(output), "--url"]
    with Upstream() as server:
        unknown = run_appliance(*words, server.url)
        requests.write_text(requests.read_text().replace('"one"', '"upstream-model"'))
        server.on(ENDPOINT, error(401, "no such key"))
        refused = run_appliance(*words, server.url)
    absent = run_appliance(*words, server.url)

    assert (unknown.returncode, refused.returncode, absent.returncode) == (2, 1, 1)
    assert "requests.jsonl:1: the model 'one' does not exist at" in unknown.stderr
    assert "no such key; give a key with --api-key" in refused.stderr
    assert "does not answer" in absent.stderr
    assert output.read_bytes() == b""
