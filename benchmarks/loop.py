"""Does it learn? The whole loop on the real server, driven through the HTTP API alone.

Simulated voters with a hidden preference (benchmarks/voters.py) chat and vote. One run starts by itself at the 50th
vote while voting goes on; a later one is triggered, and a chat keeps streaming until its version is swapped in. If the
gate refuses that version, people vote on and trigger another. Then base and learned versions answer held-out prompts
that share no template with those voted on, and the hidden preference judges. Two controls vote the other way round and
by a coin. Each arm has a fresh data folder and goes on where it was.

    python -m benchmarks.loop --preference brevity --json benchmarks/results/loop-brevity.json
    python -m benchmarks.loop --quick --arms real
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.client import Client, RequestFailed, chunk_version, persist
from benchmarks.fluency import SavedAnswer, mean_nll
from benchmarks.loop_result import loop_document, summary
from benchmarks.loop_state import ArmState, Progress
from benchmarks.prompts import held_out_prompts, voted_prompts
from benchmarks.record import ROOT, write_json
from benchmarks.server import OPERATOR_TOKEN, Server
from benchmarks.voters import ARMS, PREFERENCES, Arm, as_vote, ballot

NEVER = 1_000_000_000
"""So many new votes make a run due where runs are only triggered."""
FINAL = frozenset({"succeeded", "rejected", "failed", "cancelled"})
EVALUATED_TOGETHER = 8
READING = 2.0
"""Seconds between two turns of the chat that streams during a run; none once the gate is at work."""
LATER_RUNS = 3
"""Most triggered runs of the real arm: after one that the gate refuses, people vote on and the operator tries again."""
VOTES_AFTER_REFUSAL = 25
SWAP_TIMEOUT = 180.0
SERVER_POLL = 1.0
CHAT = ("Good morning!", "Could we talk a little?", "What shall I do this afternoon?", "Please go on.")


@dataclass(frozen=True)
class LoopSettings:
    """What an arm's result depends on."""

    preference: str = "brevity"
    votes: int = 150
    """Comparisons in all."""
    first_run: int = 50
    """HUSTINGS_MIN_NEW_VOTES of the arm whose first run starts by itself; at most half of `votes`."""
    held_out: int = 224
    voters: int = 5
    noise: float = 0.0
    """Share of decided votes that fall the other way by mistake."""
    max_tokens: int = 64
    temperature: float = 0.8
    seed: int = 20_000
    """Of the held-out answers (each prompt its own) and of the voters' mistakes."""
    model: str = "default"
    training: tuple[str, ...] = ()
    """Overrides of the training configuration, such as `ppo.updates=8`."""

    def as_json(self) -> dict[str, Any]:
        """By name, as JSON has it."""
        return {**asdict(self), "training": list(self.training)}

    def environment(self, *, min_new_votes: int) -> dict[str, str]:
        """What the server is told beyond its defaults."""
        overrides = (setting.partition("=") for setting in self.training)
        return {
            "HUSTINGS_MIN_NEW_VOTES": str(min_new_votes),
            "HUSTINGS_MAX_INTERVAL": "none",
            **{f"HUSTINGS_TRAINING__{key.upper().replace('.', '__')}": value for key, _, value in overrides},
        }


class ArmRun:
    """One arm, from the first chat to the last held-out answer."""

    def __init__(self, arm: Arm, settings: LoopSettings, state: ArmState, progress: Progress) -> None:
        self.arm = arm
        self.settings = settings
        self.state = state
        self._preference = PREFERENCES[settings.preference]
        self._progress = progress
        self._server: Server | None = None
        self._operator: Client | None = None
        self._voters: list[Client] = []

    def play(self) -> None:
        """All phases that are not done yet."""
        first, votes = self.settings.first_run, self.settings.votes
        if self.arm == "real" and "first_run" not in self.state.done:
            with self._serving(min_new_votes=first):
                self._start_first_run(first)
                # One vote fewer than would make the next run due: that one is triggered.
                self._vote_until(min(votes, 2 * first - 1), "votes during the first run")
                self._finish_first_run()
        if "answers" not in self.state.done:
            with self._serving(min_new_votes=NEVER):
                self._check_restart()
                self._vote_until(votes, "votes")
                while "later_run" not in self.state.done:
                    refused = len(self.state.refused_runs)
                    self._vote_until(votes + refused * VOTES_AFTER_REFUSAL, "votes after a refusal")
                    self._later_run(may_try_again=self.arm == "real" and refused + 1 < LATER_RUNS)
                self._answer_held_out()

    # -- the server and its people ------------------------------------------------------------------------------------

    @contextmanager
    def _serving(self, *, min_new_votes: int) -> Iterator[None]:
        environment = self.settings.environment(min_new_votes=min_new_votes)
        server = Server(self.state.folder / "data", model=self.settings.model, environment=environment)
        with ExitStack() as stack:
            stack.callback(lambda: self.state.remember_memory(server.memory))
            with self.state.timed("server start"):
                stack.enter_context(server)
            traffic, url = self.state.traffic, server.url
            self._operator = stack.enter_context(Client(url, traffic, token=OPERATOR_TOKEN))
            saved = self.state.cookies or [{} for _ in range(self.settings.voters)]
            self._voters = [stack.enter_context(Client(url, traffic, cookies=jar)) for jar in saved]
            if not self.state.cookies:
                for voter in self._voters:  # the first call mints the cookie
                    persist(lambda voter=voter: voter.call("GET", "/api/me"))  # type: ignore[misc]
                self.state.cookies = [voter.cookies for voter in self._voters]
                self.state.save()
            self._server = server
            self._say(f"server ready at {url}")
            yield

    def _ask_operator(self, method: str, path: str, body: Any = None) -> Any:
        assert self._operator is not None
        operator = self._operator
        return persist(lambda: operator.call(method, path, body))

    # -- voting -------------------------------------------------------------------------------------------------------

    def _vote_until(self, total: int, phase: str) -> None:
        known = self.state.comparisons()
        todo = [n for n in range(total) if known.get(n, {}).get("state") != "voted"]
        if not todo:
            return
        self._say(f"{phase}: {total - len(todo)} of {total} comparisons have their vote")
        with self.state.timed(phase), ThreadPoolExecutor(len(self._voters)) as pool:
            waiting = [pool.submit(self._compare_and_vote, n, known.get(n)) for n in todo]
            try:
                for done, future in enumerate(as_completed(waiting), total - len(todo) + 1):
                    future.result()
                    self._tick(f"{phase}: {done} of {total}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _compare_and_vote(self, number: int, asked: dict[str, Any] | None) -> None:
        voter = self._voters[number % len(self._voters)]
        if asked is None:
            prompts = voted_prompts()
            prompt = prompts[number % len(prompts)]
            limit, temperature = self.settings.max_tokens, self.settings.temperature
            comparison = persist(lambda: voter.compare(prompt, max_tokens=limit, temperature=temperature))
            candidates = sorted(comparison["candidates"], key=lambda candidate: candidate["position"])
            texts = [candidate["text"] for candidate in candidates]
            rng = random.Random(f"{self.settings.seed} {self.arm} {number}")
            best = ballot(self._preference, *texts, arm=self.arm, noise=self.settings.noise, rng=rng)
            asked = {
                "number": number,
                "state": "asked",
                "prompt": prompt,
                "comparison": comparison["id"],
                "candidates": [candidate["id"] for candidate in candidates],
                "texts": texts,
                "best": best,
            }
            self.state.note_comparison(asked)
        # The key makes a repeated vote, after a kill between vote and note, the same vote.
        body, vote_id = as_vote(asked["best"], asked["candidates"]), f"{self.arm}-{number}"
        receipt = persist(lambda: voter.vote(asked["comparison"], body, key=vote_id))
        versions = [receipt["revealed"][candidate] for candidate in asked["candidates"]]
        self.state.note_comparison({**asked, "state": "voted", "versions": versions})

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _start_first_run(self, first: int) -> None:
        if "first_run_started" in self.state.done:
            return
        self._vote_until(first - 1, "votes before the first run")
        time.sleep(3 * SERVER_POLL)
        # None where an earlier, killed benchmark had cast this vote already.
        early = len(self._ask_operator("GET", "/api/runs")) if len(self.state.voted()) < first else None
        self._vote_until(first, "votes before the first run")
        voted = time.monotonic()
        while not (runs := self._ask_operator("GET", "/api/runs")):
            if time.monotonic() - voted > 60:
                raise RuntimeError(f"no run started by itself within a minute of vote {first}")
            time.sleep(0.2)
        delay = time.monotonic() - voted
        self._say(f"run {runs[0]['id']} started by itself {delay:.1f} s after vote {first}")
        found = {"run": runs[0]["id"], "trigger": runs[0]["trigger"], "early": early, "delay_seconds": delay}
        self.state.finish("first_run_started", {**found, "votes": first})

    def _finish_first_run(self) -> None:
        with self.state.timed("waiting for the first run"):
            # A run that failed leaves its votes new, and another one starts: the newest counts.
            run = self._await_run(max(run["id"] for run in self._ask_operator("GET", "/api/runs")))
            self.state.finish("first_run", {**run, "serving": self._settled_version(run)})

    def _check_restart(self) -> None:
        if "first_run" not in self.state.done or "restart" in self.state.done:
            return
        expected, serving = self.state.done["first_run"]["serving"], self._serving_version()
        self.state.finish("restart", {"expected": expected, "serving": serving})
        self._say(f"after a restart version {serving} serves, as before" if serving == expected else "RESTART LOST IT")

    def _later_run(self, *, may_try_again: bool) -> None:
        if self.state.later_run is None:
            body = {"stages": ["reward", "ppo"], "force": True}
            self.state.later_run = int(self._ask_operator("POST", "/api/runs", body)["id"])
            self.state.save()
            self._say(f"run {self.state.later_run} triggered")
        chat = None
        if self.arm == "real":
            assert self._server is not None
            chat = StreamingChat(self._server.url, self.state, self.settings)
            chat.start()
        try:
            with self.state.timed("later run"):
                run = self._await_run(self.state.later_run, chat)
                serving = self._settled_version(run)
        except RunBroke:
            self.state.later_run = None  # the next start triggers another
            self.state.save()
            raise
        finally:
            if chat is not None:
                chat.finish(until_version=self._serving_version())
        if run["status"] == "rejected" and may_try_again:
            self.state.refused_runs.append(run)
            self.state.later_run = None
            self.state.save()
        else:
            self.state.finish("later_run", {**run, "serving": serving})

    def _await_run(self, run_id: int, chat: StreamingChat | None = None) -> dict[str, Any]:
        """Poll until a run is over. Raises RunBroke when it failed."""
        while True:
            run: dict[str, Any] = self._ask_operator("GET", f"/api/runs/{run_id}")
            if run["status"] in FINAL:
                break
            left = run.get("eta_seconds")
            self._tick(
                f"run {run_id} {run['status']}, {run.get('stage') or 'starting'}, {run['progress']:.0%}"
                + (f", {left / 60:.0f} min left" if left is not None else "")
                + "".join(f", {name} {value:.3g}" for name, value in list((run["metrics"] or {}).items())[:6])
            )
            if chat is not None and run.get("stage") == "gate":
                chat.reading = 0.0
            time.sleep(SERVER_POLL)
        if run["status"] in ("failed", "cancelled"):
            raise RunBroke(f"run {run_id} {run['status']}: {run.get('error')}")
        reasons = "; ".join((run.get("report") or {}).get("reasons", []))
        self._say(f"run {run_id} {run['status']}, version {run['version']}" + (f": {reasons}" if reasons else ""))
        return run

    def _settled_version(self, run: dict[str, Any]) -> int:
        """Which version serves once a run's outcome is in force."""
        deadline = time.monotonic() + SWAP_TIMEOUT
        while run["status"] == "succeeded" and self._serving_version() != run["version"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"version {run['version']} passed the gate but does not serve")
            time.sleep(0.2)
        return self._serving_version()

    def _serving_version(self) -> int:
        return int(self._ask_operator("GET", "/health")["version"])

    # -- the held-out prompts -----------------------------------------------------------------------------------------

    def _answer_held_out(self) -> None:
        versions = learned_versions(self.state)
        for version in [0, *versions] if versions else []:
            self._answer_as(version)
        self.state.finish("answers", versions)

    def _answer_as(self, version: int) -> None:
        answers = self.state.answers(version)
        have = answers.by_index()
        todo = [(i, p) for i, p in enumerate(held_out_prompts()[: self.settings.held_out]) if i not in have]
        if not todo:
            return
        self._say(f"version {version} answers {len(todo)} held-out prompts")

        def answer(index: int, prompt: str) -> None:
            assert self._operator is not None
            operator, settings, seed = self._operator, self.settings, self.settings.seed + index
            text, reason = persist(
                lambda: operator.complete(
                    f"hustings-v{version}",
                    prompt,
                    seed=seed,
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                )
            )
            answers.add(SavedAnswer(index, prompt, version, seed, text, reason))

        with self.state.timed("held-out answers"), ThreadPoolExecutor(EVALUATED_TOGETHER) as pool:
            waiting = [pool.submit(answer, index, prompt) for index, prompt in todo]
            try:
                for done, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    self._tick(f"version {version}: {done} of {len(todo)} held-out answers")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _say(self, text: str) -> None:
        self._progress.line(f"{self.arm}: {text}")

    def _tick(self, text: str) -> None:
        self._progress.tick(f"{self.arm}: {text}")


class RunBroke(RuntimeError):
    """A training run failed or was cancelled."""


class StreamingChat(threading.Thread):
    """Somebody who keeps chatting, streamed, while a run is on, until its version answers."""

    def __init__(self, url: str, state: ArmState, settings: LoopSettings) -> None:
        super().__init__(daemon=True)
        self.reading = READING
        self._client = Client(url, state.traffic)
        self._state = state
        self._settings = settings
        self._until: int | None = None

    def run(self) -> None:
        """Chat until `finish` names a version and that version has answered."""
        turn = 0
        while not self._over():
            versions: set[int | None] = set()
            pieces = 0
            try:
                for chunk in self._client.stream(
                    CHAT[turn % len(CHAT)], max_tokens=self._settings.max_tokens, temperature=self._settings.temperature
                ):
                    versions.add(chunk_version(chunk))
                    pieces += 1
                serving = int(self._client.call("GET", "/health")["version"])
            except RequestFailed as error:  # counted already
                self._state.streams.add({"error": str(error)})
                time.sleep(1.0)
            else:
                self._state.streams.add({"versions": sorted(versions, key=str), "chunks": pieces, "serving": serving})
            turn += 1
            if self._until is None:
                time.sleep(self.reading)

    def _over(self) -> bool:
        rows = self._state.streams.rows
        return self._until is not None and bool(rows) and rows[-1].get("versions") in ([self._until], [None])

    def finish(self, *, until_version: int) -> None:
        """Let it chat on until this version has answered once (two minutes at most)."""
        self.reading = 0.0
        self._until = until_version
        self.join(timeout=120)
        self._client.__exit__()


def learned_versions(state: ArmState) -> list[int]:
    """Versions that this arm's runs made, refused ones too; the later run's is the last."""
    runs = (state.done.get(name) or {} for name in ("first_run", "later_run"))
    return [run["version"] for run in runs if run.get("version") is not None]


def add_likelihoods(state: ArmState, settings: LoopSettings, progress: Progress) -> None:
    """Mean NLL under the base of every version's saved answers, from the canonical weights."""
    have: dict[str, float] = state.done.get("nll", {})
    versions = state.done["answers"]
    missing = [version for version in ([0, *versions] if versions else []) if str(version) not in have]
    if not missing:
        return
    from serve.policy.base import load_backbone, resolve_model
    from serve.settings import Settings

    cache_dir = Settings.load().cache_dir
    with state.timed("likelihoods"):
        backbone = load_backbone(resolve_model(settings.model, cache_dir), dtype="float32")
        for version in missing:
            progress.line(f"{state.folder.name}: likelihood of version {version}'s answers under the base")
            answers = list(state.answers(version).by_index().values())
            have[str(version)] = mean_nll(backbone, answers, progress=progress.tick)
            state.finish("nll", have)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the arms, print the table, write the JSON; returns the document."""
    options = _parser().parse_args(arguments)
    quick = {"votes": 60, "first_run": 30, "held_out": 60} if options.quick else {}
    options.training = tuple(options.training) if options.training else None
    given = {name: getattr(options, name) for name in LoopSettings.__dataclass_fields__}
    settings = LoopSettings(**{**quick, **{name: value for name, value in given.items() if value is not None}})
    if 2 * settings.first_run - 1 > settings.votes:
        raise SystemExit("--first-run is at most half of --votes: the later run must not start by itself")
    if not 1 <= settings.held_out <= len(held_out_prompts()):
        raise SystemExit(f"there are {len(held_out_prompts())} held-out prompts")
    arms = [cast(Arm, name) for name in options.arms.split(",")]
    if unknown := [name for name in arms if name not in ARMS]:
        raise SystemExit(f"unknown arms {', '.join(unknown)}; known: {', '.join(ARMS)}")
    name = f"loop-{settings.preference}" + ("-quick" if options.quick else "")
    work = options.work or ROOT / "benchmarks" / "work" / name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too

    progress = Progress()
    states: dict[Arm, ArmState] = {}
    for arm in arms:
        states[arm] = ArmState(work / arm, {"arm": arm, **settings.as_json()})
        ArmRun(arm, settings, states[arm], progress).play()
        add_likelihoods(states[arm], settings, progress)
    result = loop_document(states, settings.preference, {**settings.as_json(), "quick": options.quick})
    write_json(work / "result.json", result)
    if options.json is not None:
        write_json(options.json, result)
    print(summary(result))
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="60 votes, the first run at the 30th, 60 held-out prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result")
    parser.add_argument("--preference", choices=sorted(PREFERENCES), help="what the voters want (brevity)")
    parser.add_argument("--arms", default=",".join(ARMS), help="real, flipped, random; all by default")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where arms keep their state (benchmarks/work/...)")
    parser.add_argument("--model", help="another model than the default: a folder, a .gguf or a Hugging Face id")
    parser.add_argument("--votes", type=int, help="comparisons in all (150)")
    parser.add_argument("--first-run", type=int, help="votes at which the first run starts by itself (50)")
    parser.add_argument("--held-out", type=int, help="held-out prompts (all 224)")
    parser.add_argument("--voters", type=int, help="simulated voters, each with a cookie jar (5)")
    parser.add_argument("--noise", type=float, help="share of decided votes that fall the other way (0)")
    parser.add_argument("--max-tokens", type=int, help="answer limit everywhere (64)")
    parser.add_argument("--temperature", type=float, help="sampling temperature everywhere (0.8)")
    parser.add_argument("--seed", type=int, help="of held-out answers and mistakes")
    parser.add_argument(
        "--set", dest="training", action="append", type=str, metavar="KEY=VALUE", help="such as ppo.updates=8"
    )
    return parser


if __name__ == "__main__":
    main()
