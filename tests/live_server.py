"""The real server on a tiny model, as a subprocess, and somebody who votes there.

The preference is one that a random model's hidden states can tell: how many letters an answer has.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
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
    "DTYPE": "float32",
    # A few seconds of training; the gate's bounds on fluency mean nothing for a model that stammers from birth.
    "TRAINING__PPO__UPDATES": "10",
    "TRAINING__PPO__ROLLOUTS": "32",
    "TRAINING__PPO__MINIBATCHES": "2",
    "TRAINING__PPO__LEARNING_RATE": "0.003",
    "TRAINING__REWARD__EPOCHS": "1",
    "TRAINING__GATE__HELD_OUT_PROMPTS": "16",
    "TRAINING__GATE__MAX_KL": "100",
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
        self.cache = (model if model.is_dir() else folder) / "cache"  # all servers of a model share it
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HUSTINGS_")}
        self.environment = inherited | {f"HUSTINGS_{name}": value for name, value in SETTINGS.items()}
        self.arguments = ["--db", str(folder / "feedback.db"), "--model", str(model)]

    @contextmanager
    def running(self, *, end: signal.Signals = signal.SIGTERM) -> Iterator[httpx.Client]:
        """A client of the server, once it is healthy. Ends it with a signal: SIGTERM must stop it cleanly in 30 s."""
        command = [sys.executable, str(ROOT / "app.py"), *self.arguments, "--port", "0"]
        command += ["--cache-dir", str(self.cache)]
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
                wait_for("a healthy server", lambda: True if http.get("/health").is_success else None, 180)
                yield http
            process.send_signal(end)
            assert process.wait(30) == (0 if end == signal.SIGTERM else -end), log_path.read_text()
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
    """One blind comparison of six answers, ranked by preference; with seeds, the test says the same every time."""
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
