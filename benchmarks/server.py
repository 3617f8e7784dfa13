"""The real server as a subprocess, and how much memory it and its children hold."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import httpx

from benchmarks.record import ROOT

START_TIMEOUT = 600.0
"""Seconds; the very first start converts the model."""
STOP_TIMEOUT = 45.0
OPERATOR_TOKEN = "benchmark-operator"  # noqa: S105  # guards nothing but this benchmark's own data


class Server:
    """`python app.py` over a data folder, from the moment it can answer until the end of the `with` block."""

    def __init__(self, data: Path, *, model: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.url = ""
        self.memory = Memory()
        self._arguments = ["--db", str(data / "feedback.db"), *(["--model", model] if model else [])]
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.data.mkdir(parents=True, exist_ok=True)
        stop_leftover(self.data)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HUSTINGS_") or k == "HUSTINGS_CACHE_DIR"}
        with (self.data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py"), *self._arguments, "--port", str(port)],
                cwd=ROOT,
                env={**kept, "HUSTINGS_OPERATOR_TOKEN": OPERATOR_TOKEN, **self._environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.data / "server.pid").write_text(str(self._process.pid))
        self.memory.watch(self._process.pid)
        ready = False
        try:
            ready = self._is_ready()
        finally:
            if not ready:
                self.__exit__()
        return self

    @property
    def pid(self) -> int:
        """Of the server's process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self.memory.stop()
        process, self._process = self._process, None
        code = process.poll()
        if code is None:
            _end(process.pid, process)
        (self.data / "server.pid").unlink(missing_ok=True)
        if code is not None:
            raise RuntimeError(f"the server ended by itself with code {code}: {self.last_words()}")

    def _is_ready(self) -> bool:
        """Wait until `/health` is 200; False when the process ended instead."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return True
            time.sleep(0.2)
        raise RuntimeError(f"the server was not ready after {START_TIMEOUT:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        log = self.data / "server.log"
        return log.read_text(errors="replace")[-800:].strip() if log.is_file() else ""


class Memory:
    """Peak resident memory of a process and all its descendants, their RSS summed once a second.

    Pages that two of them share are counted in each, so the sum is an upper bound.
    """

    def __init__(self) -> None:
        self.peak = 0
        """Bytes, server and descendants together."""
        self.peak_server = 0
        """Bytes, the server alone."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, pid: int) -> None:
        """Sample until `stop`."""
        self._thread = threading.Thread(target=self._sample, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, pid: int) -> None:
        while True:
            self.peak_server = max(self.peak_server, resident_bytes(pid))
            self.peak = max(self.peak, sum(resident_bytes(member) for member in family(pid)))
            if self._stopped.wait(1.0):
                return


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found.extend(children.get(member, ()))
    return found


def resident_bytes(pid: int) -> int:
    """RSS of one process; 0 once it has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def stop_leftover(data: Path) -> None:
    """End the server that an earlier, killed benchmark left on this folder; it would hold the database."""
    file = data / "server.pid"
    if not file.is_file():
        return
    pid = int(file.read_text())
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if str(data / "feedback.db") in command.split("\0"):
            _end(pid, None)
    file.unlink()


def _end(pid: int, process: subprocess.Popen[bytes] | None) -> None:
    """SIGTERM, patience, and only then SIGKILL to the group that the server leads."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None if process else not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if process:
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
