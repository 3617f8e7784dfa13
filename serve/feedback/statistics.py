"""What votes show, and how surely: pure functions of counts. Ties stand beside wins and losses, never as halves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Z95 = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An estimated share with its 95% interval, each from 0 to 1."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: float) -> Interval:
    """Share of successes with the Wilson score interval (Wilson 1927); ½ from 0 to 1 when nothing is known.

    Unlike the textbook interval it holds at few trials and at shares near 0 and 1.
    """
    if trials == 0:
        return Interval(0.5, 0.0, 1.0)
    share = successes / trials
    shrink = 1 + Z95**2 / trials
    centre = (share + Z95**2 / (2 * trials)) / shrink
    half = Z95 / shrink * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def win_rate(wins: int, losses: int) -> Interval:
    """Wins / (wins + losses) with its Wilson interval."""
    return wilson(wins, wins + losses)


def agreement(items: Iterable[Sequence[Hashable]]) -> Interval:
    """How often two voters say the same of one thing. `items` holds, for each thing judged, what each voter said.

    The interval takes pairs of voters as independent, so with many voters on one item it is too narrow.
    """
    pairs = [first == second for said in items for first, second in itertools.combinations(said, 2)]
    return wilson(sum(pairs), len(pairs))


def sequential_verdict(wins: int, losses: int, *, alpha: float) -> Literal["better", "worse", "undecided"]:
    """Has one version beaten the other? May be asked after every vote: the error stays below `alpha` for ever.

    A mixture sequential probability ratio test of "the win rate is ½" (Robbins 1970): under it the likelihood ratio
    against a win rate drawn uniformly from 0 to 1,

        2ⁿ · wins! · losses! / (n + 1)!    with n = wins + losses,

    is a martingale that starts at 1, so by Ville's inequality it ever reaches 1/alpha with probability ≤ alpha.
    """
    n = wins + losses
    log_ratio = n * math.log(2) + math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(n + 2)
    if log_ratio < -math.log(alpha):
        return "undecided"
    return "better" if wins > losses else "worse"


def wins_needed(wins: int, losses: int, *, alpha: float) -> int:
    """How many more wins in a row would make `sequential_verdict` say "better"."""
    return next(m for m in itertools.count() if sequential_verdict(wins + m, losses, alpha=alpha) == "better")
