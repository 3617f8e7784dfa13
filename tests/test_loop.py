"""The loop, end to end: the real server on a tiny model, votes over HTTP, a run that starts by itself, a hot-swap.

The preference is one that a random model's hidden states can tell: how many letters an answer has.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

ROOT = Path(__file__).parent.parent
OPERATOR = {"Authorization": "Bearer secret"}
SETTINGS = {
    "OPERATOR_TOKEN": "secret",
    "MIN_NEW_VOTES": "50",
    "MAX_INTERVAL": "none",
    "MAX_TOKENS": "8",
    "TEMPERATURE": "0.3",  # what a random model says is then less random, and fifty votes say something about it
    "THREADS": "1",
    # A few seconds of training; the gate's bounds on fluency mean nothing for a model that stammers from birth.
    "TRAINING__PPO__UPDATES": "10",
    "TRAINING__PPO__ROLLOUTS": "32",
    "TRAINING__PPO__LEARNING_RATE": "0.003",
    "TRAINING__REWARD__EPOCHS": "1",
    "TRAINING__GATE__HELD_OUT_PROMPTS": "16",
    "TRAINING__GATE__MAX_NLL_RISE": "100",
    "TRAINING__GATE__MIN_DISTINCT": "0",
    "TRAINING__GATE__MAX_REPETITION_RISE": "1",
    "TRAINING__GATE__LENGTH_FACTOR": "1000",
    "TRAINING__GATE__MAX_CAPPED_RISE": "1",
    "TRAINING__GATE__MAX_REFUSAL_RISE": "1",
}
ENDED = ("succeeded", "rejected", "failed", "cancelled")
T = TypeVar("T")


def letters(text: str) -> int:
    """What the voter likes."""
    return sum(character.isalpha() for character in text)


def wait_for(what: str, look: Callable[[], T | None], seconds: float) -> T:
    """The first result that is not None."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {seconds} s")


class Server:
    """`python app.py` in a folder of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HUSTINGS_")}
        self.environment = inherited | {f"HUSTINGS_{name}": value for name, value in SETTINGS.items()}
        self.arguments = ["--db", str(folder / "feedback.db"), "--model", str(model)]

    @contextmanager
    def running(self) -> Iterator[httpx.Client]:
        """A client of the server, once it is healthy. Ends it with SIGTERM: it must stop cleanly in 30 s."""
        command = [sys.executable, str(ROOT / "app.py"), *self.arguments, "--port", "0"]
        command += ["--cache-dir", str(self.folder / "cache")]
        log_path = self.folder / "server.log"
        with log_path.open("a") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, log_path.read_text()
            with httpx.Client(base_url=address[0], timeout=30) as http:
                wait_for("a healthy server", lambda: True if http.get("/health").is_success else None, 60)
                yield http
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log_path.read_text()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def command(self, *arguments: str) -> Any:
        """The command line beside the running server."""
        command = [sys.executable, str(ROOT / "app.py"), *arguments, "--json", *self.arguments[:2]]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def vote(http: httpx.Client, number: int) -> None:
    """One blind comparison of six answers, ranked by the voter's preference; the seed makes the test say the same again."""
    prompt = [{"role": "user", "content": f"Question {number}: what is {number * 37 % 101}?"}]
    body = {"messages": prompt, "k": 6, "seed": 10 * number}
    comparison = http.post("/api/comparisons", json=body).raise_for_status().json()
    assert "revealed" not in comparison
    groups: dict[int, list[str]] = {}
    for candidate in comparison["candidates"]:
        groups.setdefault(letters(candidate["text"]), []).append(candidate["id"])
    ranking = [groups[liked] for liked in sorted(groups, reverse=True)]
    answer = http.post(f"/api/comparisons/{comparison['id']}/vote", json={"ranking": ranking})
    assert answer.status_code == 201
    assert set(answer.json()["revealed"]) == {c["id"] for c in comparison["candidates"]}


def stream(http: httpx.Client) -> set[str]:
    """One streamed chat; the versions that its pieces name."""
    body = {"model": "hustings", "stream": True, "messages": [{"role": "user", "content": "Talk to me."}]}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return {json.loads(line)["system_fingerprint"] for line in lines[:-1]}


class Chatter(threading.Thread):
    """Somebody who never stops chatting: a hot-swap may not drop or mix an answer."""

    def __init__(self, address: httpx.URL) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.answers: list[set[str]] = []
        self.failures: list[Exception] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Chat until told."""
        with httpx.Client(base_url=self.address, timeout=30) as http:
            while not self.enough.is_set():
                try:
                    self.answers.append(stream(http))
                except Exception as error:  # noqa: BLE001  # the test looks at them
                    self.failures.append(error)
                time.sleep(0.1)


def test_votes_become_a_version_that_serves_survives_a_restart_and_can_be_rolled_back(
    tmp_path: Path, tiny_model: Path
) -> None:
    server = Server(tmp_path, tiny_model)

    def run(http: httpx.Client, number: int) -> Any:
        return http.get(f"/api/runs/{number}", headers=OPERATOR).raise_for_status().json()

    def ended(http: httpx.Client, number: int) -> Any:
        found = run(http, number)
        return found if found["status"] in ENDED else None

    with server.running() as http:
        # 1. Votes. One short of enough, nothing happens.
        for number in range(49):
            vote(http, number)
        time.sleep(1.5)  # longer than the scheduler's tick
        assert http.get("/api/runs", headers=OPERATOR).json() == []
        assert server.command("status")["new_votes"] == 49

        # 2. The fiftieth starts a run by itself, while somebody keeps chatting.
        chatter = Chatter(http.base_url)
        chatter.start()
        vote(http, 49)
        first = wait_for(
            "the run's end",
            lambda: ended(http, 1) if http.get("/api/runs/1", headers=OPERATOR).is_success else None,
            60,
        )
        log = (tmp_path / "runs" / "0001" / "log.txt").read_text()
        assert first["status"] == "succeeded", (first["error"], first["report"], log)
        assert (first["trigger"], first["version"]) == ("votes", 1)
        assert first["report"]["reward"]["accuracy"]["low"] > 0.5

        # 3. Its version serves without a restart; each answer was written whole by one version.
        wait_for("the swap", lambda: True if http.get("/health").json()["version"] == 1 else None, 10)
        wait_for("an answer by it", lambda: True if {"hustings-v1"} in chatter.answers else None, 10)
        chatter.enough.set()
        chatter.join(10)
        assert chatter.failures == []
        assert all(len(versions) == 1 for versions in chatter.answers)
        assert [{"hustings-v0"}, {"hustings-v1"}] == [
            v for i, v in enumerate(chatter.answers) if v not in chatter.answers[:i]
        ]
        trained = http.get("/api/me").raise_for_status().text
        assert '"votes"' in trained

        # 4. The server stops in the middle of a second run.
        trigger = {"force": True, "settings": {"ppo": {"updates": 1000}}}
        assert http.post("/api/runs", json=trigger, headers=OPERATOR).status_code == 202
        wait_for("PPO", lambda: True if run(http, 2)["stage"] == "ppo" else None, 60)

    with server.running() as http:
        # 5. What was promoted serves, and the run goes on where it was.
        assert http.get("/health").json()["version"] == 1
        wait_for("the run's return", lambda: True if run(http, 2)["status"] == "running" else None, 20)
        assert http.post("/api/runs/2/cancel", headers=OPERATOR).is_success
        assert run(http, 2)["status"] == "cancelled"

        # 6. One command takes the version back.
        assert server.command("rollback") == {"serving": 0}
        assert http.get("/health").json()["version"] == 0
        versions = {v["version"]: v["status"] for v in server.command("versions")["versions"]}
        assert versions == {0: "serving", 1: "rolled_back"}
        assert stream(http) == {"hustings-v0"}
    assert not (tmp_path / "feedback.sock").exists()
