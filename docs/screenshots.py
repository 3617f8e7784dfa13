"""Makes the pictures of the pages.

    python -m docs.screenshots                  those of README and guides, into docs/images
    python -m docs.screenshots --all FOLDER     every page in every state, light, dark and on a phone, to look at

The real server, pages and store on a fresh data folder. Only the model is scripted and the past (votes, runs, versions)
made up, so that the pictures say the same every time. Needs Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import math
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve.feedback.entries import NewCandidate
from serve.feedback.store import Store, stamp
from serve.folder import DataFolder
from serve.policy.adapters import CONFIG, WEIGHTS, Registry
from serve.records import Comparison, Judgement, Message, Sampling
from serve.secrets import Secrets
from serve.service import Service
from serve.settings import Settings
from serve.web.server import create_app
from tests.browser.conftest import log_in
from tests.fakes import FakeEngine, FakeTraining, listening
from training.config import PPOConfig

IMAGES = Path(__file__).parent / "images"
TOKEN = "for-the-pictures"  # noqa: S105
UPDATES = PPOConfig().updates
NEWEST = "SELECT id FROM voters ORDER BY rowid DESC LIMIT 1"
"""Whoever sits at the browser: nobody came later."""

SKY = "Why is the sky blue?"
SUNSET = "Then why are sunsets red?"
EGG = "How do I boil an egg?"
SCRIPT = {
    SKY: (
        "The sky is blue because it reflects the ocean, which covers most of the Earth.",
        (
            "Sunlight holds every colour. Air scatters **blue light** far more than red, so blue reaches your eyes "
            "from all over the sky."
        ),
    ),
    SUNSET: (
        (
            "Sunsets are red because the sun is red in the evening. The sun is a star, and stars can be many colours. "
            "In the evening the sun is further away, and so it is more red. There are many facts about the sun:\n\n"
            "- It is a star\n- It is very hot\n- It is very far away"
        ),
        (
            "At sunset the light reaches you through much more air. Most of the **blue is scattered away** on that "
            "long path, and what is left looks orange and red.\n\nDust and smoke make it redder still."
        ),
    ),
    EGG: (
        (
            "Boiling an egg is a simple process that can be done in many ways. To boil an egg, you will need an egg, a "
            "pot, water and a stove. First, fill the pot with water. Then, place the egg into the pot. Next, turn on "
            "the stove and wait until the water begins to boil. There are many factors that"
        ),
        (
            "Put the egg into boiling water: **six minutes** for a soft yolk, **ten** for a hard one. Then cool it "
            "under cold water."
        ),
    ),
}
"""Prompt → what the base says, and what later versions say."""
ASKED = {
    "How do I get a coffee stain out of a shirt?": "Rinse it with cold water, then rub in a little washing-up liquid.",
    "Write a short note to thank a neighbour.": "Thank you for looking after the cat. She has never been happier.",
    "What is the difference between a crow and a raven?": "A raven is larger, has a wedge-shaped tail and croaks.",
    "How long do I boil potatoes?": "Fifteen to twenty minutes, until a knife slides in easily.",
    "Explain compound interest to a child.": "Your coins have baby coins, and those have babies, too.",
    "Give me three ideas for a rainy Sunday.": "Bake bread, sort old photographs, or read in the bath.",
    "Why do cats purr?": "Mostly because they are content, and sometimes to calm themselves.",
}
"""What people asked in the made-up past, and how a good answer begins."""
TO_RANK = (
    "What can I do with stale bread besides throw it away?",
    (
        (2, "Make croutons: cut it into cubes, toss them in oil and salt, and roast them until they are crisp."),
        (
            2,
            (
                "Three good ways:\n\n- **Croutons**: cubes with oil and salt, ten minutes in the oven\n"
                "- **French toast**: soak slices in egg and milk, then fry them\n"
                "- **Breadcrumbs**: grate it, and keep them in a jar"
            ),
        ),
        (
            0,
            (
                "Stale bread is bread that is no longer fresh. There are many things that can be done with bread, and "
                "people all over the world eat bread every day. It is important to store bread properly."
            ),
        ),
        (2, "You can give it to the birds, or throw it away."),
    ),
)
"""A prompt that the project brings, and who says what to it."""
PADDING = (
    "There are many ways to look at this, and it is important to consider all of them carefully before you decide."
)
LOG = """reward: 68 votes by 7 voters, 3 fold models
reward: right on 68% of 61 comparisons not seen (56 to 79%)
ppo: update 14 of 24, score 0.91, KL 2.3, 70 tokens
ppo: update 15 of 24, score 1.02, KL 2.5, 69 tokens
"""


def learned(promised: tuple[float, float, float], right: float, tokens: float) -> dict[str, Any]:
    """The report of a run that gave a version."""
    value, low, high = promised
    accuracy = {"value": right, "low": right - 0.11, "high": right + 0.1, "comparisons": 61}
    said = (0.53, 0.62, 0.72, 0.83, 0.92)
    calibration = [{"said": x, "right": x + (-1) ** i * 0.03, "pairs": 60 - 8 * i} for i, x in enumerate(said)]
    return {
        "reward": {"accuracy": accuracy, "calibration": calibration},
        "gate": {
            "win_rate": {"value": value, "low": low, "high": high},
            "new": {"kl": 2.6, "length": tokens, "refusals": 0.0},
        },
    }


class Clock:
    """The store's time, which the script moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC) - timedelta(days=3)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=40)
        return self.now


def speak(version: int, seed: int, prompt: str) -> list[str]:
    """The script, a word a token."""
    base, later = SCRIPT.get(prompt, SCRIPT[EGG])
    words = (later if version else base).split(" ")
    return [f"{word} " for word in words[: len(words) - seed % 4 if prompt not in SCRIPT else None]]


def vote(store: Store, number: int, *, versions: tuple[int, int] = (0, 0), better: float = 0.5) -> None:
    """So many votes, by a few people; one in four between two versions, of which the second is chosen so often."""
    chance = random.Random(number)
    for i in range(number):
        voter = f"person-{i % 7}"
        question, answer = chance.choice(list(ASKED.items()))
        prompt = store.record_prompt(voter, [Message("user", question)], share=i % 4 == 1)
        pair = versions if i % 4 == 0 else (versions[1], versions[1])
        first = chance.random() < 0.5  # where the second of the two stands
        shown = (pair[1], pair[0]) if first else pair
        comparison = store.create_comparison(
            voter,
            prompt,
            [NewCandidate(version, seed) for seed, version in enumerate(shown)],
            Sampling(),
            evidence=True,
        )
        for candidate in comparison.candidates:
            words = f"{answer} {PADDING}".split()[: len(answer.split()) + chance.randint(0, 21)]
            store.finish_answer(
                candidate.answer.id,
                text=" ".join(words),
                token_ids=tuple(range(len(words))),
                logprobs=(0.0,) * len(words),
                finish_reason="stop",
            )
        judge(store, store.comparison(comparison.id, voter), chance, better=None if pair[0] == pair[1] else better)


def judge(store: Store, comparison: Comparison, chance: random.Random, *, better: float | None = None) -> None:
    """Choose the newer version's answer so often, or else mostly the one with fewer words."""
    first, second = comparison.candidates
    if better is not None:
        first, second = sorted(comparison.candidates, key=lambda c: -(c.answer.version or 0))
    elif len(second.answer.text) < len(first.answer.text):
        first, second = second, first
    if chance.random() > (0.78 if better is None else better):
        first, second = second, first
    store.add_vote(comparison.id, comparison.voter_id, Judgement(ranking=((first.id,), (second.id,))))


def judge_again(store: Store) -> None:
    """Some pairs by somebody else, and some by the same person with sides swapped."""
    chance = random.Random(1)
    for i in range(60):
        voter = f"person-{i % 7}"
        found = store.next_in_queue(voter) if i < 30 else store.repeat(voter, apart=3)
        if found is not None:
            judge(store, found, chance)


def curves(store: Store, run: int, *, upto: float, eta: float | None = None) -> None:
    """A run's metrics, as far as it came (0 to 1)."""
    noise = random.Random(run)
    rows: list[dict[str, Any]] = []

    def add(stage: str, step: int, progress: float, metrics: dict[str, float]) -> None:
        if progress <= upto:
            time_ = datetime.now(UTC).isoformat()
            rows.append(
                {
                    "time": time_,
                    "stage": stage,
                    "step": step,
                    "progress": progress,
                    "eta_seconds": eta,
                    "metrics": metrics,
                }
            )

    votes = 50 + 55 * run
    for quarter in range(1, 5):
        accuracy = 0.71 - 0.15 * math.exp(-quarter / 2) + noise.gauss(0, 0.012)
        add("reward", votes * quarter // 4, 0.15 * quarter / 4, {"reward_accuracy": accuracy})
    for step in range(1, UPDATES + 2):
        grown = 1 - math.exp(-step / 9)
        metrics = {
            "score": 1.25 * grown + noise.gauss(0, 0.07),
            "kl": 3.4 * grown**1.5 + noise.gauss(0, 0.09),
            "length": 92 - 31 * grown + noise.gauss(0, 2.2),
        }
        add("ppo", step, 0.15 + 0.8 * step / (UPDATES + 1), metrics)
    store.add_run_metrics(run, rows)


def past(store: Store, registry: Registry, clock: Clock, folder: DataFolder) -> None:
    """Three days of votes: a run that was refused, two that gave a version, and one that is on."""
    made = folder.root / "made"
    made.mkdir()
    (made / CONFIG).write_text("{}")
    (made / WEIGHTS).write_bytes(b"weights")
    chance = (
        "the reward model is right on 58% of 43 unseen comparisons, which could still be chance (at least 43%): about "
        "126 more votes"
    )
    refused = {"reasons": [chance]}
    chapters: list[tuple[int, int, dict[str, Any] | None]] = [
        (50, 1, refused),
        (61, 6, learned((0.71, 0.56, 0.83), 0.64, 71)),
        (154, 7, learned((0.66, 0.53, 0.78), 0.68, 64)),
        (152, 4, None),
    ]
    for votes, minutes, report in chapters:
        serving = store.serving()
        vote(store, votes, versions=(max(0, serving - 1), serving), better=0.68)
        clock.now += timedelta(hours=17)
        if report is None:
            clock.now = datetime.now(UTC) - timedelta(minutes=minutes)
        run = store.create_run("votes", ("reward", "ppo"), {})
        folder.run(run.id).mkdir(parents=True)
        store.snapshot(run.id, folder.run(run.id) / "snapshot.db")
        store.update_run(run.id, status="running", started=clock.now)
        if report is None:
            curves(store, run.id, upto=0.66, eta=260.0)
            (folder.run(run.id) / "log.txt").write_text(LOG)
            vote(store, 17, versions=(1, 2), better=0.68)
            judge_again(store)
            continue
        curves(store, run.id, upto=0.15 if report is refused else 1.0)
        clock.now += timedelta(minutes=minutes)
        version = None
        if report is not refused:
            parent = store.serving()
            version = registry.publish(made, run=run.id, parent=parent, status="staged", report=report).number
            registry.promote(version, "server", "passed the gate")
        status = "rejected" if report is refused else "succeeded"
        store.update_run(run.id, status=status, finished=clock.now, report=report, version=version, progress=1.0)


def send(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    page.locator("#box textarea").fill(text)
    page.locator("#box textarea").press("Enter")


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1240, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1240, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
}


@dataclass
class Site:
    """The running server with a past."""

    url: str
    engine: FakeEngine
    store: Store

    def ask_to_rank(self) -> None:
        """Let several answers wait for the person at the browser."""
        with self.store.reading() as db:
            (mine,) = db.execute(NEWEST).fetchone()
        question, answers = TO_RANK
        prompt = self.store.record_prompt(mine, [Message("user", question)], test=True, source="shipped")
        wanted = [NewCandidate(version, seed) for seed, (version, _) in enumerate(answers)]
        comparison = self.store.create_comparison(mine, prompt, wanted, Sampling(), evidence=True)
        for candidate, (_, text) in zip(comparison.candidates, answers, strict=True):
            self.store.finish_answer(
                candidate.answer.id, text=text, token_ids=(0,), logprobs=(0.0,), finish_reason="stop"
            )

    def take_over(self, votes: int) -> None:
        """Give votes that went into a version to the person at the browser."""

        def work(db: sqlite3.Connection) -> None:
            (mine,) = db.execute(NEWEST).fetchone()
            found = db.execute(
                "SELECT votes.id AS vote, comparison_id, conversation_id"
                " FROM votes JOIN run_votes ON vote_id = votes.id"
                " JOIN runs ON runs.id = run_id JOIN comparisons ON comparisons.id = comparison_id"
                " JOIN messages ON messages.id = prompt_id WHERE version IS NOT NULL AND repeats IS NULL"
                " GROUP BY votes.id ORDER BY count(*), votes.rowid DESC LIMIT ?",
                (votes,),
            ).fetchall()
            for row in found:
                db.execute("UPDATE votes SET voter_id = ? WHERE id = ?", (mine, row["vote"]))
                db.execute("UPDATE comparisons SET voter_id = ? WHERE id = ?", (mine, row["comparison_id"]))
                db.execute("UPDATE conversations SET voter_id = ? WHERE id = ?", (mine, row["conversation_id"]))

        self.store.writing(work)


@contextmanager
def serving(*, empty: bool) -> Iterator[Site]:
    """The server on a fresh folder, with three days behind it or none."""
    with tempfile.TemporaryDirectory() as temporary:
        clock = Clock()
        folder = DataFolder(Path(temporary) / "feedback.db")
        with Store.open(folder, clock=clock) as store, closing(FakeEngine(speak)) as engine:
            began = stamp(clock())
            store.writing(lambda db: db.execute("UPDATE versions SET created = ? WHERE number = 0", (began,)))
            registry = Registry(folder, store, base_hash=None)
            if not empty:
                past(store, registry, clock, folder)
            settings = Settings(db=folder.db, compare_share=1.0)
            service = Service(store=store, engine=None, registry=registry, settings=settings, rng=random.Random(5))
            service.attach(engine)
            app = create_app(service, FakeTraining(store), settings, Secrets.load_or_create(folder.secrets, TOKEN)[0])
            with listening(app) as url:
                yield Site(url, engine, store)


def walk(page: Page, site: Site) -> Iterator[str]:
    """Through all pages; each state that is worth a picture by its name."""
    page.goto(site.url)
    expect(page.locator("#consent")).to_be_visible()
    yield "newcomer"
    page.click("#private")
    expect(page.locator("#box textarea")).to_be_visible()
    yield "empty"
    send(page, SKY)
    expect(page.locator("#note")).to_contain_text("Which is better?")
    page.click("#vote-a" if "Sunlight" in text_of(page, "a") else "#vote-b")
    expect(page.locator("#arena")).to_be_hidden()
    site.engine.hold = 34
    send(page, SUNSET)
    expect(page.locator("#answer-b")).to_contain_text("in the evening" if "air" in text_of(page, "a") else "air")
    yield "chat"
    site.engine.hold = None
    expect(page.locator("#note")).to_contain_text("Which is better?")
    yield "choose"
    page.keyboard.press("Escape")
    page.keyboard.press("1" if "scattered" in text_of(page, "a") else "2")
    expect(page.locator("#note")).to_contain_text("You chose")
    yield "vote"
    site.engine.full = True
    send(page, EGG)
    expect(page.locator("#note .problem")).to_be_visible()
    yield "error"
    site.engine.full = False

    site.ask_to_rank()
    page.goto(site.url + "/vote")
    expect(page.locator(".ranker:visible").first).to_be_visible()
    expect(page.locator("#note")).to_contain_text("Which is best?")
    for key in ("2", "j", "1"):
        page.keyboard.press(key)
    yield "rank"
    site.take_over(5)
    page.goto(site.url + "/you")
    expect(page.locator("#my-votes tbody tr").first).to_be_visible()
    yield "yours"

    page.goto(site.url + "/login")
    yield "login"
    log_in(page, site.url, TOKEN)
    page.wait_for_timeout(1500)
    yield "operator"
    page.get_by_role("tab", name="Data and log").click()
    expect(page.locator("#found tbody tr").first).to_be_visible()
    yield "everything"
    page.get_by_label("Holds the words").fill("coffee")
    page.keyboard.press("Enter")
    expect(page.locator("#found tbody")).not_to_contain_text("potatoes")
    page.locator("#found summary").first.click()
    yield "data"


def walk_rare(page: Page, site: Site) -> Iterator[str]:
    """What people come to only now and then."""
    page.goto(site.url)
    page.click("#private")
    send(page, SKY)
    expect(page.locator("#note")).to_contain_text("Which is better?")
    page.click("#vote-bad")
    expect(page.locator("#remedy")).to_be_visible()
    yield "both-bad"
    page.click("#write")
    expect(page.locator("#words textarea")).to_be_focused()
    yield "editor"
    page.get_by_role("button", name="Cancel").click()
    page.click("#retry")
    expect(page.locator("#note")).to_contain_text("Which is better?")
    page.click("#vote-a")
    page.locator("#history .bot").hover()
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#note")).to_contain_text("Which is better?")
    page.click("#vote-b")
    expect(page.locator("#history .branch")).to_contain_text("2 of 2")
    yield "branches"
    if page.locator("#side.open").count() == 0:
        page.get_by_role("button", name="Toggle Sidebar").click()
    page.get_by_role("button", name="How it answers").click()
    expect(page.locator("#system textarea")).to_be_visible()
    yield "side"
    page.goto(site.url)
    send(page, EGG)
    expect(page.locator("#note")).to_contain_text("Which is better?")
    page.context.set_offline(True)
    page.click("#vote-a")
    expect(page.get_by_text("Connection to the server was lost")).to_be_visible()
    yield "lost"
    page.context.set_offline(False)

    log_in(page, site.url, TOKEN)
    run = site.store.active_run()
    assert run is not None
    error = "the trainer was killed (signal 9), most likely for want of memory; close other programs"
    site.store.update_run(run.id, status="failed", finished=datetime.now(UTC), error=error)
    expect(page.locator("#runs")).to_contain_text("want of memory")
    yield "operator-failed"
    page.evaluate("fetch('/api/logout', {method: 'POST'})")
    expect(page.locator("#session-over")).to_contain_text("Your session is over.")
    yield "operator-over"


def walk_empty(page: Page, site: Site) -> Iterator[str]:
    """The pages before anything has happened."""
    page.goto(site.url + "/you")
    expect(page.locator("#my-votes .empty")).to_be_visible()
    yield "yours-empty"
    site.engine.hold = 12
    page.goto(site.url + "/vote")
    page.click("#private")
    expect(page.locator("#answer-3")).to_contain_text("egg")
    yield "rank-writing"
    site.engine.hold = None
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    nothing = patch.object(Service, "next_to_judge", AsyncMock(return_value=None))
    with nothing, patch.object(Service, "left_to_judge", AsyncMock(return_value=0)):
        page.reload()
        expect(page.locator("#note")).to_contain_text("everything there is")
        yield "rank-empty"
    log_in(page, site.url, TOKEN)
    yield "operator-empty"
    page.get_by_role("tab", name="Data and log").click()
    yield "data-empty"


SHOWN = ("chat", "vote", "rank", "yours", "operator", "data")
"""The pictures of README and guides."""
TALL = ("operator", "operator-failed", "everything", "yours-empty", "operator-empty", "data-empty")
"""Taken whole, not only what fits the window."""


def shoot(chromium: Browser, look: str, target: Path, wanted: tuple[str, ...] | None) -> None:
    """Pictures of what is wanted, or of everything."""
    for empty, steps in ((False, walk), (False, walk_rare), (True, walk_empty)):
        if wanted and steps is not walk:
            continue
        with serving(empty=empty) as site:
            context = chromium.new_context(**LOOKS[look], device_scale_factor=1.5)
            context.set_default_timeout(30_000)
            page = context.new_page()
            for name in steps(page, site):
                if wanted is None or name in wanted:
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(500)
                    file = f"{name}.png" if wanted else f"{name}-{look}.png"
                    page.screenshot(path=target / file, full_page=name in TALL)
            context.close()


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--all", type=Path, default=None, metavar="FOLDER")
    parser.add_argument("--look", choices=sorted(LOOKS), default=None, help="only this one of all")
    options = parser.parse_args()
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        if options.all is None:
            shoot(chromium, "light", IMAGES, SHOWN)
        else:
            options.all.mkdir(parents=True, exist_ok=True)
            for look in [options.look] if options.look else LOOKS:
                shoot(chromium, look, options.all, None)
        chromium.close()


def text_of(page: Page, pane: str) -> str:
    """What an answer says so far."""
    return page.locator(f"#answer-{pane}").inner_text()


if __name__ == "__main__":
    main()
