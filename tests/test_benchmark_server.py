"""The server as a subprocess of a benchmark, its memory and its client."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import loop_result, swaps
from benchmarks.client import chunk_version
from benchmarks.crowd import Crowd
from benchmarks.server import OPERATOR_TOKEN, Memory, Server, family, resident_bytes, stop_leftover


def test_an_answer_that_another_version_finished_is_mixed() -> None:
    own, other = [-1.0, -2.0, -3.0, -1.5, -0.5], [-2.0, -1.0, -1.0, -2.5, -1.5]
    assert not swaps.is_mixed(own, own, [other])
    assert not swaps.is_mixed([x + 0.01 for x in own], own, [other])
    assert swaps.is_mixed([*own[:3], *other[3:]], own, [other])
    assert swaps.is_mixed([*own[:4], *other[4:]], own, [other])
    assert not swaps.is_mixed(own, own, [[*other[:4], own[4]]])  # where both agree nothing can be told


def test_memory_that_grows_shows() -> None:
    flat = Crowd(memory=[100] * 15 + [200] * 25)
    assert flat.growth == 1
    leak = Crowd(memory=list(range(100, 200)))
    assert leak.growth == 194.5 / 154.5


def test_the_stream_tells_one_swap_from_mixed_answers() -> None:
    rows: list[dict[str, Any]] = [
        {"versions": [1], "chunks": 5, "serving": 1},
        {"versions": [1], "chunks": 5, "serving": 2},
        {"error": "503"},
        {"versions": [1, 2], "chunks": 5, "serving": 2},
        {"versions": [2], "chunks": 5, "serving": 2},
    ]
    facts = loop_result.stream_facts(rows)
    assert facts["versions"] == [{"version": 1, "answers": 2}, {"version": 2, "answers": 1}]
    assert (facts["failed"], facts["mixed"], facts["in_flight_at_swap"]) == (1, 1, 1)


def test_a_chunk_names_its_version() -> None:
    assert chunk_version({"model": "hustings", "system_fingerprint": "hustings-v12"}) == 12
    assert chunk_version({"model": "hustings-v3"}) == 3
    assert chunk_version({"model": "hustings"}) is None


def test_memory_sums_a_process_and_its_descendants() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        deadline = time.monotonic() + 10
        while len(family(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(family(parent.pid)) == 2
        assert os.getpid() not in family(parent.pid)
        assert sum(map(resident_bytes, family(parent.pid))) > resident_bytes(parent.pid) > 1_000_000
        parent.communicate(b"\n", timeout=10)
    assert resident_bytes(parent.pid) == 0


def test_memory_keeps_the_peak() -> None:
    memory = Memory()
    memory.watch(os.getpid())
    memory.stop()
    assert memory.peak >= memory.peak_server > 10_000_000


def test_a_leftover_server_is_stopped_and_a_stranger_with_its_pid_is_not(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, str(tmp_path / "feedback.db")]) as leftover, subprocess.Popen(sleep) as stranger:
        (tmp_path / "server.pid").write_text(str(stranger.pid))
        stop_leftover(tmp_path)
        assert stranger.poll() is None
        stranger.kill()
        (tmp_path / "server.pid").write_text(str(leftover.pid))
        started = time.monotonic()
        threading.Thread(target=leftover.wait, daemon=True).start()  # until then a dead child stays in /proc
        stop_leftover(tmp_path)
        assert leftover.wait(5) == -15 and time.monotonic() - started < 10
    assert not (tmp_path / "server.pid").exists()


STAND_IN = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr([sys.argv[1:], {k: v for k, v in os.environ.items() if "HUSTINGS" in k}]).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_the_server_gets_its_own_settings_and_its_end_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(STAND_IN)
    monkeypatch.setattr("benchmarks.server.ROOT", tmp_path)
    monkeypatch.setenv("HUSTINGS_PROMOTION", "manual")
    with Server(tmp_path / "data", model="m", environment={"HUSTINGS_MIN_NEW_VOTES": "7"}) as server:
        arguments, environment = ast.literal_eval(httpx.get(f"{server.url}/health").text)
        assert arguments[:4] == ["--db", str(tmp_path / "data" / "feedback.db"), "--model", "m"]
        assert environment == {"HUSTINGS_MIN_NEW_VOTES": "7", "HUSTINGS_OPERATOR_TOKEN": OPERATOR_TOKEN}
        pid = int((tmp_path / "data" / "server.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    with (
        pytest.raises(RuntimeError, match=r"by itself with code 3: (.|\n)*last words"),
        Server(tmp_path / "data") as server,
    ):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{server.url}/die")
        time.sleep(0.5)


def test_a_server_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text("raise SystemExit('no model')")
    monkeypatch.setattr("benchmarks.server.ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="code 1: no model"), Server(tmp_path / "data"):
        pass
