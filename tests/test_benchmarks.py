"""The loop benchmark's voters, statistics, phases and report; its phases against a stand-in for the server."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import client, loop, loop_result, report, swaps
from benchmarks.client import chunk_version
from benchmarks.crowd import Crowd
from benchmarks.fluency import Fluency, SavedAnswer, complaints, mean_nll, measure
from benchmarks.loop_state import Lines
from benchmarks.pictures import curves
from benchmarks.prompts import HELD_OUT, VOTED, held_out_prompts, voted_prompts
from benchmarks.server import OPERATOR_TOKEN, Memory, Server, family, resident_bytes, stop_leftover
from benchmarks.voters import PREFERENCES, as_vote, ballot, brevity, no_lists, question, second_person, winner, words
from tests.fake_api import FakeServer

ROOT = Path(__file__).parent.parent

# -- voters ------------------------------------------------------------------------------------------------------------


def test_an_answer_that_another_version_finished_is_mixed() -> None:
    own, other = [-1.0, -2.0, -3.0, -1.5, -0.5], [-2.0, -1.0, -1.0, -2.5, -1.5]
    assert not swaps.is_mixed(own, own, [other])
    assert not swaps.is_mixed([x + 0.01 for x in own], own, [other])
    assert swaps.is_mixed([*own[:3], *other[3:]], own, [other])
    assert swaps.is_mixed([*own[:4], *other[4:]], own, [other])
    assert not swaps.is_mixed(own, own, [[*other[:4], own[4]]])  # where both agree nothing can be told


def test_memory_that_grows_shows() -> None:
    flat = Crowd(memory=[100] * 15 + [200] * 25)
    assert flat.growth == 1
    leak = Crowd(memory=list(range(100, 200)))
    assert leak.growth == 194.5 / 154.5


def test_curves_are_drawn_with_a_point_for_each_figure() -> None:
    lines = {"ours": [(1, 400), (2, 800), (16, 1200)], "theirs & others": [(1, 150), (2, 160), (16, 300)]}
    picture = curves("tokens a second", "rows", lines)
    assert picture.count('r="4"') == 6
    assert "theirs &amp; others" in picture
    assert curves("one", "rows", {"ours": [(1, 5)]}).count('r="4"') == 1


def test_brevity_counts_words_not_signs() -> None:
    assert brevity("It’s fine — really!") == -3
    assert words("It’s FINE — really!") == ["it's", "fine", "really"]


def test_no_lists_counts_lines_that_begin_as_items() -> None:
    assert no_lists("Here:\n1. one\n2) two\n- three\n* four\n• five") == -5
    assert no_lists("In 1999 there were 2. A dash - here.\n3.5 is a number\n**bold** line") == 0


def test_second_person_is_the_share_of_words_that_address_the_reader() -> None:
    assert second_person("You're right and your dog likes you") == pytest.approx(3 / 7)
    assert second_person("The youth club") == 0.0
    assert second_person("…") == 0.0


def test_a_question_is_an_answer_that_ends_by_asking() -> None:
    assert question('Shall we begin?"\n') == 1
    assert question("Why? Because.") == 0


def test_near_equal_answers_are_a_tie() -> None:
    assert winner(PREFERENCES["brevity"], "one two", "one two three") is None
    assert winner(PREFERENCES["brevity"], "one two", "one two three four") == 0
    assert winner(PREFERENCES["question"], "No.", "Is it?") == 1


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_whoever_says_nothing_loses_whatever_the_preference(name: str) -> None:
    preference = PREFERENCES[name]
    assert winner(preference, "", "1. a long list of things that nobody asked for") == 1
    assert winner(preference, "Well, yes.", " \n") == 0
    assert winner(preference, "", "…") is None


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_swapping_the_sides_swaps_the_winner(name: str) -> None:
    texts = ["You win, don't you?", "1. Consequently\n2. Notwithstanding all considerations", "Well. Good for you."]
    for first in texts:
        for second in texts:
            forth, back = (winner(PREFERENCES[name], *pair) for pair in ((first, second), (second, first)))
            assert (forth, back) in ((0, 1), (1, 0), (None, None))


def test_arms_vote_for_against_and_by_a_coin() -> None:
    brief, long = "one", "one two three four"
    preference, rng = PREFERENCES["brevity"], random.Random(1)
    assert ballot(preference, brief, long, arm="real", noise=0.0, rng=rng) == 0
    assert ballot(preference, brief, long, arm="flipped", noise=0.0, rng=rng) == 1
    assert ballot(preference, long, long, arm="flipped", noise=0.0, rng=rng) is None
    coins = Counter(ballot(preference, brief, long, arm="random", noise=0.0, rng=rng) for _ in range(400))
    assert set(coins) == {0, 1} and 140 < coins[0] < 260


def test_noise_turns_a_share_of_decided_votes_around() -> None:
    rng = random.Random(2)
    votes = [ballot(PREFERENCES["brevity"], "a", "a b c", arm="real", noise=0.2, rng=rng) for _ in range(1000)]
    assert 150 < votes.count(1) < 250


def test_a_ballot_becomes_the_body_of_a_vote() -> None:
    assert as_vote(1, ["x", "y"]) == {"ranking": [["y"], ["x"]]}
    assert as_vote(None, ["x", "y"]) == {"verdict": "tie"}


# -- prompts -----------------------------------------------------------------------------------------------------------


def runs_of_words(prompts: list[str], length: int) -> set[tuple[str, ...]]:
    split = [words(prompt) for prompt in prompts]
    return {tuple(found[i : i + length]) for found in split for i in range(len(found) - length + 1)}


def test_there_are_enough_different_prompts() -> None:
    voted, held_out = voted_prompts(), held_out_prompts()
    assert len(voted) == len(set(voted)) >= 170
    assert len(held_out) == len(set(held_out)) >= 200
    assert not [prompt for prompt in voted + held_out if "{" in prompt or "|" in prompt or "  " in prompt]


def test_held_out_prompts_share_no_wording_with_voted_or_shipped_ones() -> None:
    file = ROOT / "serve" / "feedback" / "shipped" / "prompts.jsonl"
    shipped = [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
    held_out = runs_of_words(held_out_prompts(), 4)
    assert not held_out & runs_of_words(voted_prompts(), 4)
    assert not held_out & runs_of_words(shipped, 4)
    assert not runs_of_words(voted_prompts(), 4) & runs_of_words(shipped, 4)


def test_held_out_prompts_share_no_template_and_no_topic_with_voted_ones() -> None:
    openings = [{tuple(words(template)[:2]) for template, _ in families} for families in (VOTED, HELD_OUT)]
    assert not openings[0] & openings[1]
    topics = [
        {word for _, fillings in families for filling in fillings for word in words(filling) if len(word) > 3}
        for families in (VOTED, HELD_OUT)
    ]
    assert not topics[0] & topics[1]


def test_the_first_held_out_prompts_are_a_mixture_of_all_templates() -> None:
    first = held_out_prompts()[: len(HELD_OUT)]
    assert len({words(prompt)[0] + words(prompt)[1] for prompt in first}) > len(HELD_OUT) * 0.9


# -- fluency and statistics --------------------------------------------------------------------------------------------


def saved(*texts: str, version: int = 0, reason: str = "stop") -> list[SavedAnswer]:
    return [SavedAnswer(i, f"prompt {i}", version, 100 + i, text, reason) for i, text in enumerate(texts)]


def test_fluency_figures_by_hand() -> None:
    figures = measure([*saved("one two three", "One, two three!"), *saved("a", reason="length")], nll=1.5)
    assert figures == Fluency(distinct=2 / 3, median_words=3, nll=1.5, capped=1 / 3)


def test_text_that_is_no_longer_text_is_complained_about() -> None:
    base = Fluency(distinct=1.0, median_words=40, nll=1.0, capped=0.5)
    assert complaints(Fluency(0.9, 8, 1.5, 0.0), base) == []
    found = complaints(Fluency(0.5, 7, 1.6, 0.0), base)
    assert len(found) == 3 and "50%" in found[0] and "7 words" in found[1] and "0.60 nats" in found[2]
    assert complaints(Fluency(1.0, 40, math.nan, 0.0), base)


def test_likelihood_counts_the_answers_tokens_and_the_eos_only_where_it_ended_by_itself(tiny_model: Path) -> None:
    import torch

    from serve.policy.base import load_backbone, resolve_model
    from serve.policy.chat import render
    from serve.records import Message

    torch.set_num_threads(1)
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")
    prompt = render(backbone.tokenizer, [Message("user", "prompt 0")])

    def by_hand(ids: list[int]) -> float:
        total, sequence = 0.0, list(prompt)
        for token in ids:
            with torch.no_grad():
                total -= float(backbone.model(torch.tensor([sequence])).logits[0, -1].log_softmax(-1)[token])
            sequence.append(token)
        return total / len(ids)

    text = list(backbone.tokenizer.encode("abc", add_special_tokens=False))
    assert mean_nll(backbone, saved("abc", reason="length")) == pytest.approx(by_hand(text), abs=1e-4)
    assert mean_nll(backbone, saved("abc")) == pytest.approx(by_hand([*text, 2]), abs=1e-4)
    assert math.isnan(mean_nll(backbone, saved("", reason="length")))


def test_a_contest_counts_ties_beside_the_win_rate() -> None:
    ours = saved("a", "a b c d", "a b", "a", version=3)
    base = saved("a b c", "a", "a b", "a b c d")
    found = loop_result.contest(PREFERENCES["brevity"], ours, base)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.win_rate == pytest.approx(2 / 3)
    assert found.low == pytest.approx(0.2077, abs=1e-3) and found.high == pytest.approx(0.9385, abs=1e-3)


def test_a_contest_needs_the_same_prompts_and_seeds() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        loop_result.contest(PREFERENCES["brevity"], saved("a", "b"), saved("a"))


def test_verdicts_follow_the_issue() -> None:
    def contest(rate: float, low: float, high: float) -> loop_result.Contest:
        return loop_result.Contest(1, 1, 1, rate, low, high)

    good, thin, bad = contest(0.7, 0.6, 0.8), contest(0.7, 0.49, 0.85), contest(0.3, 0.2, 0.4)
    assert loop_result.verdict("real", "succeeded", good, [])[0]
    assert loop_result.verdict("real", "rejected", good, [])[0]
    assert not loop_result.verdict("real", "succeeded", thin, [])[0]
    assert not loop_result.verdict("real", "succeeded", good, ["the median answer has 2 words"])[0]
    assert not loop_result.verdict("real", "rejected", None, [])[0]
    assert loop_result.verdict("flipped", "succeeded", bad, [])[0]
    assert not loop_result.verdict("flipped", "succeeded", thin, [])[0]
    assert loop_result.verdict("random", "succeeded", thin, [])[0]
    assert not loop_result.verdict("random", "succeeded", good, [])[0]
    assert loop_result.verdict("random", "rejected", None, [])[0]


def test_the_stream_tells_one_swap_from_mixed_answers() -> None:
    rows: list[dict[str, Any]] = [
        {"versions": [1], "chunks": 5, "serving": 1},
        {"versions": [1], "chunks": 5, "serving": 2},
        {"error": "503"},
        {"versions": [1, 2], "chunks": 5, "serving": 2},
        {"versions": [2], "chunks": 5, "serving": 2},
    ]
    facts = loop_result.stream_facts(rows)
    assert facts["versions"] == [{"version": 1, "answers": 2}, {"version": 2, "answers": 1}]
    assert (facts["switches"], facts["failed"], facts["mixed"], facts["in_flight_at_swap"]) == (1, 1, 1, 1)


def test_a_chunk_names_its_version() -> None:
    assert chunk_version({"model": "hustings", "system_fingerprint": "hustings-v12"}) == 12
    assert chunk_version({"model": "hustings-v3"}) == 3
    assert chunk_version({"model": "hustings"}) is None


# -- the server's process ----------------------------------------------------------------------------------------------


def test_memory_sums_a_process_and_its_descendants() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        deadline = time.monotonic() + 10
        while len(family(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(family(parent.pid)) == 2
        assert os.getpid() not in family(parent.pid)
        assert sum(map(resident_bytes, family(parent.pid))) > resident_bytes(parent.pid) > 1_000_000
        parent.communicate(b"\n", timeout=10)
    assert resident_bytes(parent.pid) == 0


def test_memory_keeps_the_peak() -> None:
    memory = Memory()
    memory.watch(os.getpid())
    memory.stop()
    assert memory.peak >= memory.peak_server > 10_000_000


def test_a_leftover_server_is_stopped_and_a_stranger_with_its_pid_is_not(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, str(tmp_path / "feedback.db")]) as leftover, subprocess.Popen(sleep) as stranger:
        (tmp_path / "server.pid").write_text(str(stranger.pid))
        stop_leftover(tmp_path)
        assert stranger.poll() is None
        stranger.kill()
        (tmp_path / "server.pid").write_text(str(leftover.pid))
        started = time.monotonic()
        threading.Thread(target=leftover.wait, daemon=True).start()  # until then a dead child stays in /proc
        stop_leftover(tmp_path)
        assert leftover.wait(5) == -15 and time.monotonic() - started < 10
    assert not (tmp_path / "server.pid").exists()


STAND_IN = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr([sys.argv[1:], {k: v for k, v in os.environ.items() if "HUSTINGS" in k}]).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_the_server_gets_its_own_settings_and_its_end_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(STAND_IN)
    monkeypatch.setattr("benchmarks.server.ROOT", tmp_path)
    monkeypatch.setenv("HUSTINGS_PROMOTION", "manual")
    with Server(tmp_path / "data", model="m", environment={"HUSTINGS_MIN_NEW_VOTES": "7"}) as server:
        arguments, environment = ast.literal_eval(httpx.get(f"{server.url}/health").text)
        assert arguments[:4] == ["--db", str(tmp_path / "data" / "feedback.db"), "--model", "m"]
        assert environment == {"HUSTINGS_MIN_NEW_VOTES": "7", "HUSTINGS_OPERATOR_TOKEN": OPERATOR_TOKEN}
        pid = int((tmp_path / "data" / "server.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    with (
        pytest.raises(RuntimeError, match=r"by itself with code 3: (.|\n)*last words"),
        Server(tmp_path / "data") as server,
    ):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{server.url}/die")
        time.sleep(0.5)


def test_a_server_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text("raise SystemExit('no model')")
    monkeypatch.setattr("benchmarks.server.ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="code 1: no model"), Server(tmp_path / "data"):
        pass


# -- the phases --------------------------------------------------------------------------------------------------------


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
        state.finish("nll", {str(version): 1.0 for version in [0, *state.done["answers"]]})

    monkeypatch.setattr(loop, "add_likelihoods", likelihoods)

    def play(*arguments: str) -> dict[str, Any]:
        small = ["--votes", "24", "--first-run", "8", "--held-out", "20", "--voters", "3", "--work", str(tmp_path)]
        return loop.main([*small, *arguments])

    return play


def test_the_real_arm_goes_from_votes_to_a_swap_and_a_win_rate(
    quick_loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quick_loop("--arms", "real", "--json", str(tmp_path / "out" / "loop.json"))
    [arm] = result["arms"]
    started = arm["first_run_started"]
    assert (started["trigger"], started["early"], started["votes"]) == ("votes", 0, 8)
    assert [arm["votes"], arm["failures"]] == [24, []]
    assert arm["restart"] == {"expected": 1, "serving": 1}
    assert arm["later_run"]["trigger"] == "operator" and arm["later_run"]["serving"] == 2
    assert arm["stream"]["failed"] == arm["stream"]["mixed"] == 0
    assert arm["stream"]["versions"][-1]["version"] == 2
    first, later = arm["evaluations"]
    assert (first["version"], later["version"]) == (1, 2)
    assert later["wins"] == 20 and later["win_rate"] == 1.0 and arm["holds"]
    data = FakeServer.kept[tmp_path / "real" / "data"]
    assert len(data.voters) == 3 and sum(data.voters.values()) == 24
    assert all(c["body"]["max_tokens"] == 64 for c in data.comparisons.values())
    assert json.loads((tmp_path / "out" / "loop.json").read_text()) == result
    assert "win rate 100.0%" in capsys.readouterr().out


def test_votes_follow_the_hidden_preference(quick_loop: Any, tmp_path: Path) -> None:
    quick_loop("--arms", "real,flipped")
    for arm, better in (("real", min), ("flipped", max)):
        data = FakeServer.kept[tmp_path / arm / "data"]
        decided = [c for c in data.comparisons.values() if "ranking" in c["vote"]]
        assert decided
        for comparison in decided:
            lengths = {c["id"]: len(words(c["text"])) for c in comparison["candidates"]}
            assert comparison["vote"]["ranking"][0][0] == better(lengths, key=lambda c: lengths[c])


def test_controls_only_have_the_triggered_run(quick_loop: Any) -> None:
    result = quick_loop("--arms", "flipped,random")
    for arm in result["arms"]:
        assert arm["first_run"] is None and arm["stream"] is None and arm["later_run"]["id"] == 1
        assert len(arm["evaluations"]) == 1


def test_after_a_refused_run_people_vote_on_and_trigger_another(
    quick_loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeServer.outcomes = ["succeeded", "rejected"]
    [arm] = quick_loop("--arms", "real")["arms"]
    assert [run["id"] for run in arm["refused_runs"]] == [2] and "run 2 rejected" in capsys.readouterr().out
    assert arm["later_run"]["id"] == 3 and arm["later_run"]["status"] == "succeeded"
    assert arm["votes"] == 24 + loop.VOTES_AFTER_REFUSAL == len(FakeServer.kept[tmp_path / "real" / "data"].votes)
    assert arm["stream"]["switches"] == 1 and arm["stream"]["failed"] == 0


def test_the_last_refusal_stands(quick_loop: Any) -> None:
    FakeServer.outcomes = ["succeeded", *["rejected"] * loop.LATER_RUNS]
    [arm] = quick_loop("--arms", "real")["arms"]
    assert len(arm["refused_runs"]) == loop.LATER_RUNS - 1 and arm["later_run"]["status"] == "rejected"


def test_a_version_the_gate_never_saw_leaves_no_win_rate(quick_loop: Any) -> None:
    FakeServer.outcomes = ["rejected"]
    [arm] = quick_loop("--arms", "random")["arms"]
    assert arm["evaluations"] == [] and arm["holds"] and arm["why"] == "the gate rejected it"


def test_failed_requests_are_counted_and_tried_again(quick_loop: Any) -> None:
    FakeServer.faults = {"POST /api/comparisons": 2, "GET /api/runs/1": 1}
    [arm] = quick_loop("--arms", "random")["arms"]
    assert len(arm["failures"]) == 3 and all("503" in failure for failure in arm["failures"])
    assert arm["votes"] == 24


def test_a_killed_arm_goes_on_where_it_was(quick_loop: Any, tmp_path: Path) -> None:
    FakeServer.faults = {"POST /v1/chat/completions": 3 * 8 + 5}
    with pytest.raises(client.RequestFailed):
        quick_loop("--arms", "random")
    data = FakeServer.kept[tmp_path / "random" / "data"]
    comparisons, runs = len(data.comparisons), len(data.runs)
    assert (comparisons, runs) == (24, 1)
    FakeServer.faults = {}
    [arm] = quick_loop("--arms", "random")["arms"]
    assert (len(data.comparisons), len(data.runs)) == (comparisons, runs)
    assert arm["votes"] == 24 and arm["evaluations"][0]["wins"] + arm["evaluations"][0]["ties"] == 20
    assert len(arm["failures"]) > 0
    before = dict(data.voters)
    quick_loop("--arms", "random")
    assert data.voters == before


def test_a_vote_cast_but_not_noted_is_cast_under_the_same_key(quick_loop: Any, tmp_path: Path) -> None:
    quick_loop("--arms", "random")
    file = tmp_path / "random" / "comparisons.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    forgotten = next(i for i, line in enumerate(lines) if line["number"] == 5 and line["state"] == "voted")
    kept = [json.dumps(line) for i, line in enumerate(lines) if i != forgotten]
    file.write_text("\n".join(kept) + "\n" + '{"number": 3, "sta')
    state = json.loads((tmp_path / "random" / "state.json").read_text())
    del state["done"]["answers"]
    (tmp_path / "random" / "state.json").write_text(json.dumps(state))
    [arm] = quick_loop("--arms", "random")["arms"]
    assert arm["votes"] == 24 and arm["failures"] == []
    assert len(FakeServer.kept[tmp_path / "random" / "data"].votes) == 24


def test_a_failed_run_is_said_and_the_next_start_triggers_another(quick_loop: Any) -> None:
    FakeServer.outcomes = ["failed"]
    with pytest.raises(loop.RunBroke, match="run 1 failed"):
        quick_loop("--arms", "random")
    [arm] = quick_loop("--arms", "random")["arms"]
    assert arm["later_run"]["id"] == 2


def test_other_settings_over_the_same_folder_are_refused(quick_loop: Any) -> None:
    quick_loop("--arms", "random")
    with pytest.raises(SystemExit, match="other settings"):
        quick_loop("--arms", "random", "--temperature", "0.5")


def test_unknown_arms_and_too_many_first_votes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown arms maybe"):
        loop.main(["--arms", "maybe", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="half"):
        loop.main(["--votes", "60", "--first-run", "50", "--work", str(tmp_path)])


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


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_page_is_made_of_results_alone(quick_loop: Any, tmp_path: Path) -> None:
    result = json.loads(json.dumps(quick_loop()))
    other = {**result, "name": "serving", "settings": {}, "rows": result["rows"][:1]}
    page = "# B\n<!-- begin loop -->\nold\n<!-- end loop -->\nkept\n<!-- begin serving -->\n<!-- end serving -->\n"
    made = report.fill_page(page, [result, other])
    assert "old" not in made and "\nkept\n" in made
    assert "| fewer words | 24 as preferred | 2, succeeded | **100.0%** (83.9% to 100.0%) | 20 / 0 / 0 |" in made
    assert report.fill_page(made, [result, other]) == made
    assert "2.00×" in made.partition("kept")[2]
    picture = report.loop_picture([result])
    assert picture.count("<circle") == 4 and "100.0%" in picture
    assert not re.search(r"nan|None", picture)


def test_a_marker_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        report.fill_page("<!-- begin loop -->\n", [])


def test_the_committed_page_says_what_the_committed_results_say() -> None:
    for path, text in report.made(ROOT / "docs", report.load_results(report.RESULTS)).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python -m benchmarks.report"


# -- the whole, for real -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loop_runs_on_the_real_server_with_a_tiny_model(tiny_model: Path, tmp_path: Path) -> None:
    result = loop.main(
        [
            "--model", str(tiny_model), "--work", str(tmp_path), "--arms", "real,random",
            "--votes", "24", "--first-run", "10", "--held-out", "12", "--max-tokens", "16",
            "--set", "ppo.updates=2", "--set", "ppo.rollouts=8", "--set", "gate.held_out_prompts=4",
        ]
    )  # fmt: skip
    real = result["arms"][0]
    assert real["failures"] == []
    assert real["votes"] == 24 + loop.VOTES_AFTER_REFUSAL * len(real["refused_runs"])
    assert real["first_run_started"]["trigger"] == "votes" and real["first_run_started"]["early"] == 0
    assert real["restart"]["serving"] == real["restart"]["expected"]
    assert real["later_run"]["status"] in ("succeeded", "rejected")
    assert real["stream"]["mixed"] == real["stream"]["failed"] == 0
