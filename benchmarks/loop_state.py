"""What an arm of the loop benchmark has done so far, on disk: a killed benchmark goes on where it was."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.client import Traffic
from benchmarks.fluency import SavedAnswer
from benchmarks.record import commit, write_json
from benchmarks.server import Memory
from training.reporter import drop_torn_line


class Lines:
    """A JSONL file that only grows; an unfinished last line, from a kill, is dropped. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        drop_torn_line(path)
        lines = path.read_bytes().splitlines() if path.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.rows.append(dict(row))


class ArmState:
    """One arm's folder: state.json, comparisons.jsonl, streams.jsonl, answers-vN.jsonl and the server's data/."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = folder / "state.json"
        saved = json.loads(self._file.read_text()) if self._file.is_file() else {}
        if saved and saved["settings"] != dict(settings):
            raise SystemExit(f"{folder} holds a benchmark with other settings; delete it, or give another --work")
        self.settings = dict(settings)
        self.commits: list[str] = list(dict.fromkeys([*saved.get("commits", []), commit()]))
        self.cookies: list[dict[str, str]] = saved.get("cookies", [])
        self.seconds: dict[str, float] = saved.get("seconds", {})
        self.peak_memory: dict[str, int] = saved.get("peak_memory", {"sum": 0, "server": 0})
        self.rounds: dict[int, dict[str, Any]] = {int(votes): run for votes, run in saved.get("rounds", {}).items()}
        """The run of each finished round, by the votes that it learned from."""
        self.first_run_started: dict[str, Any] | None = saved.get("first_run_started")
        """How the run came that nobody triggered."""
        self.triggered: int | None = saved.get("triggered")
        """The run of the round that is on, from the moment it was accepted."""
        self.restarts: list[dict[str, int]] = saved.get("restarts", [])
        """Which version served after each new start, and which should."""
        self.nll: dict[str, float] = saved.get("nll", {})
        """Of each version's held-out answers, under the base."""
        self.traffic = Traffic(saved.get("requests", 0), saved.get("failures", []))
        self._comparisons = Lines(folder / "comparisons.jsonl")
        self.streams = Lines(folder / "streams.jsonl")

    def save(self) -> None:
        """Write state.json whole."""
        write_json(
            self._file,
            {
                "settings": self.settings,
                "commits": self.commits,
                "cookies": self.cookies,
                "seconds": self.seconds,
                "peak_memory": self.peak_memory,
                "rounds": self.rounds,
                "first_run_started": self.first_run_started,
                "triggered": self.triggered,
                "restarts": self.restarts,
                "nll": self.nll,
                "requests": self.traffic.requests,
                "failures": self.traffic.failures,
            },
        )

    def finish_round(self, votes: int, run: dict[str, Any]) -> None:
        """A round is over; it is not played again."""
        self.rounds[votes] = run
        self.triggered = None
        self.save()

    def versions(self) -> list[int]:
        """Versions that this chain's runs made, refused ones too."""
        return [run["version"] for run in self.rounds.values() if run["version"] is not None]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add to a phase's wall time, whether it ends well or not."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - start
            self.save()

    def remember_memory(self, memory: Memory) -> None:
        """Keep the highest peaks of all servers of this arm."""
        for name, peak in (("sum", memory.peak), ("server", memory.peak_server)):
            self.peak_memory[name] = max(self.peak_memory[name], peak)
        self.save()

    def comparisons(self) -> dict[int, dict[str, Any]]:
        """The latest state of each comparison by its number: `asked`, then `voted`."""
        return {row["number"]: row for row in self._comparisons.rows}

    def note_comparison(self, row: Mapping[str, Any]) -> None:
        """A comparison was asked, or voted."""
        self._comparisons.add(row)

    def voted(self) -> list[dict[str, Any]]:
        """All comparisons that have their vote."""
        return [row for row in self.comparisons().values() if row["state"] == "voted"]

    def answers(self, version: int) -> Answers:
        """The held-out answers of a version."""
        return Answers(self.folder / f"answers-v{version}.jsonl")


class Answers:
    """One version's saved answers to the held-out prompts."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def add(self, answer: SavedAnswer) -> None:
        """Save one."""
        self._lines.add(asdict(answer))

    def by_index(self) -> dict[int, SavedAnswer]:
        """By the held-out prompt's number, in its order."""
        found = {row["index"]: SavedAnswer(**row) for row in self._lines.rows}
        return {index: found[index] for index in sorted(found)}


class Progress:
    """A line when something begins, and one a minute while it lasts."""

    def __init__(self, every: float = 60.0) -> None:
        self._every = every
        self._start = self._last = time.monotonic()

    def line(self, text: str) -> None:
        """Print now."""
        self._last = time.monotonic()
        minutes, seconds = divmod(int(self._last - self._start), 60)
        print(f"[{minutes:3d}:{seconds:02d}] {text}", flush=True)

    def tick(self, text: str) -> None:
        """Print if a minute has passed since the last line."""
        if time.monotonic() - self._last >= self._every:
            self.line(text)
