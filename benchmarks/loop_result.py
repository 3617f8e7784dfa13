"""From an arm's saved state to its figures: win rates with intervals, fluency, verdicts, rows and the printed table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from benchmarks.fluency import Fluency, SavedAnswer, complaints, measure
from benchmarks.loop_state import ArmState
from benchmarks.record import Row, document
from benchmarks.voters import PREFERENCES, Arm, Preference, winner
from serve.feedback.statistics import win_rate

TARGET = 0.65
"""The win rate that a plain preference should reach."""
ARM_TITLES: dict[str, str] = {"real": "as preferred", "flipped": "flipped", "random": "at random"}


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


def contest(preference: Preference, ours: Sequence[SavedAnswer], base: Sequence[SavedAnswer]) -> Contest:
    """Judge two versions' answers to the same prompts under the same seeds."""
    if [(a.index, a.seed) for a in ours] != [(b.index, b.seed) for b in base]:
        raise ValueError("both versions must have answered the same prompts with the same seeds")
    results = Counter(winner(preference, a.text, b.text) for a, b in zip(ours, base, strict=True))
    wins, losses, ties = results[0], results[1], results[None]
    if wins + losses == 0:
        return Contest(wins, losses, ties, None, None, None)
    interval = win_rate(wins, losses)
    return Contest(wins, losses, ties, interval.value, interval.low, interval.high)


def verdict(arm: str, run_status: str, result: Contest | None, found: Sequence[str]) -> tuple[bool, str]:
    """Does an arm show what it should, and why (not)? `found` are the fluency complaints."""
    if arm == "random" and run_status == "rejected":
        return True, "the gate rejected it"
    if result is None or result.win_rate is None or result.low is None or result.high is None:
        return False, "no version to judge"
    if found and arm != "random":
        return False, "does not count: " + "; ".join(found)
    if arm == "real":
        holds = result.win_rate >= TARGET and result.low > 0.5
        return holds, f"{'reaches' if holds else 'misses'} {TARGET:.0%} with its interval above 50%"
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
        "switches": max(len(sequence) - 1, 0),
        "in_flight_at_swap": sum(row["versions"] != [row["serving"]] for row in whole if len(row["versions"]) == 1),
    }


def arm_result(arm: str, state: ArmState, preference: Preference) -> dict[str, Any]:
    """All that an arm found."""
    done = state.done
    voted = state.voted()
    versions = done["answers"]
    base = list(state.answers(0).by_index().values()) if versions else []
    base_fluency = measure(base, done["nll"]["0"]) if versions else None
    evaluations = []
    for run in (done[name] for name in ("first_run", "later_run") if name in done):
        version = run["version"]
        if version is None or base_fluency is None:
            continue
        ours = list(state.answers(version).by_index().values())
        fluency = measure(ours, done["nll"][str(version)])
        evaluations.append(
            {
                "version": version,
                "run": run["id"],
                "run_status": run["status"],
                "votes": done["first_run_started"]["votes"] if run is done.get("first_run") else len(voted),
                **asdict(contest(preference, ours, base)),
                "fluency": fluency.as_json(),
                "complaints": complaints(fluency, base_fluency),
            }
        )
    later = done["later_run"]
    last = next((e for e in evaluations if e["run"] == later["id"]), None)
    last_contest = Contest(**{name: last[name] for name in Contest.__dataclass_fields__}) if last else None
    holds, why = verdict(arm, later["status"], last_contest, last["complaints"] if last else ())
    return {
        "arm": arm,
        "votes": len(voted),
        "tie_votes": sum(row["best"] is None for row in voted),
        "voted_on_versions": dict(sorted(Counter(str(v) for row in voted for v in row["versions"]).items())),
        "first_run_started": done.get("first_run_started"),
        "first_run": done.get("first_run"),
        "restart": done.get("restart"),
        "refused_runs": state.refused_runs,
        "later_run": later,
        "stream": stream_facts(state.streams.rows) if arm == "real" else None,
        "base": base_fluency.as_json() if base_fluency else None,
        "evaluations": evaluations,
        "holds": holds,
        "why": why,
        "seconds": {name: round(seconds, 1) for name, seconds in state.seconds.items()},
        "wall_seconds": round(sum(state.seconds.values()), 1),
        "peak_memory_bytes": state.peak_memory,
        "requests": state.traffic.requests,
        "failures": state.traffic.failures,
        "commits": state.commits,
    }


def rows_of(result: Mapping[str, Any], preference: str) -> list[Row]:
    """An arm's figures in the shape that all benchmarks share."""
    arm = f"{preference}, votes {ARM_TITLES[result['arm']]}"
    rows = []
    for found in result["evaluations"]:
        name, fluency, base = f"{arm}, run {found['run']}", found["fluency"], result["base"]
        rate = found["win_rate"]
        if rate is not None:
            rows.append(
                Row(f"{name}: win rate", "share", rate, "base", 0.5, rate / 0.5, low=found["low"], high=found["high"])
            )
        rows += [
            Row(
                f"{name}: nats a token under the base",
                "nats",
                fluency["nll"],
                "base",
                base["nll"],
                base["nll"] / fluency["nll"] if fluency["nll"] else None,
            ),
            Row(f"{name}: distinct answers", "share", fluency["distinct"], "base", base["distinct"]),
            Row(f"{name}: median words", "words", fluency["median_words"], "base", base["median_words"]),
        ]
    return [
        *rows,
        Row(f"{arm}: wall time", "s", result["wall_seconds"]),
        Row(f"{arm}: peak memory", "GB", result["peak_memory_bytes"]["sum"] / 1e9),
        Row(f"{arm}: failed requests", "requests", len(result["failures"])),
    ]


def loop_document(states: Mapping[Arm, ArmState], preference: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The benchmark's JSON."""
    chosen = PREFERENCES[preference]
    arms = [arm_result(arm, state, chosen) for arm, state in states.items()]
    rows = [row for result in arms for row in rows_of(result, preference)]
    return document("loop", {**settings, "wants": chosen.wants}, rows, arms=arms)


def summary(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{result['settings']['preference']} ({result['settings']['wants']}), commit {result['commit']}"]
    for arm in result["arms"]:
        lines.append(f"\nvotes {ARM_TITLES[arm['arm']]}: {'HOLDS' if arm['holds'] else 'FAILS'}, {arm['why']}")
        for found in arm["evaluations"]:
            lines.append(f"  version {found['version']} (run {found['run']} {found['run_status']}): {describe(found)}")
            lines.append(f"    {describe_fluency(found['fluency'], arm['base'])}")
        lines += [
            f"  run {run['id']} rejected: {'; '.join((run['report'] or {}).get('reasons', []))}"
            for run in arm["refused_runs"]
        ]
        if arm["stream"]:
            lines.append(f"  stream during the triggered runs: {describe_stream(arm['stream'])}")
        minutes, gigabytes = arm["wall_seconds"] / 60, arm["peak_memory_bytes"]["sum"] / 1e9
        lines.append(
            f"  {arm['votes']} votes ({arm['tie_votes']} ties), {arm['requests']} requests,"
            f" {len(arm['failures'])} failed, {minutes:.1f} min, peak {gigabytes:.2f} GB"
        )
        lines += [f"    {name}: {seconds:.0f} s" for name, seconds in arm["seconds"].items()]
        lines += [f"    failed: {failure}" for failure in arm["failures"][:5]]
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
