"""A stand-in for the server, for tests of its clients: the same HTTP contract, answers at once, learns by decree.

Version N's answers are N × 4 words shorter than the base's, so a preference for brevity sees every version win.
"""

from __future__ import annotations

import json
import random
import re
import threading
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

POLLS_OF_A_RUN = 3
_VOCABULARY = (
    "some",
    "people",
    "walk",
    "in",
    "the",
    "rain",
    "because",
    "it",
    "smells",
    "of",
    "stone",
    "and",
    "gardens",
)


class FakeMemory:
    peak = 3_000_000_000
    peak_server = 1_000_000_000


class Data:
    """What a data folder would keep across restarts."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.voters: dict[str, int] = {}
        self.comparisons: dict[str, dict[str, Any]] = {}
        self.votes: dict[str, str] = {}
        self.runs: list[dict[str, Any]] = []
        self.serving = 0
        self.refused: list[str] = []
        self.learned = 0
        """Votes that runs have taken."""
        self.runs_before: list[int] = []
        """For each answer by a version of the caller's choice: how many runs there had been."""


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64  # of the five by default the sixth of eight clients waits a second to try again


class FakeServer:
    """Stands in for benchmarks.server.Server."""

    kept: ClassVar[dict[Path, Data]] = {}
    outcomes: ClassVar[list[str]] = []
    """How the runs end, in order; those beyond succeed."""
    faults: ClassVar[dict[str, int]] = {}
    """How often a call still fails with 503."""

    def __init__(self, data: Path, *, model: str | None = None, environment: dict[str, str] | None = None) -> None:
        self.data = self.kept.setdefault(data, Data())
        self.min_new_votes = int((environment or {})["HUSTINGS_MIN_NEW_VOTES"])
        self.memory = FakeMemory()
        self.url = ""

    def __enter__(self) -> Self:
        bound = type("Bound", (_Handler,), {"server_side": self})
        self._http = _Listener(("127.0.0.1", 0), bound)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def start_run(self, trigger: str) -> dict[str, Any]:
        outcome = self.outcomes[len(self.data.runs)] if len(self.data.runs) < len(self.outcomes) else "succeeded"
        run = {
            "id": len(self.data.runs) + 1, "status": "running", "trigger": trigger, "stage": "ppo", "progress": 0.5,
            "eta_seconds": 9.0, "version": None, "metrics": {"kl": 0.1}, "report": None, "error": None,
            "polls": 0, "outcome": outcome,
        }  # fmt: skip
        self.data.runs.append(run)
        self.data.learned = len(self.data.votes)
        return run

    def poll(self, run: dict[str, Any]) -> dict[str, Any]:
        run["polls"] += 1
        if run["status"] == "running" and run["polls"] >= POLLS_OF_A_RUN:
            run["status"] = run["outcome"]
            run["report"] = {"reasons": [] if run["status"] == "succeeded" else ["too few votes"]}
            if run["status"] == "succeeded":
                run["report"]["gate"] = {"new": {"kl": 1.5, "length": 30}}
                run["version"] = run["id"]
                self.data.serving = run["id"]
        return run

    def text(self, version: int, seed: object) -> str:
        rng = random.Random(f"{version} {seed}")
        return " ".join(rng.choices(_VOCABULARY, k=max(1, 30 + rng.randrange(4) - 4 * version)))


class _Handler(BaseHTTPRequestHandler):
    server_side: FakeServer
    wbufsize = -1  # head and body in one packet, or each answer waits for a delayed ACK

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        fake, data = self.server_side, self.server_side.data
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("hustings_voter")
        voter = cookie.value if cookie else f"voter{random.random()}"
        with data.lock:
            call = f"{method} {self.path}"
            if fake.faults.get(call, 0) > 0:
                fake.faults[call] -= 1
                self._answer(503, {"error": {"code": "unavailable", "message": "busy"}}, voter)
                return
            if call == "GET /health":
                self._answer(200, {"status": "ok", "version": data.serving}, voter)
            elif call == "GET /api/me":
                self._answer(200, {}, voter)
            elif call == "POST /api/comparisons":
                self._answer(201, self._compare(data, voter, body), voter)
            elif found := re.fullmatch(r"POST /api/comparisons/(.+)/vote", call):
                self._vote(data, voter, found[1], body)
            elif call == "GET /api/runs":
                self._answer(200, data.runs[::-1], voter)
            elif found := re.fullmatch(r"GET /api/runs/(\d+)", call):
                self._answer(200, fake.poll(data.runs[int(found[1]) - 1]), voter)
            elif call == "POST /api/runs":
                self._answer(202, {"id": fake.start_run("operator")["id"], "status": "queued"}, voter)
            elif call == "POST /v1/chat/completions":
                self._complete(body, voter)
            else:
                self._answer(404, {"error": {"code": "not_found", "message": call}}, voter)

    def _compare(self, data: Data, voter: str, body: dict[str, Any]) -> dict[str, Any]:
        key = f"c{len(data.comparisons)}"
        data.voters[voter] = data.voters.get(voter, 0) + 1
        candidates = [
            {
                "id": f"{key}-{i}",
                "position": 1 - i,
                "text": self.server_side.text(data.serving, (key, i)),
                "finish_reason": "stop",
            }
            for i in range(2)
        ]
        data.comparisons[key] = {"voter": voter, "candidates": candidates, "body": body, "version": data.serving}
        return {"id": key, "candidates": candidates}

    def _vote(self, data: Data, voter: str, comparison_id: str, body: dict[str, Any]) -> None:
        comparison = data.comparisons.get(comparison_id)
        if comparison is None or comparison["voter"] != voter:
            self._answer(404, {"error": {"code": "not_found", "message": "not yours"}}, voter)
            return
        key = self.headers["Idempotency-Key"]
        if data.votes.get(comparison_id, key) != key:
            self._answer(409, {"error": {"code": "already_voted", "message": "voted"}}, voter)
            return
        data.votes[comparison_id] = key
        comparison["vote"] = body
        if len(data.votes) - data.learned >= self.server_side.min_new_votes:
            self.server_side.start_run("votes")
        revealed = {c["id"]: comparison["version"] for c in comparison["candidates"]}
        self._answer(201, {"id": f"v-{comparison_id}", "revealed": revealed}, voter)

    def _complete(self, body: dict[str, Any], voter: str) -> None:
        serving = self.server_side.data.serving
        version = serving if body["model"] == "hustings" else int(body["model"].rpartition("-v")[2])
        text = self.server_side.text(version, body.get("seed"))
        if body["model"] != "hustings":
            self.server_side.data.runs_before.append(len(self.server_side.data.runs))
        named = {"model": body["model"], "system_fingerprint": f"hustings-v{version}"}
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._answer(200, {**named, "choices": [choice]}, voter)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in text.split():
            chunk = {**named, "choices": [{"delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, status: int, body: Any, voter: str) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Set-Cookie", f"hustings_voter={voter}; Path=/; HttpOnly; SameSite=Lax")
        self.end_headers()
        self.wfile.write(payload)
