"""The numbers here are worked out by hand, or from the papers."""

from __future__ import annotations

import random

import pytest

from serve.feedback.statistics import agreement, sequential_verdict, wilson, win_rate, wins_needed


def test_the_wilson_interval_matches_a_worked_example() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 3.8415/20) / 1.38415 = 0.71675,
    # half 1.96/1.38415 · √(0.016 + 0.0096037) = 0.22657
    share = wilson(8, 10)
    assert share.value == 0.8
    assert share.low == pytest.approx(0.4902, abs=1e-4)
    assert share.high == pytest.approx(0.9433, abs=1e-4)


def test_nothing_known_is_a_half_give_or_take_everything() -> None:
    assert (win_rate(0, 0).value, win_rate(0, 0).low, win_rate(0, 0).high) == (0.5, 0.0, 1.0)


def test_a_clean_sweep_still_has_room_below() -> None:
    # p = 1: low = 1 / (1 + z²/n) = 1 / (1 + 3.8415/10)
    assert win_rate(10, 0).low == pytest.approx(0.72247, abs=1e-5)
    assert win_rate(10, 0).high == pytest.approx(1.0)
    assert win_rate(0, 10).low == pytest.approx(0.0)
    assert win_rate(0, 10).high == pytest.approx(1 - 0.72247, abs=1e-5)


def test_agreement_counts_pairs_of_voters() -> None:
    # item 1: three voters, pairs aa, ab, ab → 1 of 3; item 2: two agree → 1 of 1; item 3: one voter → none
    assert agreement([["a", "a", "b"], ["b", "b"], ["a"]]).value == pytest.approx(2 / 4)


def test_eight_straight_wins_decide_at_five_per_cent_and_seven_do_not() -> None:
    # 2⁷·7!/8! = 16 < 20;  2⁸·8!/9! = 28.4 ≥ 20
    assert sequential_verdict(7, 0, alpha=0.05) == "undecided"
    assert sequential_verdict(8, 0, alpha=0.05) == "better"
    assert sequential_verdict(0, 8, alpha=0.05) == "worse"


def test_a_balanced_score_decides_nothing() -> None:
    assert sequential_verdict(0, 0, alpha=0.05) == "undecided"
    assert sequential_verdict(500, 500, alpha=0.05) == "undecided"


def test_looking_after_every_vote_keeps_the_error_below_alpha() -> None:
    rng = random.Random(3)
    wrong = 0
    for _ in range(400):
        wins = 0
        for n in range(1, 201):
            wins += rng.random() < 0.5
            if sequential_verdict(wins, n - wins, alpha=0.1) != "undecided":
                wrong += 1
                break
    assert wrong / 400 <= 0.1


def test_a_clearly_better_version_is_found() -> None:
    rng = random.Random(4)
    wins = sum(rng.random() < 0.65 for _ in range(200))
    assert sequential_verdict(wins, 200 - wins, alpha=0.05) == "better"


def test_how_many_wins_would_decide_a_canary() -> None:
    assert wins_needed(0, 0, alpha=0.05) == 8
    assert wins_needed(8, 0, alpha=0.05) == 0
    more = wins_needed(12, 8, alpha=0.05)
    assert sequential_verdict(12 + more, 8, alpha=0.05) == "better"
    assert sequential_verdict(12 + more - 1, 8, alpha=0.05) == "undecided"
