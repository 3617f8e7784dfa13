"""A real server with the real pages and store, a scripted engine, and a real Chromium that walks through it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.records import Comparison
from serve.secrets import Secrets
from serve.service import Service
from serve.settings import Settings
from serve.web.server import create_app
from tests.fakes import FakeEngine, FakeTraining, listening, publish, some_words

CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "the-operators-token"
QUESTION = "Why is the sky blue?"

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
    with Store.open(folder) as store, closing(FakeEngine()) as engine:
        registry = Registry(folder, store, base_hash=None)
        if len(store.versions()) == 1:
            publish(registry, folder.root / "made", 2)
        settings = Settings(db=folder.db)
        service = Service(store=store, engine=None, registry=registry, settings=settings)
        training = FakeTraining(store)
        service.attach(engine)
        app = create_app(service, training, settings, Secrets.load_or_create(folder.secrets, TOKEN)[0])
        with listening(app, port) as url:
            yield Site(url, store, engine, service, training)


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


def log_in(page: Page, url: str, token: str = TOKEN) -> None:
    """To the operator page, through the form."""
    page.goto(url + "/login")
    page.get_by_label("Operator token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#glance p").first).to_be_visible()


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


def asked(page: Page) -> None:
    """Both answers are complete and wait for a vote."""
    expect(page.locator("#note")).to_contain_text("Which is better?")


def last_comparison(store: Store) -> Comparison:
    """The one that was made last."""
    with store.reading() as db:
        row = db.execute("SELECT id, voter_id FROM comparisons ORDER BY rowid DESC LIMIT 1").fetchone()
    return store.comparison(row["id"], row["voter_id"])


def soon(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until something holds that the page does not show, such as of the record."""
    for _ in range(400):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to hold")


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the focus is there."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never came to {target}")
