"""The tables of feedback.db, as numbered migrations. A published one is never edited; the next change is a new one.

voters ─┬─ voter_numbers (pseudonyms)
        ├─ conversations ── messages (a tree) ── answers
        ├─ comparisons ── candidates (an answer at a position)
        │       └─ votes (append-only: an undo is a row that supersedes) ── vote_notes (said afterwards)
        └─ demonstrations
runs ─┬─ run_metrics
      ├─ run_votes (which votes a run learned from)
      └─ versions ── promotions (who moved the pointer, and why)
exclusions (votes and voters that do not count) · deeds (who did what) · imports (which datasets came in)

Deleting a voter takes along all that the voter gave and what others said about it; a run keeps its number of votes.
Times are RFC 3339 in UTC with microseconds, so that they sort as text. Lists are JSON.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

from serve.errors import StartupError

APPLICATION_ID = 0x48555354
"""`HUST`: tells a Hustings record from any other SQLite file."""

migrations = Migrations("hustings")

RECORD = """
CREATE TABLE voters (
    id TEXT PRIMARY KEY,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    voter_id TEXT NOT NULL REFERENCES voters(id) ON DELETE CASCADE,
    source TEXT NOT NULL CHECK (source IN ('voter', 'shipped', 'imported')),
    title TEXT NOT NULL,
    leaf_id TEXT REFERENCES messages(id) ON DELETE SET NULL,  -- where the talk stands
    created TEXT NOT NULL,
    updated TEXT NOT NULL
) STRICT;
CREATE INDEX conversations_by_voter ON conversations(voter_id, updated);
CREATE INDEX conversations_by_leaf ON conversations(leaf_id);

-- parent_id does not cascade: a conversation goes as a whole, and SQLite cascades only 1,000 levels deep.
CREATE TABLE messages (
    id TEXT PRIMARY KEY,
    conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
    parent_id TEXT REFERENCES messages(id),
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    content TEXT NOT NULL,
    answer_id TEXT REFERENCES answers(id) ON DELETE SET NULL,
    asked INTEGER NOT NULL DEFAULT 0,  -- how often an answer to this turn was asked for; 0 is no prompt
    share INTEGER NOT NULL DEFAULT 0 CHECK (share IN (0, 1)),  -- its author lets other voters see it
    created TEXT NOT NULL
) STRICT;
CREATE INDEX messages_by_parent ON messages(conversation_id, parent_id);
CREATE INDEX messages_children ON messages(parent_id);
CREATE INDEX messages_by_answer ON messages(answer_id);

CREATE TABLE answers (
    id TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
    version INTEGER REFERENCES versions(number),  -- null where the answer was imported
    text TEXT NOT NULL DEFAULT '',
    token_ids TEXT,
    logprobs TEXT,
    seed INTEGER,
    max_tokens INTEGER,
    temperature REAL,
    top_p REAL,
    top_k INTEGER,
    stop TEXT,
    finish_reason TEXT CHECK (finish_reason IN ('stop', 'length', 'cancelled', 'error')),  -- null while it is written
    created TEXT NOT NULL,
    finished TEXT
) STRICT;
CREATE INDEX answers_by_prompt ON answers(prompt_id);
CREATE INDEX answers_by_version ON answers(version);
CREATE INDEX answers_unfinished ON answers(id) WHERE finish_reason IS NULL;

CREATE TABLE comparisons (
    id TEXT PRIMARY KEY,
    voter_id TEXT NOT NULL REFERENCES voters(id) ON DELETE CASCADE,
    prompt_id TEXT NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
    evidence INTEGER NOT NULL CHECK (evidence IN (0, 1)),  -- the server chose versions, seed and sampling
    probability REAL,
    created TEXT NOT NULL,
    expires TEXT NOT NULL
) STRICT;
CREATE INDEX comparisons_by_voter ON comparisons(voter_id, created);
CREATE INDEX comparisons_by_prompt ON comparisons(prompt_id);

CREATE TABLE candidates (
    id TEXT PRIMARY KEY,
    comparison_id TEXT NOT NULL REFERENCES comparisons(id) ON DELETE CASCADE,
    answer_id TEXT NOT NULL REFERENCES answers(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    shown_text TEXT,  -- what was visible, where the vote came before the end
    shown_token_ids TEXT,
    UNIQUE (comparison_id, position)
) STRICT;
CREATE INDEX candidates_by_answer ON candidates(answer_id);

CREATE TABLE votes (
    id TEXT PRIMARY KEY,
    comparison_id TEXT NOT NULL REFERENCES comparisons(id) ON DELETE CASCADE,
    voter_id TEXT NOT NULL REFERENCES voters(id) ON DELETE CASCADE,
    verdict TEXT NOT NULL CHECK (verdict IN ('ranking', 'tie', 'both_bad', 'skip', 'withdrawn')),
    ranking TEXT CHECK ((verdict = 'ranking') = (ranking IS NOT NULL)),
    strength INTEGER CHECK (strength BETWEEN 1 AND 5),
    reasons TEXT NOT NULL DEFAULT '[]',
    evidence INTEGER NOT NULL CHECK (evidence IN (0, 1)),
    source TEXT NOT NULL CHECK (source IN ('voter', 'imported', 'server')),  -- server: a skip that nobody cast
    continues_with TEXT REFERENCES candidates(id),
    supersedes TEXT REFERENCES votes(id),
    idempotency_key TEXT,
    created TEXT NOT NULL
) STRICT;
-- Together these make the votes of a comparison one line, so that at most one can stand.
CREATE UNIQUE INDEX votes_first ON votes(comparison_id) WHERE supersedes IS NULL;
CREATE UNIQUE INDEX votes_next ON votes(supersedes) WHERE supersedes IS NOT NULL;
CREATE UNIQUE INDEX votes_by_key ON votes(comparison_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX votes_by_comparison ON votes(comparison_id);
CREATE INDEX votes_by_voter ON votes(voter_id);
CREATE INDEX votes_by_candidate ON votes(continues_with);

CREATE VIEW standing_votes AS
SELECT votes.rowid AS sequence, votes.* FROM votes
WHERE verdict <> 'withdrawn' AND NOT EXISTS (SELECT 1 FROM votes AS later WHERE later.supersedes = votes.id);

CREATE VIEW training_votes AS SELECT * FROM standing_votes WHERE verdict IN ('ranking', 'tie');

CREATE TABLE demonstrations (
    id TEXT PRIMARY KEY,
    voter_id TEXT NOT NULL REFERENCES voters(id) ON DELETE CASCADE,
    messages TEXT NOT NULL,
    answer TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('voter', 'imported')),
    created TEXT NOT NULL
) STRICT;
CREATE INDEX demonstrations_by_voter ON demonstrations(voter_id);

CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    status TEXT NOT NULL
        CHECK (status IN ('queued', 'running', 'interrupted', 'succeeded', 'rejected', 'failed', 'cancelled')),
    trigger TEXT NOT NULL CHECK (trigger IN ('votes', 'interval', 'operator')),
    stages TEXT NOT NULL,
    config TEXT NOT NULL,
    stage TEXT,
    progress REAL NOT NULL DEFAULT 0,
    eta_seconds REAL,
    version INTEGER REFERENCES versions(number),
    report TEXT,
    error TEXT,
    created TEXT NOT NULL,
    started TEXT,
    finished TEXT
) STRICT;
CREATE UNIQUE INDEX runs_one_active ON runs((1)) WHERE status IN ('queued', 'running', 'interrupted');

CREATE TABLE run_metrics (
    run_id INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    stage TEXT NOT NULL,
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    time TEXT NOT NULL,
    PRIMARY KEY (run_id, stage, name, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_votes (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    vote_id TEXT REFERENCES votes(id) ON DELETE SET NULL,  -- null: its voter was forgotten; the count stays true
    UNIQUE (run_id, vote_id)
) STRICT;
CREATE INDEX run_votes_by_vote ON run_votes(vote_id);

CREATE TABLE versions (
    number INTEGER PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('staged', 'canary', 'serving', 'retired', 'rejected', 'rolled_back')),
    run_id INTEGER REFERENCES runs(id),
    parent INTEGER REFERENCES versions(number),
    report TEXT,
    sha256 TEXT,  -- of the adapter's manifest
    created TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX versions_one_serving ON versions(status) WHERE status = 'serving';
INSERT INTO versions (number, status, created) VALUES (0, 'serving', strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'));

CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    from_version INTEGER NOT NULL REFERENCES versions(number),
    to_version INTEGER NOT NULL REFERENCES versions(number),
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    rolled_back INTEGER NOT NULL CHECK (rolled_back IN (0, 1)),
    created TEXT NOT NULL
) STRICT;
"""


@migrations()
def m001_the_record(db: Database) -> None:
    """Everything the first release keeps."""
    for statement in RECORD.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


@migrations()
def m002_prompts_read_in_part(db: Database) -> None:
    """How many of the prompt's oldest messages, system messages aside, the model did not read for an answer."""
    db.execute("ALTER TABLE answers ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0")


NOTES = """
CREATE TABLE vote_notes (
    vote_id TEXT PRIMARY KEY REFERENCES votes(id) ON DELETE CASCADE,
    strength INTEGER CHECK (strength BETWEEN 1 AND 5),
    reasons TEXT NOT NULL DEFAULT '[]',
    updated TEXT NOT NULL
) STRICT;

DROP VIEW training_votes;
DROP VIEW standing_votes;

CREATE VIEW standing_votes AS
SELECT votes.rowid AS sequence, id, comparison_id, voter_id, verdict, ranking,
    coalesce(vote_notes.strength, votes.strength) AS strength, coalesce(vote_notes.reasons, votes.reasons) AS reasons,
    evidence, source, continues_with, supersedes, idempotency_key, created
FROM votes LEFT JOIN vote_notes ON vote_id = votes.id
WHERE verdict <> 'withdrawn' AND NOT EXISTS (SELECT 1 FROM votes AS later WHERE later.supersedes = votes.id);

CREATE VIEW training_votes AS SELECT * FROM standing_votes WHERE verdict IN ('ranking', 'tie')
"""


@migrations()
def m003_notes_on_votes(db: Database) -> None:
    """How much better, and why, said after the vote: a vote itself never changes."""
    for statement in NOTES.split(";\n"):
        db.execute(statement)


VOTERS = """
ALTER TABLE voters ADD COLUMN consented TEXT;
ALTER TABLE voters ADD COLUMN share INTEGER NOT NULL DEFAULT 0 CHECK (share IN (0, 1));

-- A number is never given twice, also when its voter was forgotten: it is what others call a voter by.
CREATE TABLE voter_numbers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    voter_id TEXT NOT NULL UNIQUE REFERENCES voters(id) ON DELETE CASCADE
) STRICT;
INSERT INTO voter_numbers (voter_id) SELECT id FROM voters ORDER BY created, id
"""


@migrations()
def m004_consent_and_numbers(db: Database) -> None:
    """What voters agreed to, and a pseudonym for each that lasts."""
    for statement in VOTERS.split(";\n"):
        db.execute(statement)


OVERSIGHT = """
CREATE TABLE exclusions (
    id TEXT PRIMARY KEY,
    voter_id TEXT REFERENCES voters(id) ON DELETE CASCADE,
    vote_id TEXT REFERENCES votes(id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('flag', 'exclude')),
    reason TEXT NOT NULL,
    who TEXT NOT NULL,
    created TEXT NOT NULL,
    lifted TEXT,
    CHECK ((voter_id IS NULL) <> (vote_id IS NULL))
) STRICT;
CREATE INDEX exclusions_by_voter ON exclusions(voter_id);
CREATE INDEX exclusions_by_vote ON exclusions(vote_id);

CREATE TABLE deeds (
    id INTEGER PRIMARY KEY,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;

ALTER TABLE versions ADD COLUMN note TEXT;

-- An excluded vote stays so when it is withdrawn and cast anew: what is excluded is what was said of that comparison.
CREATE VIEW excluded_votes AS
SELECT votes.id FROM votes
JOIN exclusions ON exclusions.voter_id = votes.voter_id OR votes.comparison_id IN (
    SELECT comparison_id FROM votes AS named WHERE named.id = exclusions.vote_id
)
WHERE kind = 'exclude' AND lifted IS NULL GROUP BY votes.id;

DROP VIEW training_votes;
CREATE VIEW counted_votes AS SELECT * FROM standing_votes WHERE id NOT IN (SELECT id FROM excluded_votes);
CREATE VIEW training_votes AS SELECT * FROM counted_votes WHERE verdict IN ('ranking', 'tie')
"""


@migrations()
def m005_oversight(db: Database) -> None:
    """Votes that do not count, notes on versions, and a log of who did what."""
    for statement in OVERSIGHT.split(";\n"):
        db.execute(statement)


@migrations()
def m006_repeats(db: Database) -> None:
    """A pair that its voter is shown again, with sides swapped: which one it repeats."""
    db.execute("ALTER TABLE comparisons ADD COLUMN repeats TEXT REFERENCES comparisons(id) ON DELETE SET NULL")
    db.execute("CREATE INDEX comparisons_by_repeated ON comparisons(repeats)")


@migrations()
def m007_doubts(db: Database) -> None:
    """How far the fold models of a run differ about two answers: what people should judge next."""
    db.execute(
        "CREATE TABLE doubts ("
        " first TEXT NOT NULL REFERENCES answers(id) ON DELETE CASCADE,"
        " second TEXT NOT NULL REFERENCES answers(id) ON DELETE CASCADE,"
        " doubt REAL NOT NULL, run_id INTEGER NOT NULL REFERENCES runs(id), PRIMARY KEY (first, second)"
        ") STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX doubts_by_second ON doubts(second)")
    db.execute("CREATE INDEX doubts_by_run ON doubts(run_id)")


@migrations()
def m008_demonstrations_of_prompts(db: Database) -> None:
    """A demonstration goes with the prompt that it answers."""
    db.execute("ALTER TABLE demonstrations ADD COLUMN prompt_id TEXT REFERENCES messages(id) ON DELETE CASCADE")
    db.execute("CREATE INDEX demonstrations_by_prompt ON demonstrations(prompt_id)")
    db.execute(
        "CREATE VIEW counted_demonstrations AS SELECT rowid AS sequence, * FROM demonstrations"
        " WHERE NOT EXISTS (SELECT 1 FROM exclusions WHERE exclusions.voter_id = demonstrations.voter_id"
        " AND kind = 'exclude' AND lifted IS NULL)"
    )


@migrations()
def m009_schedule(db: Database) -> None:
    """What operators changed of the schedule while the server ran."""
    db.execute(
        "CREATE TABLE schedule (name TEXT PRIMARY KEY, value TEXT NOT NULL, who TEXT NOT NULL, created TEXT NOT NULL)"
        " STRICT, WITHOUT ROWID"
    )


@migrations()
def m010_hidden_turns(db: Database) -> None:
    """A prompt is shown with all that came before it: what follows an unshared one is shared no more."""
    db.execute(
        "WITH RECURSIVE hidden(id) AS (SELECT id FROM messages WHERE role = 'user' AND asked AND NOT share"
        " UNION SELECT m.id FROM messages AS m JOIN hidden ON m.parent_id = hidden.id)"
        " UPDATE messages SET share = 0 WHERE share AND id IN (SELECT id FROM hidden)"
    )


@migrations()
def m011_imports(db: Database) -> None:
    """Which datasets came in, so that none comes in twice."""
    db.execute("CREATE TABLE imports (sha256 TEXT PRIMARY KEY, created TEXT NOT NULL) STRICT, WITHOUT ROWID")


@migrations()
def m012_excluded_voters(db: Database) -> None:
    """Whose votes, prompts and demonstrations do not count."""
    db.execute(
        "CREATE VIEW excluded_voters AS SELECT voter_id FROM exclusions"
        " WHERE voter_id IS NOT NULL AND kind = 'exclude' AND lifted IS NULL"
    )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to today's schema; each migration is applied whole or not at all.

    Raises StartupError where the file is another program's, or from a newer Hustings.
    """
    db = Database(connection)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    foreign = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE name NOT LIKE '%sqlite_%'"  # SQLite's own, and the list of migrations
    ).fetchone()
    if foreign and application != APPLICATION_ID:
        raise StartupError("this database belongs to another program; name another file with --db")
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if newer := {migration.name for migration in migrations.applied(db)} - known:
        raise StartupError(f"a newer Hustings made this database ({', '.join(sorted(newer))}); update Hustings first")
    migrations.apply(db)
