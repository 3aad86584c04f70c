"""Templates that never end or want all memory: they fail alone, and soon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from server_process import ServerProcess, has_exited, wait_until
from upstreams import Upstream

from appliance.adapters.renderer import Renderer
from appliance.adapters.templates import MAX_SOURCE, ChatTemplate, JsonTemplate, TemplateFaultError
from appliance.core.errors import RequestError

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

GREEDY = {
    "operator": "{{ 'a' * 2000000000 }}",
    "list": "{{ ([1] * 2000000000) | length }}",
    "filter": "{{ 'a' | center(2000000000) }}",
    "format": "{{ '%2000000000d' | format(1) }}",
    "method": "{{ '{:>2000000000}'.format(1) }}",
    "output": "{{ 'a' * 90000000 }}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for _ in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    """A renderer with time for what is slow on a busy machine, and not for what has no end."""
    with Renderer(seconds=20) as renderer:
        yield renderer


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_a_template_that_needs_too_much_memory_is_refused(renderer: Renderer, source: str) -> None:
    """It is compiled without being computed, and rendered under a limit of memory."""
    template = ChatTemplate(source, renderer=renderer)
    before = psutil.Process().memory_info().rss

    with pytest.raises(RequestError, match="chat template of this model cannot take the request"):
        template.render({})
    assert psutil.Process().memory_info().rss - before < 2**29


def test_a_failing_template_has_a_plain_message() -> None:
    """Clients read it, who know the template and not the code that renders it."""
    for source, message in {
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "cannot take the request: it calls itself too often",
        "{{ 1 / 0 }}": "cannot take the request: one of its expressions fails: division by zero",
    }.items():
        with pytest.raises(RequestError, match=message) as raised:
            ChatTemplate(source).render({})

        assert "Error" not in str(raised.value)


def test_an_endless_template_is_killed() -> None:
    """Its process is killed, and the next request has a new one."""
    with Renderer(seconds=1) as renderer:
        with pytest.raises(RequestError, match="takes longer than 1 seconds"):
            ChatTemplate(ENDLESS, renderer=renderer).render({})

        assert ChatTemplate("{{ a }}", renderer=renderer).render({"a": "Grüße"}) == "Grüße"


async def test_a_renderer_can_be_closed_while_it_renders() -> None:
    """The rendering fails at once, and nothing is rendered after it."""
    renderer = Renderer(seconds=600)
    endless = ChatTemplate(ENDLESS, renderer=renderer)
    ChatTemplate("x", renderer=renderer).render({})
    rendering = asyncio.create_task(endless.run(lambda: endless.render({})))
    await asyncio.sleep(0.2)

    await asyncio.to_thread(renderer.close)

    with pytest.raises(RequestError, match=r"its process ended|being unloaded"):
        await rendering
    with pytest.raises(RequestError, match="being unloaded"):
        endless.render({})


def test_a_renderer_returns_the_text_of_the_template(renderer: Renderer) -> None:
    """Tokens, variables and refusals pass through the process unchanged."""
    template = ChatTemplate("{{ bos }}{{ m | tojson }}", {"bos": "<s>"}, renderer)
    json = JsonTemplate('{"a": {{ a }}, "b": {{ b | tojson }}}', renderer)

    assert template.render({"m": ["ü", 1.5, None]}) == '<s>["ü", 1.5, null]'
    assert json.render({"a": 1, "b": "\u2028"}) == '{"a":1,"b":"\u2028"}'.encode()
    with pytest.raises(TemplateFaultError, match="does not render JSON"):
        json.render({"a": "{", "b": 1})
    with pytest.raises(RequestError, match="refuses the request: 'b' is undefined"):
        json.render({"a": 1})
    with pytest.raises(RequestError, match="refuses the request: no"):
        ChatTemplate("{{ raise_exception('no') }}", renderer=renderer).render({})


def test_a_template_has_no_secrets_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that escaped the sandbox would find none in its process."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    others = psutil.Process().children()
    with Renderer() as renderer:
        ChatTemplate("x", renderer=renderer).render({})
        (process,) = set(psutil.Process().children()) - set(others)

        assert "HF_TOKEN" not in process.environ()


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 100_000 + "a" + ")" * 100_000 + "}}",
        "".join(f"{{% for i{each} in a %}}" for each in range(25)) + "{% endfor %}" * 25,
        "{{" + "9" * 100_000 + "}}",
        "x" * (MAX_SOURCE + 1),
    ],
    ids=["parentheses", "loops", "digits", "length"],
)
def test_a_template_that_does_not_compile_is_an_error(source: str) -> None:
    """Whatever limit of Jinja or Python it exceeds, it is the template's fault and no traceback."""
    with pytest.raises(TemplateFaultError):
        ChatTemplate(source)


def test_a_server_answers_and_stops_while_a_template_is_rendered(tmp_path: Path) -> None:
    """While an endless template is rendered, probes answer; SIGTERM ends the server and the template's process."""
    with Upstream() as upstream:
        file = tmp_path / "appliance.yaml"
        file.write_text(
            f"models:\n  - name: m\n    class: adapter\n    target: {{url: '{upstream.origin}'}}\n"
            f"    protocol:\n      kind: completions\n      max_tokens: 1\n"
            f"      chat_template: \"{{% if messages[0].content == 'stall' %}}{ENDLESS}{{% endif %}}x\"\n"
        )
        served = ServerProcess(file, tmp_path / "log", "server.drain_seconds=60").wait_until_ready()
        try:
            children, before = served.descendants(), _seconds(served)
            body = {"model": "m", "messages": [{"role": "user", "content": "stall"}]}
            said: list[int] = []
            asking = threading.Thread(target=lambda: said.append(served.post("/v1/chat/completions", body)[0]))
            asking.start()
            wait_until(lambda: _seconds(served) - before > 0.2, 60, served.log_tail)

            assert served.get("/livez")[0] == 200
            assert served.stop() == 0
            asking.join(60)
            assert said == [400]
            assert all(has_exited(each) for each in children)
        finally:
            served.process.kill()


def _seconds(served: ServerProcess) -> float:
    """Processor time of the processes below a server."""
    return sum(each.cpu_times().user for each in served.descendants())
