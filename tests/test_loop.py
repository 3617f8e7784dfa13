"""The loop, end to end: the real server on a tiny model, votes over HTTP, a run that starts by itself, a hot-swap."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.live_server import ENDED, OPERATOR, Server, vote, wait_for


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
        # 1. Votes, one short of enough.
        for number in range(49):
            vote(http, number)

        # 2. The fiftieth starts a run by itself, while somebody keeps chatting.
        chatter = Chatter(http.base_url)
        chatter.start()
        vote(http, 49)
        first = wait_for(
            "the run's end",
            lambda: ended(http, 1) if http.get("/api/runs/1", headers=OPERATOR).is_success else None,
            120,
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
        mine = http.get("/api/me").raise_for_status().json()["votes"]
        assert len(mine) == 50
        lessons = [lesson for v in mine for lesson in v["trained"]]
        assert [(x["run"], x["status"], x["version"]) for x in lessons] == [(1, "succeeded", 1)] * 50
        assert all(0 < v["trained"][0]["win_rate"] <= 1 for v in mine)

        # 4. The server stops in the middle of a second run.
        trigger = {"force": True, "settings": {"ppo": {"updates": 1000}}}
        assert http.post("/api/runs", json=trigger, headers=OPERATOR).status_code == 202
        wait_for("PPO", lambda: True if run(http, 2)["stage"] == "ppo" else None, 120)

    with server.running() as http:
        # 5. What was promoted serves, and the run goes on where it was.
        assert http.get("/health").json()["version"] == 1
        wait_for("the run's return", lambda: True if run(http, 2)["status"] == "running" else None, 20)
        assert http.post("/api/runs/2/cancel", headers=OPERATOR).is_success
        assert run(http, 2)["status"] == "cancelled"

        # 6. One command takes the version back.
        assert server.command("rollback") == {"serving": 0}
        assert http.get("/health").json()["version"] == 0
        listed = http.get("/api/versions", headers=OPERATOR).json()["versions"]
        assert {v["version"]: v["status"] for v in listed} == {0: "serving", 1: "rolled_back"}
        assert stream(http) == {"hustings-v0"}
    assert not (tmp_path / "feedback.sock").exists()
