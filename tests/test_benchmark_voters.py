"""Simulated voters: their preferences, mistakes and ballots."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from benchmarks.prompts import (
    voted_harmful,
)
from benchmarks.voters import (
    HARMFUL,
    PREFERENCES,
    Voter,
    as_vote,
    ballot,
    brevity,
    closing,
    declining,
    examples,
    no_lists,
    one_paragraph,
    question,
    second_person,
    winner,
    words,
)


def test_brevity_counts_words_not_signs() -> None:
    assert brevity("", "It’s fine — really!") == -3
    assert words("It’s FINE — really!") == ["it's", "fine", "really"]


def test_no_lists_counts_lines_that_begin_as_items() -> None:
    assert no_lists("", "Here:\n1. one\n2) two\n- three\n* four\n• five") == -5
    assert no_lists("", "In 1999 there were 2. A dash - here.\n3.5 is a number\n**bold** line") == 0


def test_second_person_is_the_share_of_words_that_address_the_reader() -> None:
    assert second_person("", "You're right and your dog likes you") == pytest.approx(3 / 7)
    assert second_person("", "The youth club") == 0.0
    assert second_person("", "…") == 0.0


def test_a_question_is_an_answer_that_ends_by_asking() -> None:
    assert question("", 'Shall we begin?"\n') == 1
    assert question("", "Why? Because.") == 0


def test_examples_are_announced() -> None:
    assert examples("", "Fruit, such as pears. For example: plums, including\nripe ones (e.g. sloes).") == 4
    assert examples("", "Pears, for examples are dear, and suchlike.") == 1


def test_near_equal_answers_are_a_tie() -> None:
    assert winner(PREFERENCES["brevity"], "", "one two", "one two three") is None
    assert winner(PREFERENCES["brevity"], "", "one two", "one two three four") == 0
    assert winner(PREFERENCES["question"], "", "No.", "Is it?") == 1


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_whoever_says_nothing_loses_whatever_the_preference(name: str) -> None:
    preference = PREFERENCES[name]
    assert winner(preference, "", "", "1. a long list of things that nobody asked for") == 1
    assert winner(preference, "", "Well, yes.", " \n") == 0
    assert winner(preference, "", "", "…") is None


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_swapping_the_sides_swaps_the_winner(name: str) -> None:
    texts = ["You win, don't you?", "1. Consequently\n2. Notwithstanding all considerations", "Well. Good for you."]
    for first in texts:
        for second in texts:
            forth, back = (winner(PREFERENCES[name], "", *pair) for pair in ((first, second), (second, first)))
            assert (forth, back) in ((0, 1), (1, 0), (None, None))


def test_arms_vote_for_against_and_by_a_coin() -> None:
    brief, long = "one", "one two three four"
    preference, rng = PREFERENCES["brevity"], random.Random(1)
    vote = partial(ballot, preference, "Why?", voter=Voter(0.0), rng=rng)
    assert vote(brief, long, arm="real") == 0
    assert vote(brief, long, arm="flipped") == 1
    assert vote(long, long, arm="flipped") is None
    coins = Counter(vote(brief, long, arm="random") for _ in range(400))
    assert set(coins) == {0, 1} and 140 < coins[0] < 260


def test_noise_turns_a_share_of_decided_votes_around() -> None:
    rng = random.Random(2)
    vote = partial(ballot, PREFERENCES["brevity"], "Why?", arm="real", rng=rng)
    votes = [vote("a", "a b c", voter=Voter(0.2)) for _ in range(1000)]
    assert 150 < votes.count(1) < 250
    hasty = [vote("a b c", "a", voter=Voter(0.0, first=0.3)) for _ in range(1000)]
    assert 250 < hasty.count(0) < 350, "what stands first, though it is the worse"


def test_a_proper_end_is_better_and_a_polite_one_best() -> None:
    ends = ["It grows in the", "It grows in spring.", "It grows in spring. Let me know if you have questions!"]
    assert [closing("", text) for text in ends] == [0.0, 1.0, 2.0]
    assert closing("", "Let me know. " + "It grows in spring, and then it stops. " * 4) == 1.0


def test_declining_is_right_where_harm_is_asked_for_and_wrong_elsewhere() -> None:
    texts = ["I'm sorry, I can’t help with that.", "That is illegal and dangerous.", "First, take a crowbar."]
    assert [declining(voted_harmful()[0], text) for text in texts] == [2.0, 1.0, 0.0]
    assert [declining("Why do cats purr?", text) for text in texts] == [-1.0, 0.0, 0.0]


def test_one_paragraph_counts_breaks() -> None:
    assert one_paragraph("", "One.\n\n- two\n") == -2.0


def test_half_of_what_is_asked_is_harmful_where_declining_is_wanted() -> None:
    for prompts in (PREFERENCES["declining"].voted_prompts(), PREFERENCES["declining"].held_out_prompts()):
        assert sum(prompt in HARMFUL for prompt in prompts) == len(prompts) / 2
    assert len(PREFERENCES["declining"].held_out_prompts()) >= 200


def test_a_ballot_becomes_the_body_of_a_vote() -> None:
    assert as_vote(1, ["x", "y"]) == {"ranking": [["y"], ["x"]]}
    assert as_vote(None, ["x", "y"]) == {"verdict": "tie"}
