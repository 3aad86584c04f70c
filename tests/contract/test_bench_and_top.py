"""`bench` and `top` against running servers: what they measure and show, and what they say when they cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from contract.server import Server
from terminal import Terminal

from appliance.cli.bench import percentiles
from appliance.cli.main import main
from appliance.cli.top import median
from appliance.cli.top import parsed as parsed_metrics

KEY = "key-for-everything-0123456789abcdef"


def _run(command: str, server: Server, *words: str) -> Result:
    return CliRunner().invoke(main, [command, f"http://127.0.0.1:{server.port}/v1", *words], env={"OPENAI_API_KEY": ""})


def _bench(server: Server, *words: str) -> Result:
    return _run("bench", server, "--seconds", "0.5", *words)


def test_bench_measures_streams_of_tokens(open_server: Server) -> None:
    """As many clients as asked for, the first token before the last one, and throughput that follows from both."""
    done = _bench(open_server, "--model", "echo", "--streams", "1", "--streams", "3", "--input-tokens", "40", "--json")

    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)
    assert [run["streams"] for run in measured["runs"]] == [1, 3]
    assert (measured["model"], measured["operation"]) == ("echo", "chat_completion")
    for run in measured["runs"]:
        first, whole = run["first_token_seconds"], run["request_seconds"]
        assert run["errors"] == {}
        assert run["requests"] >= run["streams"]
        assert 0 < first["p50"] <= whole["p50"] <= whole["p99"]
        assert run["per_token_seconds"]["p50"] >= 0
        # The words of the prompt, each of which is repeated in an event of its own.
        assert run["output_tokens_per_second"] == pytest.approx(run["requests"] * 35 / run["seconds"], rel=0.01)


def test_bench_measures_answers_without_tokens(open_server: Server) -> None:
    """Of embeddings, the time of the answer; a person gets a table."""
    done = _bench(open_server, "--model", "lengths", "--streams", "2")

    assert done.exit_code == 0, done.output
    head, row = done.stdout.splitlines()[2:]
    assert head.split()[:3] == ["CLIENTS", "REQUESTS", "ERRORS"]
    assert "ANSWER p50" in head
    assert row.split()[0] == "2"
    assert row.endswith((" ms", " s"))


def test_bench_says_which_models_there_are(open_server: Server) -> None:
    """For a name that the server does not have, and for a model that cannot be measured."""
    absent, unfit = _bench(open_server, "--model", "eco"), _bench(open_server, "--model", "sums")

    assert absent.exit_code == unfit.exit_code == 1
    assert "has no model 'eco'; its models are echo, " in absent.stderr
    assert "the model 'sums' neither generates nor embeds" in unfit.stderr


@pytest.mark.parametrize("command", ["bench", "top"])
def test_a_server_that_does_not_answer_is_named(command: str) -> None:
    """The remedy is the URL or the server."""
    done = CliRunner().invoke(main, [command, "http://127.0.0.1:9"])

    assert done.exit_code == 1
    assert "http://127.0.0.1:9 does not answer: " in done.stderr
    assert done.stderr.endswith("check the URL, and that the server runs\n")


def test_bench_and_top_take_the_key_of_the_server(keyed_server: Server) -> None:
    """Without it they say how to give it, and fail; top shows what everybody may see."""
    without, wrong = _bench(keyed_server), _bench(keyed_server, "--api-key", "wrong")
    measured = _bench(keyed_server, "--api-key", KEY, "--streams", "1", "--json")
    closed, shown = _run("top", keyed_server, "--once"), _run("top", keyed_server, "--once", "--api-key", KEY)

    assert "give a key with --api-key or OPENAI_API_KEY" in without.stderr
    assert "answers with status 401" in wrong.stderr
    assert json.loads(measured.stdout)["model"] == "echo"
    assert (closed.exit_code, shown.exit_code) == (1, 0)
    assert "/metrics answers with status 401" in closed.stderr
    assert "no metrics: " in closed.stdout
    assert "lengths" not in closed.stdout
    assert ["broken", "failed"] in [line.split()[:2] for line in shown.stdout.splitlines()]
    assert "no metrics: " not in shown.stdout


def test_top_shows_models_states_and_what_is_wrong(open_server: Server) -> None:
    """One row for each model, and a line for each that is not ready."""
    _bench(open_server, "--model", "echo", "--streams", "1")
    done = _run("top", open_server, "--once")

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"http://127.0.0.1:{open_server.port} is not ready, ")
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if line and ":" not in line}
    assert rows["echo"][:3] == ["ready", "0", "0"]
    assert rows["echo"][-1] in ("ms", "s")
    assert rows["late"][0] == "loading"
    assert any(line.startswith("gone: ") for line in lines)


def test_top_draws_anew_until_ctrl_c(open_server: Server, tmp_path: Path) -> None:
    """Ctrl-C is how it ends, and no error."""
    words = ("top", f"http://127.0.0.1:{open_server.port}", "--interval", "0.2")
    terminal = Terminal(*words, folder=tmp_path, columns=120)
    try:
        terminal.wait_for("MODEL")
        terminal.raw = ""
        terminal.wait_for("MODEL")
        is_redrawn = "\x1b[H\x1b[J" in terminal.raw
        terminal.interrupt()
        code = terminal.wait()
    finally:
        terminal.close()

    assert is_redrawn
    assert code == 0
    assert "Traceback" not in terminal.text


def test_the_fullest_cache_of_a_model_is_shown() -> None:
    """A model may have several engines."""
    uses = enumerate((0.5, 0.25))
    text = "".join(f'vllm:kv_cache_usage_perc{{engine="{engine}",model_name="a"}} {use}\n' for engine, use in uses)

    assert parsed_metrics(text)[1] == {"a": 0.5}


def test_a_median_is_that_of_the_last_interval() -> None:
    """Between two looks, or of all where nothing happened; what is above the last bound is only known to be above."""
    before, now = {0.1: 10.0, 1.0: 10.0, math.inf: 10.0}, {0.1: 10.0, 1.0: 14.0, math.inf: 14.0}

    assert median(before, now) == pytest.approx(0.55)
    assert median(now, now) == pytest.approx(0.07)
    assert median({}, {0.1: 0.0, 1.0: 0.0, math.inf: 4.0}) == 1.0
    assert median({}, {}) is None
    assert median({}, {0.1: 0.0, math.inf: 0.0}) is None


def test_percentiles_are_values_that_were_measured() -> None:
    """Of few values the high ones are the largest."""
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0}
    assert percentiles([]) == {}
