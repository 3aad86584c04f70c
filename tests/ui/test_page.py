"""The page at `/` of a server with keys, before a proxy whose upstream says what a chat model may say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, keep, opened
from playwright.sync_api import Page, expect
from server_process import ServerProcess
from upstreams import Answer, Upstream, event, stream

NAME = "meta-llama/Llama-4-Maverick-17B-128E-Instruct-with-a-name-that-is-long"
KEY, EMBEDDING_KEY = "k" * 32, "e" * 32
# What the browser writes of a request without the right key.
REFUSAL = "status of 401"
MARKDOWN = """\
# Cities
It **is** *Paris*, `code` and [more](https://example.com/).
1. one
   - nested
2. two

| city | <b>people</b> |
|------|--------|
| Paris | 2 |

```python
print("**not bold**")
```"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """An upstream."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[ServerProcess]:
    """A server with a proxy, an alias, and two keys."""
    folder = tmp_path_factory.mktemp("page")
    keys = [{"name": "all", "value": KEY}, {"name": "rag", "value": EMBEDDING_KEY, "operations": ["embedding"]}]
    proxy = {"name": NAME, "class": "proxy", "aliases": ["llama"], "upstreams": [{"url": upstream.url}]}
    file = folder / "page.yaml"
    file.write_text(json.dumps({"models": [proxy], "server": {"api_keys": keys}}))
    served = ServerProcess(file, folder / "log").wait_until_ready(60)
    yield served
    served.stop()


def _enter(page: Page, key: str) -> None:
    page.fill("#key", key, timeout=30_000)
    page.click("text=Use key")


def _deltas(*deltas: dict[str, Any]) -> Answer:
    chunks = [event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": each}]}) for each in deltas]
    return stream(*chunks, event("[DONE]"))


def test_a_wrong_key_is_refused_in_words(server: ServerProcess) -> None:
    """Without a key the page is the form; a wrong key is said to be wrong, and the right one opens the page."""
    with opened(f"{server.url}/", expected=REFUSAL) as page:
        expect(page.locator("#key-form")).to_be_visible(timeout=30_000)
        expect(page.locator("section:visible")).to_have_count(0)
        _enter(page, "wrong")
        expect(page.locator("#key-error")).to_have_text("The server does not accept this key.", timeout=30_000)
        _enter(page, KEY)

        expect(page.locator("#model option")).to_have_text([NAME], timeout=30_000)
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("article")).to_contain_text("Aliases")
        expect(page.locator("article")).to_contain_text("llama")
        assert barriers(page) == []

        page.click("text=Forget it")
        expect(page.locator("#key-form")).to_be_visible(timeout=30_000)


def test_a_key_sees_the_operations_that_it_may_use(server: ServerProcess) -> None:
    """A key for embeddings is offered no chat."""
    with opened(f"{server.url}/", expected=REFUSAL) as page:
        _enter(page, EMBEDDING_KEY)

        expect(page.locator("#task option")).to_have_text(["Similarity"], timeout=30_000)
        expect(page.locator("#embed")).to_be_visible()
        expect(page.locator("#snippet")).to_contain_text("/v1/embeddings")


def test_an_answer_is_shown_as_markdown_after_its_reasoning(
    server: ServerProcess, upstream: Upstream, tmp_path: Path
) -> None:
    """Markup of the model becomes elements, HTML stays text; the reasoning folds up when the answer begins."""
    pieces = [{"content": MARKDOWN[at : at + 7]} for at in range(0, len(MARKDOWN), 7)]
    upstream.on("/v1/chat/completions", _deltas({"reasoning_content": "Let me think."}, *pieces))

    with opened(f"{server.url}/", expected=REFUSAL) as page:
        _enter(page, KEY)
        expect(page.locator("#model option")).to_have_count(1, timeout=30_000)
        page.click("text=System prompt")
        page.fill("#system", "Be brief.")
        page.click("text=Send")
        answer = page.locator(".turn.assistant .text")

        expect(answer.locator("pre code")).to_have_text('print("**not bold**")', timeout=30_000)
        expect(answer.locator("strong")).to_have_text(["Cities", "is"])
        expect(answer.locator("em")).to_have_text("Paris")
        expect(answer.locator("a")).to_have_attribute("href", "https://example.com/")
        expect(answer.locator("ol > li")).to_have_count(2)
        expect(answer.locator("li li")).to_have_text("nested")
        expect(answer.locator("th")).to_have_text(["city", "<b>people</b>"])
        expect(page.locator(".turn details")).not_to_have_attribute("open", "")
        expect(page.locator(".turn details div")).to_have_text("Let me think.")
        assert upstream.calls[-1].json()["messages"][0] == {"role": "system", "content": "Be brief."}
        assert barriers(page) == []
        keep(page, tmp_path, "markdown")


def test_a_stopped_answer_stays_in_the_conversation(server: ServerProcess, upstream: Upstream) -> None:
    """What came before Stop is sent with the next message."""
    first = event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Half an"}}]})
    upstream.on("/v1/chat/completions", stream(first, 60.0), _deltas({"content": "x"}))

    with opened(f"{server.url}/", expected=REFUSAL) as page:
        _enter(page, KEY)
        expect(page.locator("#model option")).to_have_count(1, timeout=30_000)
        page.click("text=Send")
        expect(page.locator(".turn.assistant .text")).to_have_text("Half an", timeout=30_000)
        page.click("text=Stop")
        page.fill("#message", "Go on.")
        page.click("text=Send")

        expect(page.locator(".turn.assistant .text")).to_have_text(["Half an", "x"], timeout=30_000)
        sent = [each["content"] for each in upstream.calls[-1].json()["messages"]]
        assert sent[1:] == ["Half an", "Go on."]


def test_a_program_is_told_how_to_connect(server: ServerProcess) -> None:
    """The base URL, and code for curl and Python with the chosen model; the code has no key in it."""
    with opened(f"{server.url}/", expected=REFUSAL) as page:
        _enter(page, KEY)
        expect(page.locator("#base-url")).to_have_text(f"{server.url}/v1", timeout=30_000)
        expect(page.locator("#snippet")).to_contain_text(f'"model":"{NAME}"', timeout=30_000)
        page.select_option("#client", "python")
        expect(page.locator("#snippet")).to_contain_text(f'base_url="{server.url}/v1", api_key=os.environ["API_KEY"]')
        assert KEY not in page.locator("#snippet").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_long_name_fits_a_phone(server: ServerProcess, scheme: str, tmp_path: Path) -> None:
    """Nothing makes the page wider than its screen."""
    with opened(f"{server.url}/", scheme, expected=REFUSAL) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        _enter(page, KEY)
        expect(page.locator("#model option")).to_have_text([NAME], timeout=30_000)

        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        keep(page, tmp_path, f"phone-{scheme}")


def test_no_state_is_shown_of_a_server_that_is_gone(server: ServerProcess) -> None:
    """Without an answer the page does not go on to say that a model is ready."""
    with opened(f"{server.url}/", expected=f"{REFUSAL}|ERR_FAILED") as page:
        _enter(page, KEY)
        expect(page.locator(".state")).to_have_text("● ready", timeout=30_000)
        page.route("**/livez", lambda route: route.abort())

        expect(page.locator(".state")).to_have_text("? unknown", timeout=30_000)
        expect(page.locator("#status")).to_have_text("The server does not respond.")


def test_models_without_a_task_have_no_playground(server: ServerProcess) -> None:
    """There is no form that nothing can answer."""
    with opened(f"{server.url}/", expected=REFUSAL) as page:
        page.route("**/v1/models", lambda route: route.fulfill(status=200, json={"object": "list", "data": []}))
        _enter(page, KEY)
        expect(page.locator(".state")).to_have_text("● ready", timeout=30_000)

        expect(page.locator("#playground")).to_be_hidden()
        expect(page.locator("nav a[href='#playground']")).to_be_hidden()
        expect(page.locator("#snippet")).to_contain_text("/v1/models")
