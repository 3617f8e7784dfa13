"""The record's one door. `Store` is a file (database.py), what it keeps (conversations, comparisons, votes, voters,
ballots, runs, versions, exclusions, deeds), and the snapshot for a run. All SQL lives in this package.

    store = Store.open(DataFolder(Path("feedback.db")))
    prompt = store.record_prompt("anna", [Message("user", "Why is the sea blue?")])
    two = [NewCandidate(version=0, seed=1), NewCandidate(version=0, seed=2)]
    comparison = store.create_comparison("anna", prompt, two, Sampling(), evidence=True)
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from serve.feedback.ballots import Ballots, ballots
from serve.feedback.browsing import Browsing
from serve.feedback.comparisons import Comparisons
from serve.feedback.database import stamp
from serve.feedback.deeds import Deeds
from serve.feedback.entries import Ballot, HeadToHead, NewCandidate, SnapshotCounts
from serve.feedback.exclusions import Exclusions
from serve.feedback.runs import Runs
from serve.feedback.snapshot import write_snapshot
from serve.feedback.versions import Versions
from serve.feedback.voters import Voters

__all__ = ["HeadToHead", "NewCandidate", "SnapshotCounts", "Store", "stamp"]


class Store(Comparisons, Voters, Ballots, Runs, Versions, Exclusions, Browsing, Deeds):
    """Who asked, what was answered, how people voted, what was learned. Thread-safe; calls return after the commit."""

    def ballots(self) -> list[Ballot]:
        """Every standing ranking, tie and both_bad, the oldest first; without prompts and token ids."""
        with self.reading() as db:
            return list(ballots(db, whole=False))

    def votes_state(self) -> tuple[object, ...]:
        """Changes with what the board is made of: votes, also excluded or forgotten ones, versions, and what serves."""
        with self.reading() as db:
            row = db.execute(
                "SELECT count(*), max(created), (SELECT count(*) FROM versions),"
                " (SELECT number FROM versions WHERE status = 'serving'),"
                " (SELECT max(created) FROM exclusions), (SELECT max(lifted) FROM exclusions),"
                " (SELECT count(*) FROM exclusions) FROM votes"
            ).fetchone()
        return tuple(row)

    def snapshot(self, run_id: int, target: Path) -> SnapshotCounts:
        """Write what this run may learn from to `target`, and note the votes that it learns from as the run's.

        Repeatable: a later snapshot of the same run replaces the earlier one. Raises NotFound for an unknown run.
        """
        learns_from_votes = "reward" in self.run(run_id).stages
        with self.reading() as db:
            counts, vote_ids = write_snapshot(db, target, created=self._now())

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM run_votes WHERE run_id = ?", (run_id,))
            db.executemany(
                # A voter may have been forgotten since: the run keeps the count.
                "INSERT INTO run_votes (run_id, vote_id) VALUES (?, (SELECT id FROM votes WHERE id = ?))",
                [(run_id, vote_id) for vote_id in vote_ids if learns_from_votes],
            )

        self.writing(work)
        return counts
