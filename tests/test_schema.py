"""Migrations: from nothing, from an old file, and from files that are not ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from serve.errors import StartupError
from serve.feedback.ballots import pseudonyms
from serve.feedback.schema import APPLICATION_ID, RECORD, m001_the_record, migrate, migrations
from serve.feedback.store import Store
from serve.folder import DataFolder

TABLES = {
    "voters",
    "voter_numbers",
    "conversations",
    "messages",
    "answers",
    "comparisons",
    "candidates",
    "votes",
    "vote_notes",
    "demonstrations",
    "runs",
    "run_metrics",
    "run_votes",
    "versions",
    "promotions",
    "exclusions",
    "deeds",
    "doubts",
    "schedule",
    "imports",
}


def _tables(db: sqlite3.Connection) -> set[str]:
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%sqlite_%'")
    return {name for (name,) in rows}


@pytest.fixture
def db() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def test_a_blank_file_gets_every_table_and_the_base_as_the_serving_version(db: sqlite3.Connection) -> None:
    migrate(db)
    assert _tables(db) == TABLES
    assert db.execute("SELECT number, status FROM versions").fetchall() == [(0, "serving")]
    assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


def test_migrating_twice_changes_nothing(db: sqlite3.Connection) -> None:
    migrate(db)
    before = db.execute("SELECT sql FROM sqlite_master").fetchall()
    migrate(db)
    assert db.execute("SELECT sql FROM sqlite_master").fetchall() == before


def test_a_record_of_the_first_release_keeps_its_rows(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "feedback.db")
    old = sqlite3.connect(folder.db, isolation_level=None)
    utils = Database(old)
    migrations.ensure_migrations_table(utils)
    m001_the_record(utils)
    utils.table("_sqlite_migrations").insert(
        {"migration_set": "hustings", "name": "m001_the_record", "applied_at": "2026-07-04"}
    )
    old.execute("INSERT INTO voters VALUES ('anna', '2026-07-04T12:00:00.000000Z')")
    old.execute(
        "INSERT INTO demonstrations VALUES ('d', 'anna', '[]', 'Hello.', 'voter', '2026-07-04T12:00:00.000000Z')"
    )
    old.execute("INSERT INTO conversations VALUES ('c', 'anna', 'voter', '', NULL, '2026', '2026')")
    old.execute(
        "INSERT INTO messages (id, conversation_id, role, content, created) VALUES ('m', 'c', 'user', 'Hi', '')"
    )
    old.execute("INSERT INTO answers (id, prompt_id, created) VALUES ('a', 'm', '2026')")
    for turn, parent, asked, share in (("private", None, 1, 0), ("after", "private", 1, 1), ("alone", None, 1, 1)):
        old.execute(
            "INSERT INTO messages (id, conversation_id, parent_id, role, content, asked, share, created)"
            " VALUES (?, 'c', ?, 'user', ?, ?, ?, '')",
            (turn, parent, turn, asked, share),
        )
    old.close()
    with Store.open(folder) as store:
        assert store.demonstrations_count() == 1
        with store.reading() as db:
            assert [tuple(row) for row in db.execute("SELECT id, dropped FROM answers")] == [("a", 0)]
            assert pseudonyms(db) == {"anna": "voter-1"}
            assert [row["id"] for row in db.execute("SELECT id FROM messages WHERE share")] == ["alone"]
            assert [tuple(row) for row in db.execute("SELECT share, consented FROM voters")] == [(0, None)]


def test_a_migration_that_fails_leaves_nothing_behind(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.feedback.schema.RECORD", RECORD + "CREATE TABLE voters (id TEXT);\n")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db)
    assert _tables(db) == set()
    monkeypatch.undo()
    migrate(db)
    assert _tables(db) == TABLES


def test_a_newer_record_is_refused(db: sqlite3.Connection) -> None:
    migrate(db)
    Database(db).table("_sqlite_migrations").insert(
        {"migration_set": "hustings", "name": "m999_the_future", "applied_at": "2036-01-01"}
    )
    with pytest.raises(StartupError, match=r"newer Hustings.*m999_the_future.*update"):
        migrate(db)


def test_another_programs_database_is_refused_and_left_alone(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StartupError, match="another program"):
        migrate(db)
    assert _tables(db) == {"recipes"}


def test_two_active_runs_cannot_be_written(db: sqlite3.Connection) -> None:
    migrate(db)
    insert = "INSERT INTO runs (status, trigger, stages, config, created) VALUES (?, 'votes', '[]', '{}', 'now')"
    db.execute(insert, ("interrupted",))
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(insert, ("queued",))
    db.execute(insert, ("failed",))


def test_two_serving_versions_cannot_be_written(db: sqlite3.Connection) -> None:
    migrate(db)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO versions (number, status, created) VALUES (1, 'serving', 'now')")


def test_a_second_first_vote_cannot_be_written(db: sqlite3.Connection) -> None:
    migrate(db)
    insert = (
        "INSERT INTO votes (id, comparison_id, voter_id, verdict, evidence, source, created)"
        " VALUES (?, 'c', 'anna', 'tie', 1, 'voter', 'now')"
    )
    db.execute(insert, ("first",))
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(insert, ("second",))


def test_every_foreign_key_has_an_index(db: sqlite3.Connection) -> None:
    """Without one, forgetting a voter would scan a table for each row that goes."""
    migrate(db)
    small = {"runs", "versions", "promotions"}
    for table in TABLES - small:
        led = {
            db.execute(f"PRAGMA index_info({index[1]})").fetchone()[2]
            for index in db.execute(f"PRAGMA index_list({table})").fetchall()
        }
        for key in db.execute(f"PRAGMA foreign_key_list({table})").fetchall():
            assert key[3] in led, f"{table}.{key[3]}"
