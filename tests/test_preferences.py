"""A snapshot becomes rankings."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.run_scenes import write_snapshot
from tests.tiny import byte_tokenizer
from training.preferences import demonstrations_hash, read_snapshot, voter_weights


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


def test_long_votes_are_cut_so_that_one_cannot_take_all_memory(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s.db", votes=1)
    tokenizer = byte_tokenizer()
    [whole] = read_snapshot(tmp_path / "s.db", tokenizer).rankings
    longest = len(whole.prompt_ids)
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("UPDATE answers SET text = ? WHERE id = 0", ("a" * 500,))
    [cut] = read_snapshot(tmp_path / "s.db", tokenizer, longest).rankings
    assert [len(answer) for answer in cut.answers] == [longest // 2, len(whole.answers[1])]
    assert cut.prompt_ids == whole.prompt_ids[longest // 2 :], "its end is where the answer begins"


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


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((90, 10), 0.5, (90, 10)),  # two voters: nobody is bounded
        ((80, 10, 10), 0.5, (50, 25, 25)),
        ((60, 30, 5, 5), 0.4, (40, 40, 10, 10)),  # once the first is bounded, the second is too large
        ((50, 30, 20), 0.2, (100 / 3, 100 / 3, 100 / 3)),  # a third each is the least there is
        ((300, 1, 1), 0.5, (151, 75.5, 75.5)),  # two who voted once do not undo what three hundred votes told
        ((10, 10, 10), 0.5, (10, 10, 10)),
    ],
)
def test_from_three_voters_up_nobody_weighs_more_than_the_share(
    counts: tuple[int, ...], share: float, expected: tuple[int, ...]
) -> None:
    voters = [voter for voter, count in enumerate(counts) for _ in range(count)]
    weights = voter_weights(voters, share)
    totals = [sum(w for v, w in zip(voters, weights, strict=True) if v == voter) for voter in range(len(counts))]
    assert totals == pytest.approx(expected)
