"""Simulated voters: a hidden preference is a pure function from an answer's text to a score, and they vote by it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Arm = Literal["real", "flipped", "random"]
ARMS: tuple[Arm, ...] = ("real", "flipped", "random")
"""Votes by the preference, against it, and by a coin."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LIST_LINE = re.compile(r"^\s*(?:[-*•+]|\(?\d{1,3}[.)]|[a-z][.)])\s+\S", re.MULTILINE)
_YOU = frozenset({"you", "your", "yours", "yourself", "yourselves", "you're", "you've", "you'll", "you'd"})


def words(text: str) -> list[str]:
    """The words of a text in lower case, apostrophes inside them kept."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def brevity(text: str) -> float:
    """Fewer words are better."""
    return -float(len(words(text)))


def no_lists(text: str) -> float:
    """Fewer lines that begin with a bullet or a number are better."""
    return -float(len(_LIST_LINE.findall(text)))


def second_person(text: str) -> float:
    """Share of words that address the reader."""
    found = words(text)
    return sum(word in _YOU for word in found) / len(found) if found else 0.0


def question(text: str) -> float:
    """1 for an answer that ends by asking, else 0."""
    return float(text.rstrip(" \n\t\"'”’*)").endswith("?"))


def short_words(text: str) -> float:
    """Fewer letters a word are better."""
    found = words(text)
    return -sum(map(len, found)) / len(found) if found else 0.0


@dataclass(frozen=True)
class Preference:
    """What the voters want and never say."""

    name: str
    wants: str
    """In a table's words."""
    score: Callable[[str], float]
    near: float
    """Scores that differ by no more than this are a tie."""


PREFERENCES: dict[str, Preference] = {
    preference.name: preference
    for preference in (
        Preference("brevity", "fewer words", brevity, near=1.0),
        Preference("no_lists", "no lists", no_lists, near=0.0),
        Preference("second_person", "more “you” and “your” a word", second_person, near=0.005),
        Preference("question", "an answer that ends by asking", question, near=0.0),
        Preference("short_words", "shorter words", short_words, near=0.05),
    )
}


def winner(preference: Preference, first: str, second: str) -> int | None:
    """0 or 1 for the better text, None for a tie. Whoever says nothing loses, whatever the preference."""
    silent = [not words(first), not words(second)]
    if any(silent):
        return None if all(silent) else silent.index(False)
    difference = preference.score(first) - preference.score(second)
    if abs(difference) <= preference.near + 1e-9:
        return None
    return 0 if difference > 0 else 1


def ballot(
    preference: Preference, first: str, second: str, *, arm: Arm, noise: float, rng: random.Random
) -> int | None:
    """How a voter of this arm votes. `noise` is the share of decided votes that fall the other way by mistake."""
    if arm == "random":
        return rng.randrange(2)
    best = winner(preference, first, second)
    if best is None:
        return None
    return 1 - best if (arm == "flipped") != (rng.random() < noise) else best


def as_vote(best: int | None, candidate_ids: Sequence[str]) -> dict[str, Any]:
    """The body of POST /api/comparisons/{id}/vote for a pair."""
    if best is None:
        return {"verdict": "tie"}
    return {"ranking": [[candidate_ids[best]], [candidate_ids[1 - best]]]}
