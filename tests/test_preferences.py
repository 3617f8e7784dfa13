"""A snapshot becomes rankings."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests.run_scenes import write_snapshot
from tests.tiny import byte_tokenizer
from training.preferences import demonstrations_hash, read_snapshot


def test_generated_answers_keep_their_ids_and_imported_texts_are_tokenised(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s.db", votes=2)
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("UPDATE answers SET token_ids = '[9, 9, 2]', finish_reason = 'length' WHERE id = 0")
    snapshot = read_snapshot(tmp_path / "s.db", byte_tokenizer())
    first = snapshot.rankings[0]
    assert first.answers[0] == (9, 9, 2)
    assert first.answers[1][-1] == 2
    assert first.finish_reasons == ("length", "stop")
    assert first.positions == (0, 1)
    assert (snapshot.max_tokens, snapshot.temperature) == (16, 0.8)


def test_groups_of_equals_stay_groups(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s.db", votes=1)
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("UPDATE votes SET ranking = ?", (json.dumps([[1, 0]]),))
    assert read_snapshot(tmp_path / "s.db", byte_tokenizer()).rankings[0].pairs() == [(0, 1, 0.5)]


def test_the_demonstrations_hash_changes_with_them_and_not_with_their_order(tmp_path: Path) -> None:
    hashes = []
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        write_snapshot(tmp_path / name, votes=0, demonstrations=count)
        hashes.append(demonstrations_hash(read_snapshot(tmp_path / name, byte_tokenizer()).demonstrations))
    assert hashes[0] == hashes[1] != hashes[2]
    with sqlite3.connect(tmp_path / "b") as db:
        db.execute("UPDATE demonstrations SET id = 100 - id")
    assert demonstrations_hash(read_snapshot(tmp_path / "b", byte_tokenizer()).demonstrations) == hashes[0]
