"""The phases of the loop benchmark, against a stand-in for the server and once for real."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import client, loop, report
from benchmarks.loop_state import Lines
from benchmarks.voters import (
    words,
)
from tests.fake_api import FakeServer


@pytest.fixture
def quick_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`quick_loop(*arguments)` plays the benchmark against the stand-in, with nothing to wait for."""
    monkeypatch.setattr(loop, "Server", FakeServer)
    monkeypatch.setattr(FakeServer, "kept", {})
    monkeypatch.setattr(FakeServer, "outcomes", [])
    monkeypatch.setattr(FakeServer, "faults", {})
    monkeypatch.setattr(loop, "SERVER_POLL", 0.01)
    monkeypatch.setattr(loop, "READING", 0.0)
    monkeypatch.setattr(client, "PATIENCE", 0.01)
    monkeypatch.setattr("benchmarks.loop_state.commit", lambda: "abc")

    def likelihoods(state: Any, *_: Any) -> None:
        state.nll |= {str(version): 1.0 for version in [0, *state.versions()]}
        state.save()

    monkeypatch.setattr(loop, "add_likelihoods", likelihoods)

    def play(*arguments: str) -> dict[str, Any]:
        return loop.main(["--rounds", "8,24", "--held-out", "20", "--exact", "--work", str(tmp_path), *arguments])

    return play


def test_a_chain_goes_from_votes_to_swaps_and_win_rates(
    quick_loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quick_loop("--arms", "real", "--chat", "--json", str(tmp_path / "out" / "loop.json"))
    [chain] = result["chains"]
    started = chain["first_run_started"]
    assert (started["trigger"], started["early"], started["votes"]) == ("votes", 0, 8)
    assert [chain["votes"], chain["failures"]] == [24, []]
    assert chain["restarts"] == [{"expected": 1, "serving": 1}, {"expected": 2, "serving": 2}]
    assert chain["stream"]["failed"] == chain["stream"]["mixed"] == 0
    assert chain["stream"]["versions"][-1]["version"] == 2
    first, later = chain["rounds"]
    assert [(r["votes"], r["version"], r["serving"]) for r in (first, later)] == [(8, 1, 1), (24, 2, 2)]
    assert later["contest"]["wins"] == 20 and later["contest"]["win_rate"] == 1.0 and later["holds"]
    assert [(pool["votes"], pool["chains"]) for pool in result["pools"]] == [(8, 1), (24, 1)]
    assert result["pools"][1]["win_rate"] == 1.0
    data = FakeServer.kept[tmp_path / "real-0" / "data"]
    assert len(data.voters) == 5 and sum(data.voters.values()) == 24
    assert all(c["body"]["max_tokens"] == 64 for c in data.comparisons.values())
    assert json.loads((tmp_path / "out" / "loop.json").read_text()) == result
    assert "win rate 100.0%" in capsys.readouterr().out


def test_no_held_out_prompt_reaches_the_server_before_the_last_run(quick_loop: Any, tmp_path: Path) -> None:
    """Runs learn on what people asked of the server."""
    quick_loop("--arms", "real")
    assert FakeServer.kept[tmp_path / "real-0" / "data"].runs_before == [2] * 3 * 20


def test_only_the_first_chain_goes_beyond_what_all_do(
    quick_loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SHORT", 8)
    result = quick_loop("--chains", "2", "--arms", "real,flipped")
    assert [(c["arm"], c["chain"], c["votes"]) for c in result["chains"]] == [
        ("real", 0, 24),
        ("real", 1, 8),
        ("flipped", 0, 8),
    ]
    asked = [
        [c["body"]["messages"] for c in FakeServer.kept[tmp_path / name / "data"].comparisons.values()][:8]
        for name in ("real-0", "real-1")
    ]
    assert asked[0] != asked[1]


def test_votes_follow_the_hidden_preference(quick_loop: Any, tmp_path: Path) -> None:
    quick_loop("--arms", "real,flipped")
    for arm, better in (("real-0", min), ("flipped-0", max)):
        data = FakeServer.kept[tmp_path / arm / "data"]
        decided = [c for c in data.comparisons.values() if "ranking" in c["vote"]]
        assert decided
        for comparison in decided:
            lengths = {c["id"]: len(words(c["text"])) for c in comparison["candidates"]}
            assert comparison["vote"]["ranking"][0][0] == better(lengths, key=lambda c: lengths[c])


def test_controls_only_have_triggered_runs(quick_loop: Any) -> None:
    for chain in quick_loop("--arms", "flipped,random")["chains"]:
        assert chain["first_run_started"] is None and chain["stream"] is None
        assert [found["run"] for found in chain["rounds"]] == [1, 2]


def test_where_the_gate_refuses_what_served_counts(quick_loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    FakeServer.outcomes = ["rejected", "succeeded"]
    result = quick_loop("--arms", "real")
    [chain] = result["chains"]
    assert [(r["version"], r["serving"], r["holds"]) for r in chain["rounds"]] == [(None, 0, False), (2, 2, True)]
    assert [pool["win_rate"] for pool in result["pools"]] == [0.5, 1.0]
    assert "FAILS, too few votes" in capsys.readouterr().out


def test_a_version_the_gate_never_saw_leaves_no_win_rate(quick_loop: Any) -> None:
    FakeServer.outcomes = ["rejected", "rejected"]
    [chain] = quick_loop("--arms", "random")["chains"]
    assert [(r["contest"], r["holds"], r["why"]) for r in chain["rounds"]] == [(None, True, "the gate refused it")] * 2


def test_failed_requests_are_counted_and_tried_again(quick_loop: Any) -> None:
    FakeServer.faults = {"POST /api/comparisons": 2, "GET /api/runs/1": 1}
    [arm] = quick_loop("--arms", "random")["chains"]
    assert len(arm["failures"]) == 3 and all("503" in failure for failure in arm["failures"])
    assert arm["votes"] == 24


def test_a_killed_arm_goes_on_where_it_was(quick_loop: Any, tmp_path: Path) -> None:
    FakeServer.faults = {"POST /v1/chat/completions": 3 * 8 + 5}
    with pytest.raises(client.RequestFailed):
        quick_loop("--arms", "random")
    data = FakeServer.kept[tmp_path / "random-0" / "data"]
    comparisons, runs = len(data.comparisons), len(data.runs)
    assert (comparisons, runs) == (24, 2)
    FakeServer.faults = {}
    [arm] = quick_loop("--arms", "random")["chains"]
    assert (len(data.comparisons), len(data.runs)) == (24, 2)
    assert arm["votes"] == 24 and all(found["contest"]["losses"] == 0 for found in arm["rounds"])
    assert len(arm["failures"]) > 0
    before = dict(data.voters)
    quick_loop("--arms", "random")
    assert data.voters == before


def test_a_vote_cast_but_not_noted_is_cast_under_the_same_key(quick_loop: Any, tmp_path: Path) -> None:
    quick_loop("--arms", "random")
    file = tmp_path / "random-0" / "comparisons.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    forgotten = next(i for i, line in enumerate(lines) if line["number"] == 5 and line["state"] == "voted")
    kept = [json.dumps(line) for i, line in enumerate(lines) if i != forgotten]
    file.write_text("\n".join(kept) + "\n" + '{"number": 3, "sta')
    state = json.loads((tmp_path / "random-0" / "state.json").read_text())
    del state["rounds"]["24"]
    (tmp_path / "random-0" / "state.json").write_text(json.dumps(state))
    [arm] = quick_loop("--arms", "random")["chains"]
    assert arm["votes"] == 24 and arm["failures"] == []
    assert len(FakeServer.kept[tmp_path / "random-0" / "data"].votes) == 24


def test_a_failed_run_is_said_and_the_next_start_triggers_another(quick_loop: Any) -> None:
    FakeServer.outcomes = ["failed"]
    with pytest.raises(loop.RunBroke, match="run 1 failed"):
        quick_loop("--arms", "random")
    [arm] = quick_loop("--arms", "random")["chains"]
    assert [found["run"] for found in arm["rounds"]] == [2, 3]


def test_chains_of_an_earlier_result_are_kept_when_asked_for(quick_loop: Any, tmp_path: Path) -> None:
    file = tmp_path / "loop.json"
    first = quick_loop("--arms", "real", "--json", str(file))
    FakeServer.kept = {}
    elsewhere = ("--json", str(file), "--work", str(tmp_path / "elsewhere"))
    result = quick_loop("--arms", "real,random", *elsewhere, "--keep")
    assert list(FakeServer.kept) == [tmp_path / "elsewhere" / "random-0" / "data"]
    assert result["chains"][0] == first["chains"][0] and result["pools"] == first["pools"]
    assert [chain["arm"] for chain in result["chains"]] == ["real", "random"]
    with pytest.raises(SystemExit, match="made with another temperature"):
        quick_loop("--arms", "real", *elsewhere, "--keep", "--temperature", "0.5")
    quick_loop("--arms", "real", *elsewhere)
    assert tmp_path / "elsewhere" / "real-0" / "data" in FakeServer.kept, "nothing is kept unasked"


def test_other_settings_over_the_same_folder_are_refused(quick_loop: Any) -> None:
    quick_loop("--arms", "random")
    with pytest.raises(SystemExit, match="other settings"):
        quick_loop("--arms", "random", "--temperature", "0.5")


def test_unknown_arms_and_falling_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown arms maybe"):
        loop.main(["--arms", "maybe", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="rising"):
        loop.main(["--rounds", "60,50", "--work", str(tmp_path)])


def test_training_overrides_reach_the_server_as_its_environment() -> None:
    settings = loop.LoopSettings(training=("ppo.updates=8", "rank=4"))
    environment = settings.environment(min_new_votes=50)
    assert environment["HUSTINGS_TRAINING__PPO__UPDATES"] == "8"
    assert environment["HUSTINGS_TRAINING__RANK"] == "4"
    assert environment["HUSTINGS_MIN_NEW_VOTES"] == "50" and environment["HUSTINGS_MAX_INTERVAL"] == "none"


def test_an_unfinished_last_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"a": 1}\n{"a": ')
    lines = Lines(file)
    lines.add({"a": 2})
    assert lines.rows == Lines(file).rows == [{"a": 1}, {"a": 2}]


def test_the_page_is_made_of_results_alone(quick_loop: Any, tmp_path: Path) -> None:
    result = json.loads(json.dumps(quick_loop()))
    other = {**result, "name": "serving", "rows": result["rows"][:1]}
    page = "# B\n<!-- begin loop -->\nold\n<!-- end loop -->\nkept\n<!-- begin serving -->\n<!-- end serving -->\n"
    made = report.fill_page(page, [result, other])
    assert "old" not in made and "\nkept\n" in made
    assert "| fewer words | 24 | **100.0%** (100.0% to 100.0%) | – | 100.0% |" in made
    assert report.fill_page(made, [result, other]) == made
    assert "2.00×" in made.partition("kept")[2]
    picture = report.loop_picture([result])
    assert picture.count("<circle") == 6 and "100.0%" in picture
    assert not re.search(r"nan|None", picture)


@pytest.mark.slow
def test_the_loop_runs_on_the_real_server_with_a_tiny_model(tiny_model: Path, tmp_path: Path) -> None:
    result = loop.main(
        [
            "--model", str(tiny_model), "--work", str(tmp_path), "--arms", "real,random", "--chat",
            "--rounds", "12,24", "--held-out", "12", "--max-tokens", "16",
            "--set", "ppo.updates=2", "--set", "ppo.rollouts=8", "--set", "gate.held_out_prompts=4",
        ]
    )  # fmt: skip
    real = result["chains"][0]
    assert real["failures"] == []
    assert real["votes"] == 24
    assert real["first_run_started"]["trigger"] == "votes" and real["first_run_started"]["early"] == 0
    assert all(restart["serving"] == restart["expected"] for restart in real["restarts"])
    assert all(found["status"] in ("succeeded", "rejected") for found in real["rounds"])
    assert real["stream"]["mixed"] == real["stream"]["failed"] == 0
    trained = [found for found in real["rounds"] if found["version"] is not None]
    assert all(len(found["way"]) == found["updates"] + 1 for found in trained)
