"""A real server with the real pages and store, a scripted engine, and a real Chromium that walks through it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.secrets import Secrets
from serve.service import Service
from serve.settings import Settings
from serve.web.server import create_app
from tests.fakes import FakeEngine, FakeTraining, publish, some_words

CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "the-operators-token"

expect.set_options(timeout=int(os.environ.get("PATIENCE", "20000")))


@dataclass
class Site:
    """The running server and what is behind it."""

    url: str
    store: Store
    engine: FakeEngine
    service: Service
    training: FakeTraining


@pytest.fixture(scope="module")  # not session: while Playwright runs, no later test could start an event loop
def browser() -> Iterator[Browser]:
    """Chromium, as the distribution brings it."""
    if not CHROMIUM.exists():
        fix = f"there is no {CHROMIUM}; `apt-get install chromium` makes this test run"
        if os.environ.get("HUSTINGS_NO_SKIP") == "1":
            pytest.fail(fix)
        pytest.skip(fix)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def serving(folder: DataFolder, port: int = 0) -> Iterator[Site]:
    """A server with two versions beside the base; port 0 takes a free one."""
    store = Store.open(folder)
    registry = Registry(folder, store, base_hash=None)
    if len(store.versions()) == 1:
        publish(registry, folder.root / "made", 2)
    settings = Settings(db=folder.db)
    service = Service(store=store, engine=None, registry=registry, settings=settings)
    engine, training = FakeEngine(), FakeTraining(store)
    service.attach(engine)
    app = create_app(service, training, settings, Secrets.load_or_create(folder.secrets, TOKEN)[0])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(f"http://127.0.0.1:{port}", store, engine, service, training)
    server.should_exit = True
    engine.close()
    thread.join(10)
    store.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for the tests of a file."""
    with serving(DataFolder(tmp_path_factory.mktemp("site") / "feedback.db")) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The server, with an engine that answers at once and differently each time; tests turn its knobs."""
    engine = running.engine
    yield running
    engine.script, engine.delay, engine.hold, engine.full, engine.room = some_words, 0.0, None, False, None


@pytest.fixture
def person(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without a past."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def newcomer(site: Site, person: BrowserContext) -> Page:
    """The chat page, as a new voter sees it."""
    page = person.new_page()
    open_chat(page, site)
    return page


@pytest.fixture(scope="module")
def regular(browser: Browser, running: Site) -> Iterator[Page]:
    """The chat page of one voter who stays for all tests: loading it takes longer than most of them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    open_chat(page, running)
    yield page
    context.close()


@pytest.fixture
def chat(site: Site, regular: Page) -> Page:
    """A new chat of that voter."""
    regular.click("#new-chat")
    expect(regular.locator("#history .user, #arena, #editor")).to_have_count(0)
    expect(regular.locator("#note")).to_have_text("")
    return regular


def open_chat(page: Page, site: Site) -> None:
    """Go to the chat and wait until it knows who came."""
    page.goto(site.url + "/")
    expect(page.locator("#talk-list .side-foot, #talk-list .talks")).to_be_visible()
    if page.locator("#consent").is_visible():
        page.click("#private")
        expect(page.locator("#box textarea")).to_be_visible()


def breathe(page: Page) -> None:
    """As long as a hand needs: what appears gets its first state from Gradio once more, a moment later."""
    page.wait_for_timeout(100)


def say(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    page.locator("#box textarea").fill(text)
    page.locator("#box textarea").press("Enter")
