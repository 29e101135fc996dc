"""The page in headless Chromium: a long file, the bar that moves, the answer that streams, and stopping one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.settings import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


KEY = "a-key"


QUIET = (  # no part of it requests the network or devices
    "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-component-update "
    "--disable-default-apps --disable-extensions --disable-sync --no-first-run"
).split()


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_ctx=24_000, n_threads=1, n_batch=512)
    with running(config, Settings(model_name="demo", api_keys=(KEY,), temperature=0.0)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """Opens the page with its key; there must be no error in its console and no request to another host."""
    found = browser.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("request", lambda request: wrong.append(request.url) if not local(request.url, server) else None)
    found.goto(server.url)
    found.fill("#key", KEY)
    found.keyboard.press("Enter")
    sync_api.expect(found.locator("#model")).to_contain_text("tokens")
    yield found
    found.close()
    assert not wrong


def local(url: str, server: Server) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def document(n: int) -> str:
    """About 8 tokens a sentence, with a fact in the middle."""
    half = "The old house stood near the river. " * (n // 16)
    return f"{half}The pass key for apricot is 40913. {half}"


def test_a_long_file_is_read_and_answered(page: Any, server: Server) -> None:
    page.evaluate(
        """text => { window.seen = [];
        new MutationObserver(() => window.seen.push(document.querySelector('#read').textContent))
          .observe(document.querySelector('#read'), {childList: true, subtree: true}); }""",
        "",
    )
    page.evaluate(
        """text => { const data = new DataTransfer();
        data.items.add(new File([text], 'book.txt', {type: 'text/plain'}));
        window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); }""",
        document(20_000),
    )
    page.wait_for_selector("#files button")
    page.fill("#text", "What is the pass key for apricot?")
    page.keyboard.press("Enter")
    page.wait_for_selector("article.assistant")
    page.wait_for_selector("#send:visible", timeout=120_000)
    seen = page.evaluate("window.seen")
    read = [int(text.split(" of ")[0].replace(",", "")) for text in seen]
    assert len(read) > 5 and read == sorted(read) and read[-1] > 15_000
    assert any("left" in text for text in seen)
    assert "book.txt" in page.inner_text("article.user")
    assert page.inner_text("article.assistant")
    assert "of the keys read" in page.inner_text("#stats")


def test_an_answer_is_stopped_and_the_next_one_comes(page: Any, server: Server) -> None:
    before = server.engine.stats().cancelled
    page.fill("#text", "Read this. " + document(16_000))
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:visible")
    page.wait_for_timeout(300)
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    assert "stopped" in page.inner_text("#log")
    server.cancelled(before + 1)
    page.fill("#text", "The pass key for apricot is 40913. What is the pass key for apricot?")
    page.click("#send")
    sync_api.expect(page.locator("#log")).to_contain_text("is 40913. What")
    page.wait_for_selector("#send:visible")
    assert "40913" in page.locator("article.assistant").last.inner_text()


def test_keys_and_colours(page: Any) -> None:
    dark = page.get_attribute("html", "data-theme")
    page.keyboard.press("Alt+t")
    assert page.get_attribute("html", "data-theme") != dark
    page.fill("#text", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#text") == "one\ntwo"
    page.keyboard.press("Alt+n")
    assert page.locator("article").count() == 0


def test_what_a_model_writes_is_text(page: Any) -> None:
    page.evaluate("append(show('assistant'), '<img src=x onerror=alert(1)>', false)")
    assert page.locator("article img").count() == 0


def test_errors_are_shown(page: Any) -> None:
    page.fill("#text", "word " * 30_000)
    page.keyboard.press("Enter")
    page.wait_for_selector("article.error")
    assert "maximum context length is 24" in page.inner_text("article.error")
