"""Is it getting better, and can one trust that? What the votes and the runs' reports say, for the operator's board.

    board(ballots, versions, serving)  →  Board

Everything is computed from standing votes: pure functions, no database. Win rates count blind evidence alone. They
come from a Bradley–Terry model with ties (Newman 2023, JMLR 24; evalica fits it), so that a version is compared with
the base also by way of others; intervals weigh whole votes anew, as the pairs of a ranking are one person's moment.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from serve.feedback.entries import Ballot
from serve.feedback.reports import gate_win_rate
from serve.feedback.statistics import Interval, agreement, wilson, win_rate
from serve.feedback.votes import one_of_each
from serve.records import BASE_VERSION, Version, version_name

DRAWS = 300
PRIOR = 0.5
"""Wins and ties that every two versions which met have before a vote (as Jeffreys): by 3 votes no rate is 0 or 1."""
WON = (1.0, 0.0, 0.5)
SURE = 400
"""Decided votes beyond which nobody is asked for more: 50% ± 5%."""


Outcome = tuple[int, int, float]
"""Two versions, and what the first won against the second."""


@dataclass(frozen=True)
class Met:
    """Two versions in one blind vote: `won` is 1 where the first was preferred, 0 where the second, ½ for a tie."""

    vote: str
    first: int
    second: int
    won: float

    @property
    def outcome(self) -> Outcome:
        """All that the model sees of it."""
        return self.first, self.second, self.won


@dataclass(frozen=True)
class Rated:
    """A version as people judge it."""

    version: int
    over_base: Interval | None
    """Share of decided votes that it would win over the base, by the model; None where nothing connects them."""
    over_parent: Interval | None
    """Share of decided votes that it won over the one that served before it, where they met."""
    parent: int | None
    promised: Interval | None
    """What the gate's fold models said of it against that one."""
    decided: int
    """Blind votes between it and others that preferred one."""


@dataclass(frozen=True)
class Board:
    """All that the board shows."""

    rated: tuple[Rated, ...]
    verdicts: tuple[str, ...]
    """The answer at a glance, as sentences."""
    agreement: Interval | None
    """How often two voters say the same of two answers."""
    consistency: Interval | None
    """How often one voter says the same again."""
    first_won: Interval | None
    """How often what stands first is preferred."""
    longer_won: Interval | None
    """How often the longer answer is."""
    votes_by_day: dict[date, int] = field(default_factory=dict)


def board(ballots: Iterable[Ballot], versions: Sequence[Version], serving: int) -> Board:
    """What there is to say."""
    cast = [ballot for ballot in ballots if not ballot.imported]
    met = [meeting for ballot in cast for meeting in meetings(ballot)]
    rates = over_base(met)
    rated = tuple(_rated(version, met, rates.get(version.number)) for version in versions)
    others, same = sayings(cast)
    return Board(
        rated=rated,
        verdicts=verdicts(next((r for r in rated if r.version == serving), None)),
        agreement=agreement(others) if others else None,
        consistency=agreement(same) if same else None,
        first_won=_share(preferred_first(cast)),
        longer_won=_share(preferred_longer(cast)),
        votes_by_day=dict(sorted(Counter(ballot.created.date() for ballot in cast).items())),
    )


def meetings(ballot: Ballot) -> list[Met]:
    """Every two versions in a blind vote, by one answer of each; none where it ranks nothing."""
    if not ballot.evidence or ballot.groups is None:
        return []
    ranks = one_of_each(
        (ballot.answers[index].id, ballot.answers[index].version, rank)
        for rank, group in enumerate(ballot.groups)
        for index in group
    )
    return [
        Met(ballot.vote_id, version, other, 0.5 if a == b else float(a < b))
        for (version, a), (other, b) in itertools.combinations(ranks.items(), 2)
    ]


def over_base(met: Sequence[Met], *, draws: int = DRAWS, seed: int = 0) -> dict[int, Interval]:
    """Of each version that votes connect with the base: its share of decided votes over it, with a 95% interval.

    A Bayesian bootstrap (Rubin 1981): each draw weighs every vote anew, the prior ones too. With two versions and no
    ties that is the Beta posterior under Jeffreys' prior.
    """
    joined = connected(met)
    met = [meeting for meeting in met if meeting.first in joined]
    if not met:
        return {}
    import numpy as np

    pairs = sorted({(min(m.first, m.second), max(m.first, m.second)) for m in met})
    prior: list[Outcome] = [(*pair, won) for pair in pairs for won in WON]
    outcomes = sorted({*prior, *(m.outcome for m in met)})
    number = {outcome: i for i, outcome in enumerate(outcomes)}
    vote_number = {vote: i for i, vote in enumerate(sorted({m.vote for m in met}))}
    votes, known = len(vote_number), np.array([number[outcome] for outcome in prior])
    place, of_vote = np.array([number[m.outcome] for m in met]), np.array([vote_number[m.vote] for m in met])

    def weigh(by_vote: Any, before: Any) -> list[float]:
        """How much each outcome weighs in all, by the votes' weights and those before any vote."""
        sums = np.bincount(place, by_vote[of_vote], len(outcomes)) + np.bincount(known, before, len(outcomes))
        return [float(total) for total in sums]

    rng = np.random.default_rng(seed)
    best = _fit(outcomes, weigh(np.ones(votes), np.full(len(known), PRIOR)), joined)
    drawn = [
        _fit(outcomes, weigh(rng.exponential(size=votes), rng.gamma(PRIOR, size=len(known))), joined)
        for _ in range(draws)
    ]
    found = {}
    for version in joined - {BASE_VERSION}:
        rates = sorted(rate[version] for rate in drawn)
        low, high = (rates[math.floor(share * (draws - 1))] for share in (0.025, 0.975))
        found[version] = Interval(best[version], min(low, best[version]), max(high, best[version]))
    return found


def connected(met: Iterable[Met]) -> set[int]:
    """The versions that a chain of votes leads to from the base, itself included."""
    beside: dict[int, set[int]] = defaultdict(set)
    for meeting in met:
        beside[meeting.first].add(meeting.second)
        beside[meeting.second].add(meeting.first)
    joined, todo = {BASE_VERSION}, [BASE_VERSION]
    while todo:
        new = beside[todo.pop()] - joined
        joined |= new
        todo += new
    return joined


def _fit(outcomes: Sequence[Outcome], weights: Sequence[float], joined: Collection[int]) -> dict[int, float]:
    """Each version's share of decided votes over the base, by weighted outcomes."""
    import evalica  # brings SciPy, which the rest of the server does without

    names = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    first, second, won = zip(*outcomes, strict=True)
    scores = evalica.newman(first, second, [names[each] for each in won], weights=weights).scores
    base = float(scores[BASE_VERSION])
    return {version: float(scores[version]) / (float(scores[version]) + base) for version in joined}


def _rated(version: Version, met: Sequence[Met], over: Interval | None) -> Rated:
    number, parent = version.number, version.parent
    got = [won for m in met if (won := _won(m, number, parent)) is not None]
    wins, losses = got.count(1), got.count(0)
    return Rated(
        version=number,
        over_base=over,
        over_parent=win_rate(wins, losses) if wins + losses else None,
        parent=parent,
        promised=gate_win_rate(version.report),
        decided=sum(number in (m.first, m.second) and m.won != 0.5 for m in met),
    )


def _won(meeting: Met, version: int, other: int | None) -> float | None:
    """What `version` got against `other`; None where it is another meeting."""
    if (meeting.first, meeting.second) == (version, other):
        return meeting.won
    return 1 - meeting.won if (meeting.first, meeting.second) == (other, version) else None


def verdicts(serving: Rated | None) -> tuple[str, ...]:
    """Is what serves better than the base, and did the reward model promise what people found?"""
    if serving is None or serving.version == BASE_VERSION:
        return ("The base serves: nothing has been learned yet that passed the checks.",)
    name, rate = version_name(serving.version).capitalize(), serving.over_base
    if rate is None:
        first = f"No blind vote has compared {name.lower()} with the base yet, so nobody knows whether it is better."
    else:
        share = f"{rate.value:.0%} of decided blind votes ({rate.low:.0%} to {rate.high:.0%})"
        if rate.low > 0.5:
            first = f"{name} is better than the base: it wins {share}."
        elif rate.high < 0.5:
            first = f"{name} is worse than the base: it wins only {share}. Roll back."
        else:
            first = f"{name} wins {share} over the base, which may still be chance{_missing(serving)}."
    promised, found = serving.promised, serving.over_parent
    if promised is None or found is None:
        return (first,)
    before = version_name(serving.parent or 0)
    told = f"Against {before} the reward model promised {promised.value:.0%}, and people find {found.value:.0%}"
    if found.high < promised.low:
        return (first, f"{told}: it may have learned to please the reward model. Read some of its answers.")
    return (first, f"{told}, which fits." if found.low <= promised.value <= found.high else f"{told}.")


def _missing(rated: Rated) -> str:
    """About how many more votes would tell, if the rate stayed."""
    rate = rated.over_base
    assert rate is not None
    lead = abs(rate.value - 0.5)
    wanted = min(SURE, math.ceil(1 / lead**2)) if lead > 0 else SURE  # 1.96² · ¼ / lead²
    more = max(10, wanted - rated.decided)
    return f": some {10 * math.ceil(more / 10)} more votes would tell" if rated.decided < SURE else ""


def sayings(cast: Sequence[Ballot]) -> tuple[list[list[object]], list[list[object]]]:
    """Of each two answers: what different voters said, one voter once; and what one voter said time and again."""
    by_pair: dict[frozenset[str], dict[str, list[object]]] = defaultdict(lambda: defaultdict(list))
    for ballot in cast:
        if ballot.groups is not None and len(ballot.answers) == 2:
            best = ballot.groups[0]
            said = "tie" if len(best) == 2 else ballot.answers[best[0]].id
            by_pair[frozenset(answer.id for answer in ballot.answers)][ballot.voter_id].append(said)
    others = [[said[0] for said in voters.values()] for voters in by_pair.values() if len(voters) > 1]
    same = [said for voters in by_pair.values() for said in voters.values() if len(said) > 1]
    return others, same


def preferred_first(cast: Sequence[Ballot]) -> list[bool]:
    """Of each decided pair: whether what stood first was preferred."""
    return [winner.position < loser.position for ballot in cast for winner, loser in _decided(ballot)]


def preferred_longer(cast: Sequence[Ballot]) -> list[bool]:
    """Of each decided pair of unequal length, seen to the end: whether the longer answer was preferred."""
    pairs = [pair for ballot in cast for pair in _decided(ballot) if not any(answer.partial for answer in pair)]
    return [len(winner.text) > len(loser.text) for winner, loser in pairs if len(winner.text) != len(loser.text)]


def _decided(ballot: Ballot) -> list[tuple[Any, Any]]:
    return ballot.pairs() if len(ballot.answers) == 2 else []


def _share(told: Sequence[bool]) -> Interval | None:
    return wilson(sum(told), len(told)) if told else None
