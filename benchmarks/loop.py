"""Does it learn? The whole loop on the real server, driven through the HTTP API alone.

Simulated voters with a hidden preference (benchmarks/voters.py) chat and vote in rounds: votes → run → swap → more
votes, all standing votes in each run. The first run starts by itself; later ones are triggered. After the last round
the base and all versions answer held-out prompts that share no template with those voted on, and the hidden preference
judges. Chains differ in their seed; two controls vote the other way round and by a coin. Each chain has a fresh data
folder and goes on where it was; `--keep` goes on after the finished chains of a result made elsewhere.

    python -m benchmarks.loop --preference brevity --rounds 100,300,1000 --chains 3 --keep --json FILE
    python -m benchmarks.loop --quick --arms real
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.client import Client, RequestFailed, chunk_version, persist
from benchmarks.fluency import SavedAnswer, mean_nll
from benchmarks.loop_result import chain_result, loop_document, summary
from benchmarks.loop_state import ArmState, Progress
from benchmarks.record import ROOT, write_json
from benchmarks.server import OPERATOR_TOKEN, Server
from benchmarks.voters import ARMS, EXACT, PREFERENCES, VOTERS, Arm, Voter, as_vote, ballot

NEVER = 1_000_000_000
"""So many new votes make a run due where runs are only triggered."""
FINAL = frozenset({"succeeded", "rejected", "failed", "cancelled"})
EVALUATED_TOGETHER = 8
HELD_OUT_SEED = 20_000
"""Of the first held-out answer; the next prompt takes the next."""
SHORT = 300
"""Votes to which every chain goes."""
READING = 2.0
"""Seconds between two turns of the chat that streams during a run; none once the gate is at work."""
SWAP_TIMEOUT = 180.0
SERVER_POLL = 1.0
CHAT = ("Good morning!", "Could we talk a little?", "What shall I do this afternoon?", "Please go on.")


@dataclass(frozen=True)
class LoopSettings:
    """What an arm's result depends on."""

    preference: str = "brevity"
    rounds: tuple[int, ...] = (100, 300)
    """Comparisons in all at the end of each round. The first run starts by itself at the first number."""
    held_out: int = 224
    exact: bool = False
    """Whether voters never err."""
    max_tokens: int = 64
    temperature: float = 0.8
    chain: int = 0
    """Chains with different numbers ask in another order, and their voters err elsewhere."""
    chat: bool = False
    """Whether somebody else keeps chatting, streamed, during the triggered runs."""
    model: str = "default"
    training: tuple[str, ...] = ()
    """Overrides of the training configuration, such as `ppo.updates=8`."""

    def as_json(self) -> dict[str, Any]:
        """By name, as JSON has it."""
        return {**asdict(self), "training": list(self.training), "rounds": list(self.rounds)}

    @property
    def people(self) -> tuple[Voter, ...]:
        """Who votes."""
        return EXACT * len(VOTERS) if self.exact else VOTERS

    def environment(self, *, min_new_votes: int) -> dict[str, str]:
        """What the server is told beyond its defaults."""
        overrides = (setting.partition("=") for setting in self.training)
        return {
            "HUSTINGS_MIN_NEW_VOTES": str(min_new_votes),
            "HUSTINGS_MAX_INTERVAL": "none",
            **{f"HUSTINGS_TRAINING__{key.upper().replace('.', '__')}": value for key, _, value in overrides},
        }


class ArmRun:
    """One chain, from the first chat to the last held-out answer."""

    def __init__(self, arm: Arm, settings: LoopSettings, state: ArmState, progress: Progress) -> None:
        self.arm = arm
        self.settings = settings
        self.state = state
        self._preference = PREFERENCES[settings.preference]
        self._prompts = self._preference.voted_prompts()
        random.Random(settings.chain).shuffle(self._prompts)
        self._progress = progress
        self._server: Server | None = None
        self._operator: Client | None = None
        self._voters: list[Client] = []

    def play(self) -> None:
        """All rounds that are not done yet, then the held-out prompts: a run learns on whatever was asked before it."""
        first = self.settings.rounds[0]
        for votes in self.settings.rounds:
            if votes in self.state.rounds:
                continue
            by_itself = self.arm == "real" and votes == first
            with self._serving(min_new_votes=first if by_itself else NEVER):
                self._check_restart()
                run = self._first_run(votes) if by_itself else self._triggered_run(votes)
                self.state.finish_round(votes, run)
        versions = self.state.versions()
        if left := [(version, todo) for version in (0, *versions) if versions and (todo := self._unanswered(version))]:
            with self._serving(min_new_votes=NEVER):
                self._check_restart()
                for version, todo in left:
                    self._answer_held_out(version, todo)

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
            saved = self.state.cookies or [{} for _ in self.settings.people]
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
            prompt = self._prompts[number % len(self._prompts)]
            limit, temperature = self.settings.max_tokens, self.settings.temperature
            comparison = persist(lambda: voter.compare(prompt, max_tokens=limit, temperature=temperature))
            candidates = sorted(comparison["candidates"], key=lambda candidate: candidate["position"])
            texts = [candidate["text"] for candidate in candidates]
            rng = random.Random(f"{self.settings.chain} {self.arm} {number}")
            person = self.settings.people[number % len(self._voters)]
            best = ballot(self._preference, prompt, *texts, arm=self.arm, voter=person, rng=rng)
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

    def _first_run(self, votes: int) -> dict[str, Any]:
        """The run that starts by itself at this vote, and not before."""
        if self.state.first_run_started is None:
            self._vote_until(votes - 1, "votes before the first run")
            time.sleep(3 * SERVER_POLL)
            # None where an earlier, killed benchmark had cast this vote already.
            early = len(self._ask_operator("GET", "/api/runs")) if len(self.state.voted()) < votes else None
            self._vote_until(votes, "votes before the first run")
            voted = time.monotonic()
            while not (runs := self._ask_operator("GET", "/api/runs")):
                if time.monotonic() - voted > 60:
                    raise RuntimeError(f"no run started by itself within a minute of vote {votes}")
                time.sleep(0.2)
            delay = time.monotonic() - voted
            self._say(f"run {runs[0]['id']} started by itself {delay:.1f} s after vote {votes}")
            started = {"run": runs[0]["id"], "trigger": runs[0]["trigger"], "early": early, "delay_seconds": delay}
            self.state.first_run_started = {**started, "votes": votes}
            self.state.save()
        with self.state.timed(f"run at {votes} votes"):
            # A run that failed leaves its votes new, and another one starts: the newest counts.
            run = self._await_run(max(run["id"] for run in self._ask_operator("GET", "/api/runs")))
            return {**run, "serving": self._settled_version(run)}

    def _check_restart(self) -> None:
        if not self.state.rounds:
            return
        expected, serving = list(self.state.rounds.values())[-1]["serving"], self._serving_version()
        self.state.restarts.append({"expected": expected, "serving": serving})
        self.state.save()
        self._say(f"after a restart version {serving} serves, as before" if serving == expected else "RESTART LOST IT")

    def _triggered_run(self, votes: int) -> dict[str, Any]:
        self._vote_until(votes, f"votes up to {votes}")
        if self.state.triggered is None:
            body = {"stages": ["reward", "ppo"], "force": True}
            self.state.triggered = int(self._ask_operator("POST", "/api/runs", body)["id"])
            self.state.save()
            self._say(f"run {self.state.triggered} triggered")
        chat = None
        if self.settings.chat and self.arm == "real":
            assert self._server is not None
            chat = StreamingChat(self._server.url, self.state, self.settings)
            chat.start()
        try:
            with self.state.timed(f"run at {votes} votes"):
                run = self._await_run(self.state.triggered, chat)
                return {**run, "serving": self._settled_version(run)}
        except RunBroke:
            self.state.triggered = None  # the next start triggers another
            self.state.save()
            raise
        finally:
            if chat is not None:
                chat.finish(until_version=self._serving_version())

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

    def _unanswered(self, version: int) -> list[tuple[int, str]]:
        """Held-out prompts that a version has not answered yet, by number."""
        have = self.state.answers(version).by_index()
        prompts = self._preference.held_out_prompts()[: self.settings.held_out]
        return [(i, p) for i, p in enumerate(prompts) if i not in have]

    def _answer_held_out(self, version: int, todo: Sequence[tuple[int, str]]) -> None:
        answers = self.state.answers(version)
        self._say(f"version {version} answers {len(todo)} held-out prompts")

        def answer(index: int, prompt: str) -> None:
            assert self._operator is not None
            operator, settings, seed = self._operator, self.settings, HELD_OUT_SEED + index
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


def add_likelihoods(state: ArmState, settings: LoopSettings, progress: Progress) -> None:
    """Mean NLL under the base of every version's saved answers, from the canonical weights."""
    have, versions = state.nll, state.versions()
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
            state.save()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the arms, print the table, write the JSON; returns the document."""
    options = _parser().parse_args(arguments)
    quick = {"rounds": (60,), "held_out": 60} if options.quick else {}
    options.training = tuple(options.training) if options.training else None
    given = {name: getattr(options, name, None) for name in LoopSettings.__dataclass_fields__}
    settings = LoopSettings(**{**quick, **{name: value for name, value in given.items() if value is not None}})
    if list(settings.rounds) != sorted(set(settings.rounds)) or settings.rounds[0] < 1:
        raise SystemExit("--rounds are rising numbers of votes, such as 100,300,1000")
    most = len(PREFERENCES[settings.preference].held_out_prompts())
    if not 1 <= settings.held_out <= most:
        raise SystemExit(f"there are {most} held-out prompts")
    arms = [cast(Arm, name) for name in options.arms.split(",")]
    if unknown := [name for name in arms if name not in ARMS]:
        raise SystemExit(f"unknown arms {', '.join(unknown)}; known: {', '.join(ARMS)}")
    name = f"loop-{settings.preference}-{settings.max_tokens}" + ("-quick" if options.quick else "")
    work = options.work or ROOT / "benchmarks" / "work" / name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too

    progress = Progress()
    file = options.json or work / "result.json"
    described = {**settings.as_json(), "quick": options.quick}
    finished = kept_chains(file, settings) if options.keep else {}
    for arm, chain, rounds in chains(arms, options.chains, settings.rounds):
        if (arm, chain, rounds) in finished:
            progress.line(f"{arm}, chain {chain}: kept from {file}")
            continue
        cell = replace(settings, chain=chain, rounds=rounds, chat=settings.chat and chain == 0)
        state = ArmState(work / f"{arm}-{chain}", {"arm": arm, **cell.as_json()})
        ArmRun(arm, cell, state, progress).play()
        add_likelihoods(state, settings, progress)
        finished[arm, chain, rounds] = chain_result(arm, state, PREFERENCES[settings.preference])
        write_json(file, loop_document(list(finished.values()), settings.preference, described))
    result = loop_document(list(finished.values()), settings.preference, described)
    print(summary(result))
    return result


Cell = tuple[Arm, int, tuple[int, ...]]
"""Arm, number and rounds of a chain."""


def kept_chains(file: Path, settings: LoopSettings) -> dict[Cell, dict[str, Any]]:
    """The chains of an earlier result. Raises SystemExit where they were played with other settings."""
    if not file.is_file():
        return {}
    saved = json.loads(file.read_text(encoding="utf-8"))
    known = settings.as_json()
    if differing := [
        name for name, value in known.items() if name != "rounds" and saved["settings"].get(name) != value
    ]:
        raise SystemExit(
            f"{file} was made with another {', '.join(differing)}; give another --json, or leave out --keep"
        )
    return {
        (chain["arm"], chain["chain"], tuple(found["votes"] for found in chain["rounds"])): chain
        for chain in saved["chains"]
    }


def chains(arms: Sequence[Arm], count: int, rounds: tuple[int, ...]) -> list[Cell]:
    """Arm, number and rounds of each chain: all go to `SHORT` votes, the first of the real ones to the end."""
    short = tuple(votes for votes in rounds if votes <= SHORT) or rounds[:1]
    return [
        (arm, chain, rounds if arm == "real" and chain == 0 else short)
        for arm in arms
        for chain in range(count if arm == "real" else 1)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of 60 votes, 60 held-out prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result, after every chain")
    parser.add_argument("--keep", action="store_true", help="don't play again the chains that --json holds already")
    parser.add_argument("--preference", choices=sorted(PREFERENCES), help="what the voters want (brevity)")
    parser.add_argument("--arms", default=",".join(ARMS), help="real, flipped, random; all by default")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where arms keep their state (benchmarks/work/...)")
    parser.add_argument("--model", help="another model than the default: a folder, a .gguf or a Hugging Face id")
    parser.add_argument("--rounds", type=_numbers, help="votes at the end of each round (100,300)")
    parser.add_argument("--chains", type=int, default=1, help="repetitions of the real arm with other seeds (1)")
    parser.add_argument("--held-out", type=int, help="held-out prompts (all 224)")
    parser.add_argument("--exact", action="store_true", default=None, help="voters never err")
    parser.add_argument("--chat", action="store_true", default=None, help="somebody streams during triggered runs")
    parser.add_argument("--max-tokens", type=int, help="answer limit everywhere (64)")
    parser.add_argument("--temperature", type=float, help="sampling temperature everywhere (0.8)")
    parser.add_argument("--set", dest="training", action="append", metavar="KEY=VALUE", help="such as ppo.updates=8")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
