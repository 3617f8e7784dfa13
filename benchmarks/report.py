"""docs/benchmarks.md and its pictures, made from benchmarks/results/*.json: no figure there is typed by hand.

Text between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced: `loop` and `loop-runs` by tables of the loop
benchmark, and the name of any other benchmark by a table of its rows.

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

from benchmarks.loop_result import ARM_TITLES, Contest
from benchmarks.pictures import curves
from benchmarks.record import ROOT

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
CURVES = {
    "rows": ("tokens a second by rows decoded together", "rows"),
    "context": ("tokens a second while decoding, by tokens of context", "tokens of context"),
    "versions": ("tokens a second by versions that answer in one batch", "versions"),
}
"""Title and x axis of a result's curves by name."""
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
    """Win rates over the base, with what makes them count."""
    head = ("voters want", "votes", "run", "win rate over the base (95%)", "won / tied / lost",
            "distinct", "median words (base)", "nats a token (base)", "verdict")  # fmt: skip
    return table(head, (_contest_line(result, arm, found) for result, arm, found in _evaluated(result_arms(results))))


def _contest_line(result: Result, arm: Result, found: Result | None) -> list[str]:
    settings = result["settings"]
    votes = (found or arm)["votes"]
    start = [settings["wants"] + (" (quick)" if settings["quick"] else ""), f"{votes} {ARM_TITLES[arm['arm']]}"]
    if found is None:
        run = arm["later_run"]
        return [*start, f"{run['id']}, {run['status']}", "–", "–", "–", "–", "–", arm["why"]]
    fluency, base = found["fluency"], arm["base"]
    last = found["run"] == arm["later_run"]["id"]
    return [
        *start,
        f"{found['run']}, {found['run_status']}",
        _rate(found),
        f"{found['wins']} / {found['ties']} / {found['losses']}",
        f"{fluency['distinct']:.0%}",
        f"{fluency['median_words']:g} ({base['median_words']:g})",
        f"{fluency['nll']:.2f} ({base['nll']:.2f})",
        arm["why"] if last else "; ".join(found["complaints"]) or "on the way",
    ]


def _rate(found: Result) -> str:
    if found["win_rate"] is None:
        return "–"
    return f"**{found['win_rate']:.1%}** ({found['low']:.1%} to {found['high']:.1%})"


def loop_runs_table(results: Sequence[Result]) -> str:
    """What the loop cost, and whether anybody noticed the swap."""
    head = ("voters want", "votes", "wall time", "runs", "peak memory", "requests (failed)", "chat across the swap")
    return table(head, (_cost_line(result, arm) for result, arm in result_arms(results)))


def _cost_line(result: Result, arm: Result) -> list[str]:
    started, stream = arm["first_run_started"], arm["stream"]
    runs = [f"one started by itself {started['delay_seconds']:.1f} s after vote {started['votes']}"] if started else []
    later = arm["seconds"].get("later run")
    if later is not None:
        refused = len(arm["refused_runs"])
        runs.append(
            f"the triggered one took {later / 60:.1f} min" + (f" ({refused} refused before it)" if refused else "")
        )
    return [
        result["settings"]["wants"] + (" (quick)" if result["settings"]["quick"] else ""),
        f"{arm['votes']} {ARM_TITLES[arm['arm']]}",
        f"{arm['wall_seconds'] / 60:.0f} min",
        ", ".join(runs),
        f"{arm['peak_memory_bytes']['sum'] / 1e9:.2f} GB",
        f"{arm['requests']} ({len(arm['failures'])})",
        _swap(stream) if stream else "–",
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
        f"{row['ours']:.4g}",
        row["peer"] or "–",
        "–" if row["theirs"] is None else f"{row['theirs']:.4g}",
        "–" if row["ratio"] is None else f"{row['ratio']:.2f}×",
        str(row["runs"]),
        "–" if low is None or high is None else f"{low:.4g} to {high:.4g}",
    ]


def made_on(results: Sequence[Result]) -> str:
    """Machines and commits, a line each."""
    lines = []
    for result in results:
        machine, settings = result["machine"], result["settings"]
        label = f"{result['name']} {settings['preference']}" if "preference" in settings else result["name"]
        lines.append(
            f"{label}: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB,"
            f" torch {machine['torch']}, commit `{result['commit']}`"
        )
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def result_arms(results: Iterable[Result]) -> list[tuple[Result, Result]]:
    """Each arm of each loop result."""
    return [(result, arm) for result in results for arm in result["arms"]]


def _evaluated(arms: Iterable[tuple[Result, Result]]) -> list[tuple[Result, Result, Result | None]]:
    return [(result, arm, found) for result, arm in arms for found in (arm["evaluations"] or [None])]


def loop_picture(results: Sequence[Result]) -> str:
    """Win rates with their intervals as SVG, one line an arm; the dashed line is a coin."""
    judged = [
        (f"{result['settings']['wants']}, {found['votes']} votes {ARM_TITLES[arm['arm']]}", arm["arm"], found)
        for result, arm, found in _evaluated(result_arms(results))
        if found is not None and found["win_rate"] is not None
    ]
    left, width, step, top = 400, 380, 30, 34
    height = top + step * len(judged) + 34
    x = {share: left + width * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    colours = {"real": "#1a7f5a", "flipped": "#b3541e", "random": "#6b7280"}
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
    for line, (label, arm, found) in enumerate(judged):
        y = top + step * line + step / 2
        result = Contest(**{name: found[name] for name in Contest.__dataclass_fields__})
        low, high, rate = (left + width * (share or 0.0) for share in (result.low, result.high, result.win_rate))
        colour = colours[arm]
        parts += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#111827">{escape(label)}</text>',
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{rate:.1f}" cy="{y}" r="6" fill="{colour}"/>',
            f'<text x="{left + width + 12}" y="{y + 4}" fill="#111827">{result.win_rate or 0.0:.1%}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def fill_page(page: str, results: Sequence[Result]) -> str:
    """The page with every marked part made anew. Raises ValueError for a marker that is not closed."""
    loops = [result for result in results if result["name"] == "loop"]
    parts = {"machines": made_on(results), "loop": loop_table(loops), "loop-runs": loop_runs_table(loops)}
    if not loops:
        parts |= dict.fromkeys(("loop", "loop-runs"), _NOTHING_YET)
    for result in results:
        if result["name"] != "loop":
            parts[result["name"]] = rows_table(result)
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
    for result in results:
        for name, lines in result.get("curves", {}).items():
            title, across = CURVES[name]
            files[docs / "images" / f"{result['name']}-{name}.svg"] = curves(title, across, lines)
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
