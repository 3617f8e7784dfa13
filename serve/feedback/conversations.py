"""Conversations: trees of messages, and the answers written to their prompts."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from serve.errors import Conflict, InvalidInput, NotFound
from serve.feedback.database import Database, moment, storable
from serve.feedback.entries import ConversationSummary, ConversationTurn, PromptRef
from serve.records import Answer, FinishReason, Message, Sampling

TITLE_LENGTH = 60
LISTED = 200
"""How many conversations are listed at once; a search finds older ones."""

Source = Literal["voter", "shipped", "imported"]

PATH = """
WITH RECURSIVE path(id, parent_id, role, content, answer_id, depth) AS (
    SELECT id, parent_id, role, content, answer_id, 0 FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.parent_id, m.role, m.content, m.answer_id, depth + 1
    FROM messages AS m JOIN path ON m.id = path.parent_id
)
SELECT path.*, answers.version FROM path LEFT JOIN answers ON answers.id = path.answer_id ORDER BY depth DESC
"""

TALKS = """
SELECT id, title, updated, (
    SELECT count(*) FROM standing_votes JOIN comparisons ON comparisons.id = comparison_id
    JOIN messages ON messages.id = prompt_id
    WHERE conversation_id = conversations.id AND standing_votes.voter_id = conversations.voter_id
        AND verdict <> 'skip'
) AS votes
FROM conversations
WHERE voter_id = :voter AND source = 'voter' AND (holds(title, :search) OR EXISTS (
    SELECT 1 FROM messages WHERE conversation_id = conversations.id AND holds(content, :search)
))
ORDER BY updated DESC, rowid DESC LIMIT :limit
"""

SIBLINGS = """
WITH RECURSIVE path(id, parent_id, conversation_id) AS (
    SELECT m.id, m.parent_id, m.conversation_id FROM conversations JOIN messages AS m ON m.id = leaf_id
    WHERE conversations.id = ?
    UNION ALL
    SELECT m.id, m.parent_id, m.conversation_id FROM messages AS m JOIN path ON m.id = path.parent_id
)
SELECT path.id AS here, other.id FROM path
JOIN messages AS other ON other.conversation_id = path.conversation_id AND other.parent_id IS path.parent_id
WHERE other.role <> 'system' ORDER BY other.rowid
"""

ANSWERED = """
SELECT messages.id FROM conversations JOIN messages ON messages.parent_id = leaf_id
WHERE conversations.id = ? AND role = 'assistant' AND trim(content) <> '' ORDER BY messages.rowid DESC LIMIT 1
"""

BELOW = """
WITH RECURSIVE below(id, number) AS (
    SELECT id, rowid FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.rowid FROM messages AS m JOIN below ON m.parent_id = below.id
)
"""
NEWEST_BELOW = BELOW + "SELECT id FROM below ORDER BY number DESC LIMIT 1"
UNSHARE_BELOW = BELOW + "UPDATE messages SET share = 0 WHERE id IN (SELECT id FROM below)"

HIDDEN_ABOVE = """
WITH RECURSIVE path(id) AS (
    SELECT parent_id FROM messages WHERE id = ?
    UNION ALL
    SELECT parent_id FROM messages JOIN path USING (id)
)
SELECT 1 FROM messages JOIN path USING (id) WHERE role = 'user' AND asked AND NOT share
"""

SAID_NO = "SELECT 1 FROM voters WHERE id = ? AND consented IS NOT NULL AND NOT share"

VISIBLE = "(conversations.voter_id = :voter OR messages.share OR conversations.source <> 'voter')"
"""Whether a voter may see a prompt: their own, a shared one, or one that came along or was imported."""


def new_id() -> str:
    """An unguessable id."""
    return secrets.token_urlsafe(12)


def path(db: sqlite3.Connection, message_id: str) -> list[sqlite3.Row]:
    """The messages from the root to this one."""
    return db.execute(PATH, (message_id,)).fetchall()


def path_messages(db: sqlite3.Connection, message_id: str) -> tuple[Message, ...]:
    """The same as plain messages."""
    return tuple(Message(row["role"], row["content"]) for row in path(db, message_id))


def ensure_voter(db: sqlite3.Connection, voter_id: str, now: str) -> None:
    """Write the voter's row at the first real write, with a number."""
    if db.execute("INSERT OR IGNORE INTO voters (id, created) VALUES (?, ?)", (voter_id, now)).rowcount:
        db.execute("INSERT INTO voter_numbers (voter_id) VALUES (?)", (voter_id,))


def check_prompt(messages: Sequence[Message]) -> None:
    """Raises InvalidInput unless these messages can be answered and stored."""
    if not messages or messages[-1].role != "user":
        raise InvalidInput("the last message must be the user's; add what should be answered")
    if not messages[-1].content.strip():
        raise InvalidInput("the last message is empty; write what should be answered")
    for message in messages:
        storable("a message", message.content)


def insert_conversation(
    db: sqlite3.Connection, voter_id: str, messages: Sequence[Message], source: Source, now: str
) -> str:
    """A new, still empty conversation."""
    conversation_id = new_id()
    first = next((m.content for m in messages if m.role == "user"), "")
    title = " ".join(first.split())[:TITLE_LENGTH]
    db.execute(
        "INSERT INTO conversations (id, voter_id, source, title, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
        (conversation_id, voter_id, source, title, now, now),
    )
    return conversation_id


def insert_message(
    db: sqlite3.Connection,
    conversation_id: str,
    parent_id: str | None,
    message: Message,
    answer_id: str | None,
    now: str,
) -> str:
    """A new child of `parent_id`."""
    message_id = new_id()
    db.execute(
        "INSERT INTO messages (id, conversation_id, parent_id, role, content, answer_id, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (message_id, conversation_id, parent_id, message.role, message.content, answer_id, now),
    )
    return message_id


def require_conversation(db: sqlite3.Connection, voter_id: str, conversation_id: str) -> None:
    """Raises NotFound unless the conversation is this voter's."""
    if not db.execute(
        "SELECT 1 FROM conversations WHERE id = ? AND voter_id = ?", (conversation_id, voter_id)
    ).fetchone():
        raise NotFound("there is no such conversation of yours")


def require_talk(db: sqlite3.Connection, voter_id: str, conversation_id: str) -> None:
    """Raises NotFound unless it is this voter's, and Conflict where it is for judging: everybody may see its prompt."""
    require_conversation(db, voter_id, conversation_id)
    if not db.execute("SELECT 1 FROM conversations WHERE id = ? AND source = 'voter'", (conversation_id,)).fetchone():
        raise Conflict("this prompt was for judging answers; begin a new conversation to go on")


def require_prompt(db: sqlite3.Connection, voter_id: str, prompt: PromptRef) -> None:
    """Raises NotFound unless the prompt lies in a conversation of this voter."""
    found = db.execute(
        "SELECT 1 FROM messages JOIN conversations ON conversations.id = messages.conversation_id"
        " WHERE messages.id = ? AND conversations.id = ? AND voter_id = ?",
        (prompt.message_id, prompt.conversation_id, voter_id),
    ).fetchone()
    if not found:
        raise NotFound("there is no such prompt among your conversations")


def insert_answer(
    db: sqlite3.Connection,
    prompt_id: str,
    version: int,
    seed: int,
    sampling: Sampling,
    now: str,
    *,
    dropped: int = 0,
) -> Answer:
    """A new answer, still empty, to the prompt without its `dropped` oldest messages, system messages aside.

    Raises NotFound for a version that does not exist.
    """
    if not db.execute("SELECT 1 FROM versions WHERE number = ?", (version,)).fetchone():
        raise NotFound(f"there is no version {version}")
    answer = Answer(new_id(), version, "", (), (), seed, sampling, None)
    db.execute(
        "INSERT INTO answers (id, prompt_id, version, seed, max_tokens, temperature, top_p, top_k, stop, dropped,"
        " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            answer.id,
            prompt_id,
            version,
            seed,
            sampling.max_tokens,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            json.dumps(sampling.stop),
            dropped,
            now,
        ),
    )
    return answer


def answer_from(row: sqlite3.Row) -> Answer:
    """An answer of ours from its row."""
    return Answer(
        id=row["id"],
        version=row["version"],
        text=row["text"],
        token_ids=tuple(json.loads(row["token_ids"] or "[]")),
        logprobs=tuple(json.loads(row["logprobs"] or "[]")),
        seed=row["seed"],
        sampling=Sampling(
            row["max_tokens"], row["temperature"], row["top_p"], row["top_k"], tuple(json.loads(row["stop"]))
        ),
        finish_reason=row["finish_reason"],
    )


def reply(db: sqlite3.Connection, conversation_id: str, prompt_id: str, answer_id: str, now: str) -> str:
    """Make an answer the assistant message under its prompt, once; returns the message's id. The leaf stays."""
    found = db.execute(
        "SELECT id FROM messages WHERE parent_id = ? AND answer_id = ?", (prompt_id, answer_id)
    ).fetchone()
    if found:
        return str(found["id"])
    (text,) = db.execute("SELECT text FROM answers WHERE id = ?", (answer_id,)).fetchone()
    return insert_message(db, conversation_id, prompt_id, Message("assistant", text), answer_id, now)


def move_leaf(db: sqlite3.Connection, conversation_id: str, message_id: str, now: str) -> None:
    """The talk now stands at this message."""
    db.execute("UPDATE conversations SET leaf_id = ?, updated = ? WHERE id = ?", (message_id, now, conversation_id))


class Conversations(Database):
    """Prompts in, answers out."""

    def record_prompt(
        self,
        voter_id: str,
        messages: Sequence[Message],
        *,
        conversation_id: str | None = None,
        share: bool = False,
        test: bool = False,
        source: Source = "voter",
    ) -> PromptRef:
        """Find or add these messages in the conversation's tree (a new one by default) and say where the last lies.

        A `test` does not count among what people ask, from which runs draw their prompts. A prompt is shown with all
        that came before it, so it is shared only where every earlier one is, and those after an unshared one are not;
        nor where the voter has said no to sharing since it was sent.

        Raises InvalidInput when there is nothing to answer, NotFound when the conversation is not the voter's.
        """
        check_prompt(messages)

        def work(db: sqlite3.Connection) -> PromptRef:
            now = self._now()
            if conversation_id is None:
                ensure_voter(db, voter_id, now)
                place = insert_conversation(db, voter_id, messages, source, now)
            else:
                place = conversation_id
                require_talk(db, voter_id, place)
            parent = walk(db, place, messages, now)
            shared = share and not db.execute(SAID_NO, (voter_id,)).fetchone()
            shared = shared and not db.execute(HIDDEN_ABOVE, (parent,)).fetchone()
            db.execute("UPDATE messages SET asked = asked + ?, share = ? WHERE id = ?", (not test, shared, parent))
            if not shared:
                db.execute(UNSHARE_BELOW, (parent,))
            move_leaf(db, place, parent, now)
            return PromptRef(place, parent)

        return self.writing(work)

    def finish_answer(
        self,
        answer_id: str,
        *,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: FinishReason,
        seed: int | None = None,
    ) -> None:
        """Store what was generated; a message made of it follows. Raises NotFound if its voter was forgotten.

        `seed` is given where another one than first recorded was drawn (a twin, resampled).
        """

        def work(db: sqlite3.Connection) -> None:
            changed = db.execute(
                "UPDATE answers SET text = ?, token_ids = ?, logprobs = ?, finish_reason = ?, finished = ?,"
                " seed = coalesce(?, seed) WHERE id = ?",
                (
                    text,
                    json.dumps(list(token_ids)),
                    json.dumps(list(logprobs)),
                    finish_reason,
                    self._now(),
                    seed,
                    answer_id,
                ),
            ).rowcount
            if not changed:
                raise NotFound("there is no such answer any more")
            db.execute("UPDATE messages SET content = ? WHERE answer_id = ?", (text, answer_id))

        self.writing(work)

    def add_reply(self, prompt: PromptRef, answer_id: str) -> str:
        """Make an answer the assistant message under its prompt; returns the message's id. Idempotent.

        Raises NotFound unless the answer was written for this prompt.
        """

        def work(db: sqlite3.Connection) -> str:
            if not db.execute(
                "SELECT 1 FROM answers JOIN messages ON messages.id = prompt_id"
                " WHERE answers.id = ? AND prompt_id = ? AND conversation_id = ?",
                (answer_id, prompt.message_id, prompt.conversation_id),
            ).fetchone():
                raise NotFound("there is no such answer to this prompt")
            now = self._now()
            message_id = reply(db, prompt.conversation_id, prompt.message_id, answer_id, now)
            move_leaf(db, prompt.conversation_id, message_id, now)
            return message_id

        return self.writing(work)

    def conversation(self, conversation_id: str, voter_id: str) -> list[ConversationTurn]:
        """The branch where the talk stands, oldest first. Raises NotFound unless it is the voter's."""
        with self.reading() as db:
            found = db.execute(
                "SELECT leaf_id FROM conversations WHERE id = ? AND voter_id = ?", (conversation_id, voter_id)
            ).fetchone()
            if not found:
                raise NotFound("there is no such conversation of yours")
            return [
                ConversationTurn(Message(row["role"], row["content"]), row["version"], row["answer_id"], row["id"])
                for row in path(db, found["leaf_id"])
            ]

    def conversations(self, voter_id: str, search: str = "", limit: int = LISTED) -> list[ConversationSummary]:
        """The voter's conversations, the latest first; of a search, those whose title or words hold it."""
        with self.reading() as db:
            rows = db.execute(TALKS, {"voter": voter_id, "search": search.strip(), "limit": limit}).fetchall()
        return [ConversationSummary(row["id"], row["title"], moment(row["updated"]), row["votes"]) for row in rows]

    def shipped_asked(self, voter_id: str) -> set[str]:
        """The last turns of the shipped prompts that this voter was asked about."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT content FROM messages JOIN conversations ON conversations.id = conversation_id"
                " WHERE voter_id = ? AND source = 'shipped' AND role = 'user'",
                (voter_id,),
            )
            return {row["content"] for row in rows}

    def rename_conversation(self, conversation_id: str, voter_id: str, title: str) -> None:
        """Call it something else. Raises InvalidInput for an empty or long title, NotFound."""
        title = " ".join(storable("the title", title).split())
        if not 1 <= len(title) <= TITLE_LENGTH:
            raise InvalidInput(f"a title has 1 to {TITLE_LENGTH} characters, not {len(title)}")

        def work(db: sqlite3.Connection) -> None:
            require_conversation(db, voter_id, conversation_id)
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, conversation_id))

        self.writing(work)

    def delete_conversation(self, conversation_id: str, voter_id: str) -> datetime:
        """Delete all branches, with the votes on them; returns when it had begun. Runs keep how many votes they had.

        Raises NotFound.
        """

        def work(db: sqlite3.Connection) -> datetime:
            require_conversation(db, voter_id, conversation_id)
            row = db.execute("DELETE FROM conversations WHERE id = ? RETURNING created", (conversation_id,)).fetchone()
            return moment(row["created"])

        begun = self.writing(work)
        self.checkpoint()  # the write-ahead log still holds the deleted pages
        return begun

    def branches(self, conversation_id: str, voter_id: str) -> dict[str, tuple[str, ...]]:
        """Of each message where the talk stands: all that stand in its place, itself included, the oldest first.

        Raises NotFound.
        """
        with self.reading() as db:
            require_conversation(db, voter_id, conversation_id)
            found: dict[str, list[str]] = {}
            for row in db.execute(SIBLINGS, (conversation_id,)):
                found.setdefault(row["here"], []).append(row["id"])
        return {here: tuple(ids) for here, ids in found.items()}

    def answered_before(self, conversation_id: str, voter_id: str) -> str | None:
        """The newest answer to the turn where the talk stands: another try has left it behind. Raises NotFound."""
        with self.reading() as db:
            require_conversation(db, voter_id, conversation_id)
            row = db.execute(ANSWERED, (conversation_id,)).fetchone()
        return row and str(row["id"])

    def switch_branch(self, message_id: str, voter_id: str) -> None:
        """Let the talk stand where it was last in the branch of this message. Raises NotFound."""

        def work(db: sqlite3.Connection) -> None:
            owned = db.execute(
                "SELECT conversation_id FROM messages JOIN conversations ON conversations.id = conversation_id"
                " WHERE messages.id = ? AND voter_id = ?",
                (message_id, voter_id),
            ).fetchone()
            if owned is None:
                raise NotFound("there is no such message among your conversations")
            (leaf,) = db.execute(NEWEST_BELOW, (message_id,)).fetchone()
            move_leaf(db, owned["conversation_id"], leaf, self._now())

        self.writing(work)


def walk(db: sqlite3.Connection, conversation_id: str, messages: Sequence[Message], now: str) -> str:
    """Follow these messages (at least one) down the conversation's tree, adding what is new; the last one's id."""
    place = None
    for message in messages:
        place = _child(db, conversation_id, place, message, now)
    assert place is not None
    return place


def _child(db: sqlite3.Connection, conversation_id: str, parent: str | None, message: Message, now: str) -> str:
    """The child of `parent` that says this; made if there is none. One that repeats a stored answer names it."""
    found = db.execute(
        "SELECT id FROM messages WHERE conversation_id = ? AND parent_id IS ? AND role = ? AND content = ?"
        " ORDER BY answer_id IS NULL, rowid LIMIT 1",
        (conversation_id, parent, message.role, message.content),
    ).fetchone()
    if found:
        return str(found["id"])
    answer = None
    if message.role == "assistant":
        answer = db.execute(
            "SELECT id FROM answers WHERE prompt_id = ? AND text = ? ORDER BY rowid LIMIT 1", (parent, message.content)
        ).fetchone()
    return insert_message(db, conversation_id, parent, message, answer and answer["id"], now)
