"""From an arm's saved state to its figures: win rates with intervals, fluency, verdicts, rows and the printed table."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.fluency import Fluency, SavedAnswer, complaints, measure
from benchmarks.loop_state import ArmState
from benchmarks.record import Row, document, machine
from benchmarks.voters import PREFERENCES, Preference, winner
from serve.feedback.statistics import win_rate

TARGETS = {100: 0.70, 300: 0.85, 1000: 0.93}
"""Win rates over the base to be reached after so many votes."""
ARM_TITLES: dict[str, str] = {"real": "as preferred", "flipped": "flipped", "random": "at random"}
RESAMPLED = 2000


@dataclass(frozen=True)
class Contest:
    """New answers against the base's, prompt by prompt, by the hidden preference."""

    wins: int
    losses: int
    ties: int
    win_rate: float | None
    """Of the pairs that are not ties; None when all are."""
    low: float | None
    high: float | None
    """95% Wilson interval; each prompt gives one pair, so pairs are independent."""


Outcomes = dict[int, int | None]
"""By held-out prompt: 0 where the new answer wins, 1 where the base's does, None for a tie."""


def outcomes(preference: Preference, ours: Sequence[SavedAnswer], base: Sequence[SavedAnswer]) -> Outcomes:
    """Judge two versions' answers to the same prompts under the same seeds."""
    if [(a.index, a.seed) for a in ours] != [(b.index, b.seed) for b in base]:
        raise ValueError("both versions must have answered the same prompts with the same seeds")
    return {a.index: winner(preference, a.prompt, a.text, b.text) for a, b in zip(ours, base, strict=True)}


LETTERS: dict[int | None, str] = {0: "W", 1: "L", None: "T"}
"""Won, lost, tied."""


def letters(found: Outcomes) -> str:
    """One of `LETTERS` for each held-out prompt, in order."""
    return "".join(LETTERS[found[index]] for index in sorted(found))


def contest(found: Outcomes) -> Contest:
    """One version's figures."""
    counts = Counter(found.values())
    wins, losses, ties = counts[0], counts[1], counts[None]
    if wins + losses == 0:
        return Contest(wins, losses, ties, None, None, None)
    interval = win_rate(wins, losses)
    return Contest(wins, losses, ties, interval.value, interval.low, interval.high)


def pooled(chains: Sequence[Outcomes]) -> tuple[float, float, float]:
    """Mean win rate of some chains, and its 95% interval by resampling prompts: answers to one prompt go together."""
    return _resampled(lambda counts: _mean_rate(chains, counts), chains)


def difference(chains: Sequence[Outcomes], others: Sequence[Outcomes]) -> tuple[float, float, float]:
    """Mean win rate of some chains less that of others, likewise, on the same prompts."""
    return _resampled(lambda counts: _mean_rate(chains, counts) - _mean_rate(others, counts), [*chains, *others])


def _resampled(figure: Callable[[Mapping[int, int]], float], chains: Sequence[Outcomes]) -> tuple[float, float, float]:
    """A figure of how often each prompt counts, and its 95% interval."""
    prompts = sorted({index for chain in chains for index in chain})
    rng = random.Random(0)
    means = sorted(figure(Counter(rng.choices(prompts, k=len(prompts)))) for _ in range(RESAMPLED))
    return figure(Counter(prompts)), means[int(0.025 * RESAMPLED)], means[int(0.975 * RESAMPLED) - 1]


def _mean_rate(chains: Sequence[Outcomes], counts: Mapping[int, int]) -> float:
    """Mean over chains of wins / (wins + losses), each prompt counted so often; ½ for a chain of ties."""
    rates = []
    for chain in chains:
        wins, losses = (sum(n for i, n in counts.items() if chain.get(i) == side) for side in (0, 1))
        rates.append(wins / (wins + losses) if wins + losses else 0.5)
    return statistics.fmean(rates)


def verdict(arm: str, votes: int, run_status: str, result: Contest | None, found: Sequence[str]) -> tuple[bool, str]:
    """Does a round show what it should, and why (not)? `found` are the fluency complaints."""
    if run_status == "rejected":
        return arm == "random", "the gate refused it"
    if result is None or result.win_rate is None or result.low is None or result.high is None:
        return False, "no version to judge"
    if found and arm != "random":
        return False, "does not count: " + "; ".join(found)
    if arm == "real":
        target = TARGETS.get(votes, 0.65)
        holds = result.win_rate >= target and result.low > 0.5
        return holds, f"{'reaches' if holds else 'misses'} {target:.0%}"
    if arm == "flipped":
        holds = result.high < 0.5
        return holds, f"{'moves' if holds else 'does not clearly move'} away from the preference"
    holds = result.low <= 0.5 <= result.high
    return holds, f"the interval {'contains' if holds else 'misses'} 50%"


def stream_facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the chat that streamed during the triggered run saw."""
    whole = [row for row in rows if "error" not in row]
    recorded = [row["versions"][0] for row in whole if len(row["versions"]) == 1]
    sequence = [{"version": version, "answers": len(list(group))} for version, group in groupby(recorded)]
    return {
        "answers": len(rows),
        "failed": len(rows) - len(whole),
        "mixed": len(whole) - len(recorded),
        "versions": sequence,
        "in_flight_at_swap": sum(row["versions"] != [row["serving"]] for row in whole if len(row["versions"]) == 1),
    }


def chain_result(arm: str, state: ArmState, preference: Preference) -> dict[str, Any]:
    """All that a chain found."""
    voted = state.voted()
    base = list(state.answers(0).by_index().values()) if state.versions() else []
    base_fluency = measure(base, state.nll["0"]) if base else None
    rounds = [round_result(arm, votes, run, state, preference, base) for votes, run in state.rounds.items()]
    return {
        "arm": arm,
        "chain": state.settings["chain"],
        "votes": len(voted),
        "tie_votes": sum(row["best"] is None for row in voted),
        "voted_on_versions": dict(sorted(Counter(str(v) for row in voted for v in row["versions"]).items())),
        "first_run_started": state.first_run_started,
        "restarts": state.restarts,
        "rounds": rounds,
        "stream": stream_facts(state.streams.rows) if state.streams.rows else None,
        "base": base_fluency.as_json() if base_fluency else None,
        "seconds": {name: round(seconds, 1) for name, seconds in state.seconds.items()},
        "wall_seconds": round(sum(state.seconds.values()), 1),
        "peak_memory_bytes": state.peak_memory,
        "requests": state.traffic.requests,
        "failures": state.traffic.failures,
        "commits": state.commits,
        "machine": machine(),
    }


def round_result(
    arm: str, votes: int, run: Mapping[str, Any], state: ArmState, preference: Preference, base: Sequence[SavedAnswer]
) -> dict[str, Any]:
    """One round: its run, its version against the base, its text, and the way there."""
    version, report = run["version"], run["report"] or {}
    judged: Contest | None = None
    fluency: Fluency | None = None
    found: list[str] = []
    if version is not None:
        ours, fluency, found = _text_of(version, state, base)
        judged = contest(outcomes(preference, ours, base))
    holds, why = verdict(arm, votes, run["status"], judged, found)
    ppo, gate = report.get("ppo") or {}, report.get("gate") or {}
    standing: Outcomes = {}
    if base:
        serving, _, spoiled = _text_of(run["serving"], state, base)
        standing = outcomes(preference, serving, base)
        if spoiled:
            standing = dict.fromkeys(standing)  # text that is no longer text wins nothing
    return {
        "votes": votes,
        "run": run["id"],
        "status": run["status"],
        "reasons": report.get("reasons", []),
        "version": version,
        "serving": run["serving"],
        "contest": asdict(judged) if judged else None,
        "fluency": fluency.as_json() if fluency else None,
        "complaints": found,
        "holds": holds,
        "why": why,
        "reward_accuracy": (report.get("reward") or {}).get("accuracy"),
        "kl": (gate.get("new") or {}).get("kl"),
        "tokens": (gate.get("new") or {}).get("length"),
        "max_tokens": ppo.get("max_tokens"),
        "updates": ppo.get("updates"),
        "seconds": round(state.seconds[f"run at {votes} votes"], 1),
        "served": letters(standing),
        "way": way(state.folder / "data" / "runs" / f"{run['id']:04d}", preference, base),
    }


def _text_of(
    version: int, state: ArmState, base: Sequence[SavedAnswer]
) -> tuple[list[SavedAnswer], Fluency, list[str]]:
    """A version's held-out answers, their figures, and why a win rate of them would not count."""
    answers = list(state.answers(version).by_index().values())
    fluency = measure(answers, state.nll[str(version)])
    return answers, fluency, complaints(fluency, measure(base, state.nll["0"]))


def way(folder: Path, preference: Preference, base: Sequence[SavedAnswer]) -> list[dict[str, float]]:
    """What each policy of a run scored by the reward model and by the hidden preference, and how far it had gone.

    Both in standard deviations of the base's answers, for the hidden one of those to the held-out prompts. Where the
    preference depends on the prompt, only prompts that voters asked count.
    """
    metrics, rollouts = folder / "metrics.jsonl", folder / "rollouts.jsonl"
    if not rollouts.is_file() or not base:
        return []
    steps = {row["step"]: row["metrics"] for row in map(json.loads, metrics.open()) if row["stage"] == "ppo"}
    hidden: dict[int, list[float]] = {}
    known = preference.voted_prompts()
    for row in map(json.loads, rollouts.open(encoding="utf-8")):
        asked = next((prompt for prompt in known if prompt in row["prompt"]), None)  # the template stands around it
        if asked is not None or not preference.harmful:
            hidden.setdefault(row["step"], []).append(preference.score(asked or "", row["answer"]))
    usual = [preference.score(answer.prompt, answer.text) for answer in base]
    mean, spread = statistics.fmean(usual), statistics.pstdev(usual) or 1.0
    return [
        {
            "kl": found["kl"],
            "score": found["score"],
            "hidden": (statistics.fmean(hidden[step]) - mean) / spread,
            "tokens": found["length"],
        }
        for step, found in steps.items()
        if step in hidden
    ]


def rows_of(chains: Sequence[Mapping[str, Any]], pools: Sequence[Mapping[str, Any]], preference: str) -> list[Row]:
    """The figures in the shape that all benchmarks share."""
    rows = [
        Row(f"{preference}, {pool['votes']} votes: win rate, mean of chains", "share", pool["win_rate"], "base", 0.5,
            pool["win_rate"] / 0.5, runs=pool["chains"], low=pool["low"], high=pool["high"])
        for pool in pools
    ]  # fmt: skip
    for chain in chains:
        name = f"{preference}, votes {ARM_TITLES[chain['arm']]}, chain {chain['chain']}"
        for found in chain["rounds"]:
            judged, fluency, base = found["contest"], found["fluency"], chain["base"]
            if judged is None or judged["win_rate"] is None:
                continue
            rate = judged["win_rate"]
            rows += [
                Row(f"{name}, {found['votes']} votes: win rate", "share", rate, "base", 0.5, rate / 0.5,
                    low=judged["low"], high=judged["high"]),
                Row(f"{name}, {found['votes']} votes: nats a token under the base", "nats", fluency["nll"], "base",
                    base["nll"], base["nll"] / fluency["nll"] if fluency["nll"] else None),
            ]  # fmt: skip
        rows.append(Row(f"{name}: peak memory", "GB", chain["peak_memory_bytes"]["sum"] / 1e9))
        rows.append(Row(f"{name}: failed requests", "requests", len(chain["failures"])))
    return rows


def real_rounds(chains: Sequence[Mapping[str, Any]], votes: int) -> list[Mapping[str, Any]]:
    """The round of so many votes, in each chain that votes as it prefers."""
    return [step for chain in chains if chain["arm"] == "real" for step in chain["rounds"] if step["votes"] == votes]


def served(chains: Sequence[Mapping[str, Any]], votes: int) -> list[Outcomes]:
    """How what served after so many votes did, in each chain that votes as it prefers."""
    sides = {letter: side for side, letter in LETTERS.items()}
    return [
        {index: sides[letter] for index, letter in enumerate(step["served"])} for step in real_rounds(chains, votes)
    ]


def pools_of(chains: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By votes: the mean of all chains that vote as they prefer. Where the gate refused, what served then counts."""
    pools = []
    for votes in sorted({step["votes"] for chain in chains if chain["arm"] == "real" for step in chain["rounds"]}):
        alike = served(chains, votes)
        rate, low, high = pooled(alike)
        each = [contest(chain).win_rate for chain in alike]
        pools.append({"votes": votes, "chains": len(alike), "win_rate": rate, "low": low, "high": high, "each": each})
    return pools


def loop_document(chains: Sequence[Mapping[str, Any]], preference: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The benchmark's JSON, from its chains' results."""
    pools = pools_of(chains)
    rows = rows_of(chains, pools, preference)
    return document(
        "loop", {**settings, "wants": PREFERENCES[preference].wants}, rows, chains=list(chains), pools=pools
    )


def summary(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{result['settings']['preference']} ({result['settings']['wants']}), commit {result['commit']}"]
    lines += [
        f"after {pool['votes']} votes, mean of {pool['chains']}: {pool['win_rate']:.1%}"
        f" ({pool['low']:.1%} to {pool['high']:.1%})"
        for pool in result["pools"]
    ]
    for chain in result["chains"]:
        lines.append(f"\nvotes {ARM_TITLES[chain['arm']]}, chain {chain['chain']}")
        for found in chain["rounds"]:
            lines.append(
                f"  {found['votes']} votes, run {found['run']} {found['status']} in {found['seconds'] / 60:.1f} min:"
            )
            lines.append(f"    {'HOLDS' if found['holds'] else 'FAILS'}, {'; '.join(found['reasons']) or found['why']}")
            if found["contest"]:
                moved = "" if found["kl"] is None else f"; KL {found['kl']:.1f} nats, {found['tokens']:g} tokens"
                lines.append(f"    {describe(found['contest'])}{moved}")
                lines.append(f"    {describe_fluency(found['fluency'], chain['base'])}")
        if chain["stream"]:
            lines.append(f"  stream during the triggered runs: {describe_stream(chain['stream'])}")
        minutes, gigabytes = chain["wall_seconds"] / 60, chain["peak_memory_bytes"]["sum"] / 1e9
        lines.append(
            f"  {chain['votes']} votes ({chain['tie_votes']} ties), {chain['requests']} requests,"
            f" {len(chain['failures'])} failed, {minutes:.1f} min, peak {gigabytes:.2f} GB"
        )
        lines += [f"    {name}: {seconds:.0f} s" for name, seconds in chain["seconds"].items()]
        lines += [f"    failed: {failure}" for failure in chain["failures"][:5]]
    return "\n".join(lines)


def describe(found: Mapping[str, Any]) -> str:
    """A contest in one line."""
    if found["win_rate"] is None:
        return f"all {found['ties']} pairs are ties"
    return (
        f"win rate {found['win_rate']:.1%} ({found['low']:.1%} to {found['high']:.1%}):"
        f" {found['wins']} won, {found['losses']} lost, {found['ties']} tied"
    )


def describe_fluency(fluency: Mapping[str, float], base: Mapping[str, float]) -> str:
    """Both versions' text in one line."""
    ours, theirs = Fluency(**fluency), Fluency(**base)
    return (
        f"{ours.distinct:.0%} distinct ({theirs.distinct:.0%} base), median {ours.median_words:g} words"
        f" ({theirs.median_words:g}), {ours.nll:.2f} nats a token ({theirs.nll:.2f}),"
        f" {ours.capped:.0%} at the limit ({theirs.capped:.0%})"
    )


def describe_stream(stream: Mapping[str, Any]) -> str:
    """The streaming chat in one line."""
    runs = ", then ".join(f"{entry['answers']} by version {entry['version']}" for entry in stream["versions"])
    return (
        f"{stream['answers']} answers, {stream['failed']} failed, {stream['mixed']} mixed: {runs or 'none'};"
        f" {stream['in_flight_at_swap']} under way at the swap"
    )
