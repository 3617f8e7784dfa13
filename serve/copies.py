"""What runs keep of the record, and how what was deleted leaves that, too.

A run learns from `snapshot.db`, and `rollouts.jsonl` holds what it asked the policy. A snapshot that was never finished
lies beside it as `snapshot.db.partial`. A run that is on needs them: a mark in its folder says that they go when it
ends.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from pathlib import Path

from serve.folder import DataFolder

SNAPSHOT = ("snapshot.db", "snapshot.db.partial", "snapshot.db.partial-journal")
FILES = (*SNAPSHOT, "rollouts.jsonl")
MARK = "delete-copies"

log = logging.getLogger(__name__)


def delete_copies(folder: DataFolder, since: datetime, active: int | None) -> None:
    """Delete those of runs whose snapshot was made since, also of runs that were moved aside.

    Those of the active run are marked, whose snapshot may be in the making: `settle` deletes them when it has ended.
    """
    for run in folder.runs.glob("*/"):
        made = _made(run)
        if active is not None and run == folder.run(active):
            if made is None or made >= since.timestamp():
                (run / MARK).touch()
                log.warning("%s holds what was just deleted until its run has ended", run)
        elif made is not None and made >= since.timestamp():
            _delete(run)


def settle(folder: DataFolder, active: int | None) -> None:
    """Delete what was marked, of every run that is not on."""
    for mark in folder.runs.glob(f"*/{MARK}"):
        if active is None or mark.parent != folder.run(active):
            _delete(mark.parent)


def _made(run: Path) -> float | None:
    """When a snapshot was last written to, whole or not."""
    times = []
    for name in SNAPSHOT:
        with contextlib.suppress(FileNotFoundError):
            times.append((run / name).stat().st_mtime)
    return max(times, default=None)


def _delete(run: Path) -> None:
    for name in (*FILES, MARK):
        (run / name).unlink(missing_ok=True)
