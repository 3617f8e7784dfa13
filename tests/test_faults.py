"""What is lost when the server is killed in the middle: nothing that was acknowledged."""

from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.live_server import OPERATOR, Server, vote, wait_for

pytestmark = pytest.mark.faults


def test_a_killed_server_keeps_every_acknowledged_vote_and_its_run_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    server = Server(tmp_path, tiny_model)
    acknowledged: list[int] = []

    def vote_until_it_dies(address: httpx.URL, voter: int) -> None:
        with httpx.Client(base_url=address, timeout=30) as http, suppress(httpx.TransportError):
            for number in range(1000):
                vote(http, 1000 * voter + number)
                acknowledged.append(number)

    with ThreadPoolExecutor(2) as people, server.running(end=signal.SIGKILL) as http:
        voting = [people.submit(vote_until_it_dies, http.base_url, voter) for voter in range(2)]
        wait_for("some votes", lambda: True if len(acknowledged) >= 20 else None, 60)
        body = {"force": True, "settings": {"ppo": {"updates": 1000}}}
        assert http.post("/api/runs", json=body, headers=OPERATOR).status_code == 202

        def started() -> bool | None:
            return True if http.get("/api/runs/1", headers=OPERATOR).json()["status"] == "running" else None

        wait_for("the run", started, 30)
    for voter in voting:
        voter.result()
    # Killed. A vote in flight may have been committed without its acknowledgement, one a voter.
    with closing(sqlite3.connect(tmp_path / "feedback.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        votes = db.execute("SELECT count(*) FROM votes").fetchone()[0]
    assert len(acknowledged) <= votes <= len(acknowledged) + 2

    with server.running() as http:
        wait_for("the same run again", started, 60)
        assert [run["id"] for run in http.get("/api/runs", headers=OPERATOR).json()] == [1]
        assert http.post("/api/runs/1/cancel", headers=OPERATOR).is_success


def test_a_broken_adapter_does_not_keep_the_server_from_starting(tmp_path: Path, tiny_model: Path) -> None:
    server = Server(tmp_path, tiny_model)
    with server.running() as http:
        for number in range(50):
            vote(http, number)
        wait_for("the swap", lambda: True if http.get("/health").json()["version"] == 1 else None, 120)
    weights = tmp_path / "adapters" / "v0001" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with server.running() as http:
        assert http.get("/health").json()["version"] == 0
        assert http.post("/api/versions/1/promote", headers=OPERATOR).status_code == 422
    assert "version 1 cannot serve" in (tmp_path / "server.log").read_text()
