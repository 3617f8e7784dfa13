"""The engine of a process that only keeps the record: versions can be switched, nothing is answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve.engine import CandidateRequest, Generation
from serve.errors import Unavailable
from serve.records import Message, Sampling


class AbsentEngine:
    """Stands where a command works on the database with no server running."""

    model_name = "none"
    context_length = 0
    waiting = 0

    def __init__(self, serving: int) -> None:
        self.serving = serving

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Raises Unavailable."""
        raise _refusal()

    def load(self, version: int, adapter: Path | None) -> None:
        """Nothing is resident here; the server loads it when it starts."""

    def serve(self, version: int) -> None:
        """Follow the record."""
        self.serving = version

    def submit(self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling) -> Generation:
        """Raises Unavailable."""
        raise _refusal()

    def close(self) -> None:
        """Nothing to end."""


def _refusal() -> Unavailable:
    return Unavailable("no server runs on this database; start it with `python app.py`")
