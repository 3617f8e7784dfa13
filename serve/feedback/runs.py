"""Training runs, their metrics, and the votes they learned from."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from serve.errors import InvalidInput, NotFound, RunActive
from serve.feedback.database import Database, moment, stamp
from serve.feedback.deeds import log
from serve.feedback.entries import MetricPoint
from serve.records import ACTIVE, STAGES, Run, Stage

UPDATABLE = frozenset(
    {"status", "stage", "progress", "eta_seconds", "started", "finished", "version", "report", "error"}
)


class Runs(Database):
    """What the scheduler remembers."""

    def create_run(
        self,
        trigger: Literal["votes", "interval", "operator"],
        stages: Sequence[Stage],
        config: Mapping[str, Any],
        *,
        who: str = "scheduler",
    ) -> Run:
        """Queue a run, and log who did. Raises RunActive while another is not over, InvalidInput for unknown stages."""
        if not stages or not set(stages) <= set(STAGES):
            raise InvalidInput(f"stages are some of {', '.join(STAGES)}")

        def work(db: sqlite3.Connection) -> Run:
            active = db.execute(f"SELECT id FROM runs WHERE status IN {ACTIVE}").fetchone()
            if active:
                raise RunActive(active["id"])
            run_id = db.execute(
                "INSERT INTO runs (status, trigger, stages, config, created) VALUES ('queued', ?, ?, ?, ?)",
                (trigger, json.dumps(list(stages)), json.dumps(dict(config)), self._now()),
            ).lastrowid
            assert run_id is not None
            log(db, who, f"started run {run_id}" + f" by {trigger}" * (trigger != "operator"), self._now())
            return _load(db, run_id)

        return self.writing(work)

    def update_run(self, run_id: int, *, who: str | None = None, **fields: Any) -> Run:
        """Change some of status, stage, progress, eta_seconds, started, finished, version, report, error.

        `who` has the new status logged. Raises NotFound for an unknown run, TypeError for an unknown field.
        """
        if unknown := fields.keys() - UPDATABLE:
            raise TypeError(f"update_run() got unexpected fields {sorted(unknown)}")

        def work(db: sqlite3.Connection) -> Run:
            run = _load(db, run_id)
            if not fields:
                return run
            columns = ", ".join(f"{name} = ?" for name in fields)
            db.execute(
                f"UPDATE runs SET {columns} WHERE id = ?",  # the names are checked above
                (*(_stored(value) for value in fields.values()), run_id),
            )
            if who is not None:
                log(db, who, f"{fields['status']} run {run_id}", self._now())
            return _load(db, run_id)

        return self.writing(work)

    def add_run_metrics(self, run_id: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store lines of metrics.jsonl; the run's stage, progress and time left follow the last one.

        Lines that come again (a resumed run, a restarted server) replace what they said before; values that are not
        finite are left out.
        """
        lines = list(rows)
        if not lines:
            return

        def work(db: sqlite3.Connection) -> None:
            _load(db, run_id)
            db.executemany(
                "INSERT OR REPLACE INTO run_metrics (run_id, stage, name, step, value, time) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (run_id, line["stage"], name, line["step"], float(value), stamp(moment(line["time"])))
                    for line in lines
                    for name, value in line.get("metrics", {}).items()
                    if value is not None and math.isfinite(value)
                ],
            )
            last = lines[-1]
            db.execute(
                "UPDATE runs SET stage = ?, progress = coalesce(?, progress), eta_seconds = ? WHERE id = ?",
                (last["stage"], last.get("progress"), last.get("eta_seconds"), run_id),
            )

        self.writing(work)

    def run(self, run_id: int) -> Run:
        """One run with the latest value of each metric. Raises NotFound."""
        with self.reading() as db:
            return _load(db, run_id)

    def run_config(self, run_id: int) -> dict[str, Any]:
        """What the run was created with. Raises NotFound."""
        with self.reading() as db:
            row = db.execute("SELECT config FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no run {run_id}")
        return dict(json.loads(row["config"]))

    def runs(self, limit: int | None = 100, *, metrics: bool = True) -> list[Run]:
        """The newest first; with `limit` None all of them. `metrics` False leaves those out: they take long to find."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT * FROM runs ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)
            ).fetchall()
            return _runs_from(db, rows, metrics=metrics)

    def runs_by_status(self) -> dict[str, int]:
        """How many runs there are of each status."""
        with self.reading() as db:
            rows = db.execute("SELECT status, count(*) AS number FROM runs GROUP BY status ORDER BY status")
            return {row["status"]: row["number"] for row in rows}

    def schedule(self) -> dict[str, str]:
        """What has been changed of the schedule: setting → value, as the environment would have it."""
        with self.reading() as db:
            return {row["name"]: row["value"] for row in db.execute("SELECT name, value FROM schedule")}

    def change_schedule(self, changes: Mapping[str, str], *, who: str) -> None:
        """Change some of it, and log that."""

        def work(db: sqlite3.Connection) -> None:
            now = self._now()
            for name, value in changes.items():
                db.execute(
                    "INSERT INTO schedule (name, value, who, created) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = excluded.value, who = excluded.who, created = excluded.created",
                    (name, value, who, now),
                )
            if changes:
                log(db, who, "set " + ", ".join(f"{name} to {value}" for name, value in changes.items()), now)

        self.writing(work)

    def active_run(self) -> Run | None:
        """The run that is queued, running or interrupted."""
        with self.reading() as db:
            row = db.execute(f"SELECT * FROM runs WHERE status IN {ACTIVE}").fetchone()
            return row and _runs_from(db, [row])[0]

    def run_metrics(self, run_id: int, name: str | None = None) -> list[MetricPoint]:
        """A run's curves (or one of them), stage by stage, in order of step."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT * FROM run_metrics WHERE run_id = ? AND (name = ? OR ? IS NULL)"
                " ORDER BY time, stage, name, step",
                (run_id, name, name),
            ).fetchall()
        return [MetricPoint(r["stage"], r["step"], r["name"], r["value"], moment(r["time"])) for r in rows]


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return value


def _load(db: sqlite3.Connection, run_id: int) -> Run:
    row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no run {run_id}")
    return _runs_from(db, [row])[0]


def _runs_from(db: sqlite3.Connection, rows: Sequence[sqlite3.Row], *, metrics: bool = True) -> list[Run]:
    of_these = f"run_id IN ({', '.join(str(int(row['id'])) for row in rows)})"
    latest: dict[int, dict[str, float]] = defaultdict(dict)
    if metrics:
        for found in db.execute(
            f"SELECT run_id, name, value, max(time) FROM run_metrics WHERE {of_these} GROUP BY run_id, name"
        ):
            latest[found["run_id"]][found["name"]] = found["value"]
    counted = db.execute(f"SELECT run_id, count(*) AS votes FROM run_votes WHERE {of_these} GROUP BY run_id")
    votes = {found["run_id"]: found["votes"] for found in counted}
    return [_run_from(row, latest[row["id"]], votes.get(row["id"], 0)) for row in rows]


def _run_from(row: sqlite3.Row, metrics: dict[str, float], votes: int) -> Run:
    config = json.loads(row["config"])
    return Run(
        id=row["id"],
        status=row["status"],
        trigger=row["trigger"],
        stages=tuple(json.loads(row["stages"])),
        created=moment(row["created"]),
        stage=row["stage"],
        progress=row["progress"],
        eta_seconds=row["eta_seconds"],
        started=row["started"] and moment(row["started"]),
        finished=row["finished"] and moment(row["finished"]),
        version=row["version"],
        metrics=metrics,
        report=row["report"] and json.loads(row["report"]),
        error=row["error"],
        settings=config.get("settings") or {},
        who=config.get("who"),
        votes=votes,
    )
