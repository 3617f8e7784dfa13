"""Results to the page and its pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import loop_result, report
from benchmarks.fluency import SavedAnswer
from benchmarks.pictures import curves, even, shares
from benchmarks.voters import (
    PREFERENCES,
)

ROOT = Path(__file__).parent.parent


def test_curves_are_drawn_with_a_point_for_each_figure() -> None:
    lines = {"ours": [(1, 400), (2, 800), (16, 1200)], "theirs & others": [(1, 150), (2, 160), (16, 300)]}
    picture = curves("tokens a second", "rows", lines)
    assert picture.count('r="4"') == 6
    assert "theirs &amp; others" in picture
    assert curves("one", "rows", {"ours": [(1, 5)]}).count('r="4"') == 1


def test_linear_curves_reach_below_zero() -> None:
    picture = curves("scores", "root", {"proxy": [(0.0, -0.5), (2.5, 3.2)]}, x_axis=even, y_axis=even)
    assert ">-1<" in picture and ">4<" in picture and ">3<" in picture
    assert picture.count('<line x1="70"') == 6
    assert not re.search(r"nan|None", picture)


def test_shares_are_written_in_steps_of_five_percent() -> None:
    picture = curves("right", "votes", {"random": [(100, 0.71), (300, 0.8), (1000, 0.84)]}, y_axis=shares)
    assert all(f">{tick}<" in picture for tick in ("70%", "75%", "80%", "85%", "1,000"))
    assert ">65%<" not in picture and ">90%<" not in picture


def test_the_way_of_a_run_is_told_in_deviations_of_the_bases_answers(tmp_path: Path) -> None:
    metrics = [{"stage": "ppo", "step": n, "metrics": {"kl": n - 1.0, "score": 0.5 * n, "length": 9}} for n in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    answers = [(1, "a b c"), (1, "a b c d e"), (2, "a"), (2, "a b c")]
    rows = [json.dumps({"step": step, "prompt": "?", "answer": text, "score": 0.0}) for step, text in answers]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(rows) + "\n")
    base = [SavedAnswer(i, "?", 0, 0, text, "stop") for i, text in enumerate(("a b c", "a b c d e"))]
    found = loop_result.way(tmp_path, PREFERENCES["brevity"], base)
    assert found == [
        {"kl": 0.0, "score": 0.5, "hidden": 0.0, "tokens": 9},
        {"kl": 1.0, "score": 1.0, "hidden": 2.0, "tokens": 9},
    ]
    assert loop_result.way(tmp_path / "none", PREFERENCES["brevity"], base) == []


def test_alternatives_say_what_does_not_count_and_what_took_no_time() -> None:
    def way(**found: object) -> dict[str, object]:
        return {"wins": 0, "ties": 8, "losses": 0, "win_rate": None, "low": None, "high": None, "complaints": [],
                "fluency": {"median_words": 50.0}} | found  # fmt: skip

    won = {"wins": 6, "ties": 1, "losses": 1, "win_rate": 6 / 7, "low": 0.5, "high": 0.9}
    result = {
        "name": "alternatives-brevity",
        "found": {
            "PPO, as the run does it (rejected)": way(seconds=60.0),
            "best of 4 by the reward model": way(**won),
            "TRL's DPO": way(**won, seconds=300.0, steps=28, of=90, complaints=["it repeats itself"]),
        },
    }
    best = "**85.7%** (50.0% to 90.0%)"
    assert report.result_table(result).splitlines()[2:] == [
        "| PPO, as the run does it (rejected) | – | 0 / 8 / 0 | 50 | 1.0 min |",
        f"| best of 4 by the reward model | {best} | 6 / 1 / 1 | 50 | none |",
        f"| TRL's DPO | {best}; does not count: it repeats itself | 6 / 1 / 1 | 50 | 5.0 min, 28 of 90 steps |",
    ]
    picture = report.alternatives_picture(result)
    assert picture.count("<circle") == 2 and "rejected" not in picture


def test_a_marker_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        report.fill_page("<!-- begin loop -->\n", [])


def test_the_committed_page_says_what_the_committed_results_say() -> None:
    for path, text in report.made(ROOT / "docs", report.load_results(report.RESULTS)).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python -m benchmarks.report"
