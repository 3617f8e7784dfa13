"""docs/benchmarks.md and its pictures, made from benchmarks/results/*.json: no figure there is typed by hand.

Text between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced: `loop`, `loop-chains` and `loop-runs` by tables
of the loop benchmark, and the name of any other benchmark by a table of its rows (`gate` and `votes` by one of their
details, too; `ppo` by one of its contenders, `alternatives` by one of its ways).

    python -m benchmarks.report            write
    python -m benchmarks.report --check    exit 1 where the page or a picture is not what the JSON says
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.loop import LoopSettings
from benchmarks.loop_result import ARM_TITLES, LETTERS, TARGETS, real_rounds
from benchmarks.pictures import curves, decades, even, shares, tenths
from benchmarks.record import ROOT
from benchmarks.voters import PREFERENCES

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
CURVES = {
    "rows": ("tokens a second by rows decoded together", "rows", decades),
    "context": ("tokens a second while decoding, by tokens of context", "tokens of context", decades),
    "versions": ("tokens a second by versions that answer in one batch", "versions", decades),
    "cost": ("what an episode of PPO costs, by the length of its answer", "tokens", tenths),
    "accuracy": ("right on clean pairs that nobody voted on, mean of preferences", "votes", shares),
}
"""Title, x and y axis of a result's curves by name."""
COLOURS = {"real": "#1a7f5a", "flipped": "#b3541e", "random": "#6b7280"}
"""Of the loop's arms; others' ways have that of chance."""
_NOTHING_YET = "No result is committed yet."

Result = Mapping[str, Any]


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All committed results, in the order of their file names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def loop_table(results: Sequence[Result]) -> str:
    """Win rates over the base by votes: the mean of all chains, and each of them."""
    head = ("voters want", "votes", "win rate over the base (95%)", "to be reached", "each chain", "pairs that tie")
    return table(head, (_pool_line(result, pool) for result in results for pool in result["pools"]))


def _pool_line(result: Result, pool: Result) -> list[str]:
    target = TARGETS.get(pool["votes"])
    rounds = real_rounds(result["chains"], pool["votes"])
    served = "".join(found["served"] for found in rounds)
    return [
        _wants(result),
        str(pool["votes"]),
        _rate(pool),
        "–" if target is None else f"{target:.0%}",
        ", ".join(_served_rate(rate, found) for rate, found in zip(pool["each"], rounds, strict=True)),
        f"{served.count(LETTERS[None]) / len(served):.0%}" if served else "–",
    ]


def _served_rate(rate: float | None, found: Result) -> str:
    """What served after a round, with a star where the gate refused that round's own version."""
    if rate is None:
        return "as the base"
    return f"{rate:.1%}" + ("" if found["serving"] == found["version"] else "\\*")


def loop_chains_table(results: Sequence[Result]) -> str:
    """What makes a win rate count, round by round."""
    head = ("voters want", "votes", "chain", "run", "win rate over the base (95%)", "won / tied / lost", "distinct",
            "median words (base)", "nats a token (base)", "KL", "reward accuracy", "verdict")  # fmt: skip
    return table(
        head,
        (
            _round_line(result, chain, found)
            for result in results
            for chain in result["chains"]
            for found in chain["rounds"]
        ),
    )


def _round_line(result: Result, chain: Result, found: Result) -> list[str]:
    accuracy = found["reward_accuracy"]
    start = [
        _wants(result),
        f"{found['votes']} {ARM_TITLES[chain['arm']]}",
        str(chain["chain"]),
        f"{found['status']}, {found['seconds'] / 60:.1f} min",
    ]
    trusted = f"{accuracy['value']:.0%}" if accuracy else "–"
    contest, fluency, base = found["contest"], found["fluency"], chain["base"]
    if contest is None:
        return [*start, *["–"] * 6, trusted, "; ".join(found["reasons"]) or found["why"]]
    return [
        *start,
        _rate(contest),
        f"{contest['wins']} / {contest['ties']} / {contest['losses']}",
        f"{fluency['distinct']:.0%}",
        f"{fluency['median_words']:g} ({base['median_words']:g})",
        f"{fluency['nll']:.2f} ({base['nll']:.2f})",
        "–" if found["kl"] is None else f"{found['kl']:.1f}",
        trusted,
        "; ".join(found["reasons"]) or found["why"],
    ]


def _wants(result: Result) -> str:
    settings = result["settings"]
    return f"{settings['wants']}{_longest(result, ', {} tokens')}" + (" (quick)" if settings["quick"] else "")


def _loop_name(result: Result) -> str:
    return f"loop-{result['settings']['preference']}{_longest(result, '-{}')}"


def _longest(result: Result, template: str) -> str:
    """The answers' limit, where it is not the usual one."""
    limit = result["settings"]["max_tokens"]
    return "" if limit == LoopSettings.max_tokens else template.format(limit)


def _rate(found: Result) -> str:
    if found["win_rate"] is None:
        return "–"
    return f"**{found['win_rate']:.1%}** ({found['low']:.1%} to {found['high']:.1%})"


def loop_runs_table(results: Sequence[Result]) -> str:
    """What the loop cost; and whether anybody noticed the swap, where somebody kept chatting."""
    head = ["voters want", "votes", "chain", "wall time", "runs", "peak memory", "requests (failed)"]
    lines = [(result, chain) for result in results for chain in result["chains"]]
    chatted = any(chain["stream"] for _, chain in lines)
    if chatted:
        head.append("chat across swaps (mixed: begun by one version, finished by another)")
    return table(head, (_cost_line(result, chain, chatted) for result, chain in lines))


def _cost_line(result: Result, chain: Result, chatted: bool) -> list[str]:
    started, stream = chain["first_run_started"], chain["stream"]
    runs = [f"one started by itself {started['delay_seconds']:.1f} s after vote {started['votes']}"] if started else []
    runs += [f"{found['seconds'] / 60:.1f} min at {found['votes']} votes" for found in chain["rounds"]]
    return [
        _wants(result),
        f"{chain['votes']} {ARM_TITLES[chain['arm']]}",
        str(chain["chain"]),
        f"{chain['wall_seconds'] / 60:.0f} min",
        ", ".join(runs),
        f"{chain['peak_memory_bytes']['sum'] / 1e9:.2f} GB",
        f"{chain['requests']} ({len(chain['failures'])})",
        *([_swap(stream) if stream else "–"] if chatted else []),
    ]


def _swap(stream: Result) -> str:
    spans = ", then ".join(f"{span['answers']} by v{span['version']}" for span in stream["versions"])
    return f"{stream['answers']} answers, {stream['failed']} failed: {spans}; {stream['mixed']} mixed"


def rows_table(result: Result) -> str:
    """Any other benchmark's rows."""
    head = ("what", "ours", "peer", "theirs", "ratio", "runs", "interval")
    return table(head, (_row_line(row) for row in result["rows"]))


def _row_line(row: Result) -> list[str]:
    low, high = row["low"], row["high"]
    return [
        f"{row['what']} ({row['unit']})",
        _figure(row["ours"]),
        row["peer"] or "–",
        "–" if row["theirs"] is None else _figure(row["theirs"]),
        "–" if row["ratio"] is None else f"{row['ratio']:.2f}×",
        str(row["runs"]),
        "–" if low is None or high is None else f"{_figure(low)} to {_figure(high)}",
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def gate_table(result: Result) -> str:
    """What the gate said of each version, and whether it should."""
    head = ("version", "the gate should", "it did", "prompts won, say the fold models", "its reasons")
    return table(head, (_gate_line(finding) for finding in result["verdicts"]))


def _gate_line(finding: Result) -> list[str]:
    won, reasons = finding["win_rate"], finding["reasons"]
    return [
        finding["version"],
        "refuse it" if finding["expected"] else "let it pass",
        ("" if finding["holds"] else "**wrong**: ") + ("refuse it" if reasons else "let it pass"),
        f"{won['value']:.0%} of {won['prompts']}" if won else "–",
        "; ".join(reasons) or "–",
    ]


def ppo_table(result: Result) -> str:
    """Each contender's speed, memory and phases, and how many times as fast as TRL's it is."""
    head = ("prompt + answer", "who", "episodes/s", "× TRL as shipped", "× TRL, LoRA on its value model", "peak GB",
            "peak over TRL's as shipped", "seconds: generate, score, update")  # fmt: skip
    lines = result["contenders"]
    peers = {(line["answer"], line["who"]): line for line in lines if line["who"].startswith("trl")}

    def over(line: Result, who: str, figure: str) -> str:
        peer = peers.get((line["answer"], who))
        return "–" if peer is None or line["who"].startswith("trl") else f"**{line[figure] / peer[figure]:.2f}**"

    return table(
        head,
        (
            (
                f"{line['prompt']} + {line['answer']} tokens",
                line["who"].replace("trl", "TRL,") if line["who"].startswith("trl") else f"ours, {line['who']}",
                f"{line['speed']:.2f}",
                over(line, "trl as shipped", "speed"),
                over(line, "trl LoRA on its value model", "speed"),
                f"{line['peak']:.2f}",
                over(line, "trl as shipped", "peak"),
                ", ".join(f"{line[phase]:.2f}" for phase in ("generate", "score", "update")),
            )
            for line in lines
        ),
    )


def votes_table(result: Result) -> str:
    """Accuracy by preference and way, a column for each number of votes: ours, and the probe's in brackets."""
    means = {(mean["preference"], mean["way"], mean["votes"]): mean for mean in result["means"]}
    counts = sorted({votes for _, _, votes in means})

    def cell(preference: str, way: str, votes: int) -> str:
        mean = means.get((preference, way, votes))
        return f"{mean['ours']:.1%} ({mean['probe']:.1%})" if mean else "–"

    return table(
        ("voters want", "pairs", *(f"{votes} votes: ours (probe)" for votes in counts)),
        (
            (PREFERENCES[preference].wants, way, *(cell(preference, way, votes) for votes in counts))
            for preference, way in dict.fromkeys((preference, way) for preference, way, _ in means)
        ),
    )


def alternatives_table(result: Result) -> str:
    """What each way of learning from the same votes brought, and what it took."""
    head = ("way", "win rate over the base (95%)", "won / tied / lost", "median words", "training")
    return table(head, (_alternative_line(way, found) for way, found in result["found"].items()))


def _alternative_line(way: str, found: Result) -> list[str]:
    minutes, steps = found.get("seconds", 0.0) / 60, found.get("steps", 0)
    cut = f", {steps} of {found['of']} steps" if steps < found.get("of", 0) else ""
    return [
        way,
        _rate(found) + (f"; does not count: {'; '.join(found['complaints'])}" if found["complaints"] else ""),
        f"{found['wins']} / {found['ties']} / {found['losses']}",
        f"{found['fluency']['median_words']:g}",
        f"{minutes:.1f} min{cut}" if minutes else "none",
    ]


def result_table(result: Result) -> str:
    """The table that stands for a result on the page."""
    made_of = ppo_table if result["name"] == "ppo" else alternatives_table if "found" in result else rows_table
    return made_of(result)


DETAILS = {"gate": gate_table, "votes": votes_table}
"""What stands below the rows of a result."""


def made_on(results: Sequence[Result]) -> str:
    """Machines and commits, a line each; the loop's chains, fits and cells may come from several."""
    lines = []
    for result in results:
        loop = result["name"] == "loop"
        label = _loop_name(result) if loop else result["name"]
        parts = result["chains"] if loop else result.get("made") or [{**result, "commits": [result["commit"]]}]
        for made in parts:
            machine = made["machine"]
            lines.append(
                f"{label}: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB,"
                f" torch {machine['torch']}, commit {', '.join(f'`{commit}`' for commit in made['commits'])}"
            )
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def loop_picture(results: Sequence[Result]) -> str:
    """The mean of all chains, and each control."""
    judged = []
    for result in results:
        wants = _wants(result)
        judged += [(f"{wants}, {pool['votes']} votes", COLOURS["real"], pool) for pool in result["pools"]]
        judged += [
            (f"{wants}, {found['votes']} votes {ARM_TITLES[chain['arm']]}", COLOURS[chain["arm"]], found["contest"])
            for chain in result["chains"]
            for found in chain["rounds"]
            if chain["arm"] != "real" and found["contest"] and found["contest"]["win_rate"] is not None
        ]
    return rates_picture(judged)


def alternatives_picture(result: Result) -> str:
    """Each way of learning from the same votes that wins or loses anything."""
    judged = [(way, found) for way, found in result["found"].items() if found["win_rate"] is not None]
    return rates_picture([(way, COLOURS["random" if "TRL" in way else "real"], found) for way, found in judged])


def rates_picture(judged: Sequence[tuple[str, str, Result]]) -> str:
    """Win rates with their intervals as SVG, by label and colour; the dashed line is a coin."""
    left, width, step, top = 400, 380, 30, 34
    height = top + step * len(judged) + 34
    x = {share: left + width * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" {font}>',
        f'<rect width="{left + width + 70}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="18" fill="#374151">win rate over the base on held-out prompts, 95% interval</text>',
    ]
    for share, at in x.items():
        dash = ' stroke-dasharray="4 3"' if share == 0.5 else ""
        colour = "#6b7280" if share == 0.5 else "#e5e7eb"
        parts.append(f'<line x1="{at}" y1="{top - 6}" x2="{at}" y2="{height - 28}" stroke="{colour}"{dash}/>')
        parts.append(f'<text x="{at}" y="{height - 10}" text-anchor="middle" fill="#374151">{share:.0%}</text>')
    for line, (label, colour, found) in enumerate(judged):
        y = top + step * line + step / 2
        low, high, rate = (left + width * found[share] for share in ("low", "high", "win_rate"))
        parts += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#111827">{escape(label)}</text>',
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{rate:.1f}" cy="{y}" r="6" fill="{colour}"/>',
            f'<text x="{left + width + 12}" y="{y + 4}" fill="#111827">{found["win_rate"]:.1%}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def way_picture(result: Result) -> str:
    """What the reward model and what the voters would say of each policy on the way, over the root of its KL."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for chain in result["chains"]:
        for found in chain["rounds"] if chain["arm"] == "real" and chain["chain"] == 0 else ():
            for what, name in (("score", "reward model"), ("hidden", "hidden")):
                points = sorted((max(step["kl"], 0.0) ** 0.5, step[what]) for step in found["way"])
                if points:
                    lines[f"{name}, {found['votes']} votes"] = points
    title = f"{_wants(result)}: standard deviations above the base"
    return curves(title, "√KL to the base (√nats)", lines, x_axis=even, y_axis=even) if lines else ""


def fill_page(page: str, results: Sequence[Result]) -> str:
    """The page with every marked part made anew. Raises ValueError for a marker that is not closed."""
    loops = [result for result in results if result["name"] == "loop"]
    parts = {"machines": made_on(results)}
    for name, made_of in (("loop", loop_table), ("loop-chains", loop_chains_table), ("loop-runs", loop_runs_table)):
        parts[name] = made_of(loops) if loops else _NOTHING_YET
    for result in results:
        if result["name"] != "loop":
            parts[result["name"]] = result_table(result)
        if result["name"] in DETAILS:
            parts[result["name"]] += f"\n\n{DETAILS[result['name']](result)}"
    begun, ended = (re.findall(rf"<!-- {word} ([\w-]+) -->", page) for word in ("begin", "end"))
    if begun != ended:
        raise ValueError(f"markers begin {begun} but end {ended}")
    for name in begun:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{parts.get(name) or _NOTHING_YET}\n{end}{rest.partition(end)[2]}"
    return page


def made(docs: Path, results: Sequence[Result]) -> dict[Path, str]:
    """Every file that the results make, with its text."""
    page = docs / "benchmarks.md"
    loops = [result for result in results if result["name"] == "loop"]
    files = {page: fill_page(page.read_text(encoding="utf-8"), results)}
    if loops:
        files[docs / "images" / "loop.svg"] = loop_picture(loops)
    for result in loops:
        if picture := way_picture(result):
            files[docs / "images" / f"{_loop_name(result)}-way.svg"] = picture
    for result in results:
        if "found" in result:
            files[docs / "images" / f"{result['name']}.svg"] = alternatives_picture(result)
        for name, lines in result.get("curves", {}).items():
            title, across, y_axis = CURVES[name]
            files[docs / "images" / f"{result['name']}-{name}.svg"] = curves(title, across, lines, y_axis=y_axis)
    return files


def main() -> None:
    """Write the page and its pictures, or check them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something is stale")
    check = parser.parse_args().check
    files = made(DOCS, load_results(RESULTS))
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"stale: {', '.join(str(path.relative_to(ROOT)) for path in stale)}; run python -m benchmarks.report")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
