"""The data folder: the one place that knows where things lie.

DIR/feedback.db          the record
DIR/feedback.db.lock     held by the server that writes it; contains its pid
DIR/feedback.sock        the running server's owner-only socket, for the command line
DIR/secrets.json         cookie key and the hash of the operator token (mode 0600)
DIR/adapters/v0003/      a published version in PEFT's format, with manifest.json
DIR/runs/0007/           one training run
DIR/runs/0007/log.txt    what its trainer says
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFolder:
    """Everything the server keeps, named from the database's path."""

    db: Path

    @property
    def root(self) -> Path:
        """The folder that holds the database and everything beside it."""
        return self.db.resolve().parent

    @property
    def lock(self) -> Path:
        """Held with flock by the one process that writes the database."""
        return self.root / f"{self.db.name}.lock"

    @property
    def socket(self) -> Path:
        """The running server's owner-only socket."""
        return self.root / f"{self.db.stem}.sock"

    @property
    def secrets(self) -> Path:
        """Cookie key and hashed operator token."""
        return self.root / "secrets.json"

    @property
    def adapters(self) -> Path:
        """Published versions."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """Training runs."""
        return self.root / "runs"

    def adapter(self, version: int) -> Path:
        """Where a published version's adapter lies."""
        return self.adapters / f"v{version:04d}"

    def run(self, run: int) -> Path:
        """Where a run works."""
        return self.runs / f"{run:04d}"

    def run_log(self, run: int) -> Path:
        """What a run's trainer says."""
        return self.run(run) / "log.txt"
