"""What runs keep of the record, and how what was deleted leaves that, too.

A run learns from `snapshot.db`, and `rollouts.jsonl` holds what it asked the policy. A run that is on needs both: a
mark in its folder says that they go when it ends.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from serve.folder import DataFolder

FILES = ("snapshot.db", "rollouts.jsonl")
MARK = "delete-copies"

log = logging.getLogger(__name__)


def delete_copies(folder: DataFolder, since: datetime, active: int | None) -> None:
    """Delete those made since, also of runs that were moved aside; those of the active run when it ends."""
    for run in folder.runs.glob("*/"):
        if not any((run / name).exists() and (run / name).stat().st_mtime >= since.timestamp() for name in FILES):
            continue
        if active is not None and run == folder.run(active):
            (run / MARK).touch()
            log.warning("%s holds what was just deleted until its run has ended", run)
        else:
            _delete(run)


def run_ended(run: Path) -> None:
    """Delete a run's copies, if something in them was deleted while it was on."""
    if (run / MARK).exists():
        _delete(run)


def _delete(run: Path) -> None:
    for name in (*FILES, MARK):
        (run / name).unlink(missing_ok=True)
