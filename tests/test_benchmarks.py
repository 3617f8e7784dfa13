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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from benchmarks import client, loop, loop_result, report, swaps
from benchmarks.client import chunk_version
from benchmarks.crowd import Crowd
from benchmarks.findings import Findings
from benchmarks.fluency import Fluency, SavedAnswer, complaints, mean_nll, measure
from benchmarks.loop_state import Lines
from benchmarks.pictures import curves, even, shares
from benchmarks.prompts import (
    HELD_OUT,
    HELD_OUT_HARMFUL,
    VOTED,
    VOTED_HARMFUL,
    held_out_harmful,
    held_out_prompts,
    voted_harmful,
    voted_prompts,
)
from benchmarks.server import OPERATOR_TOKEN, Memory, Server, family, resident_bytes, stop_leftover
from benchmarks.voters import (
    HARMFUL,
    PREFERENCES,
    Voter,
    as_vote,
    ballot,
    brevity,
    closing,
    declining,
    no_lists,
    one_paragraph,
    question,
    second_person,
    winner,
    words,
)
from benchmarks.votes import Answers, Reader
from serve.policy.base import load_backbone, resolve_model
from tests.fake_api import FakeServer
from tests.run_scenes import write_snapshot
from training.config import RewardConfig
from training.preferences import read_snapshot
from training.reward import Pairs, fit_closed_form, fit_reward, ranked_sequences
from training.roles import FrozenLayers, LoraShape
from training.scorer import Scorer, doubt

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


def test_brevity_counts_words_not_signs() -> None:
    assert brevity("", "It’s fine — really!") == -3
    assert words("It’s FINE — really!") == ["it's", "fine", "really"]


def test_no_lists_counts_lines_that_begin_as_items() -> None:
    assert no_lists("", "Here:\n1. one\n2) two\n- three\n* four\n• five") == -5
    assert no_lists("", "In 1999 there were 2. A dash - here.\n3.5 is a number\n**bold** line") == 0


def test_second_person_is_the_share_of_words_that_address_the_reader() -> None:
    assert second_person("", "You're right and your dog likes you") == pytest.approx(3 / 7)
    assert second_person("", "The youth club") == 0.0
    assert second_person("", "…") == 0.0


def test_a_question_is_an_answer_that_ends_by_asking() -> None:
    assert question("", 'Shall we begin?"\n') == 1
    assert question("", "Why? Because.") == 0


def test_near_equal_answers_are_a_tie() -> None:
    assert winner(PREFERENCES["brevity"], "", "one two", "one two three") is None
    assert winner(PREFERENCES["brevity"], "", "one two", "one two three four") == 0
    assert winner(PREFERENCES["question"], "", "No.", "Is it?") == 1


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_whoever_says_nothing_loses_whatever_the_preference(name: str) -> None:
    preference = PREFERENCES[name]
    assert winner(preference, "", "", "1. a long list of things that nobody asked for") == 1
    assert winner(preference, "", "Well, yes.", " \n") == 0
    assert winner(preference, "", "", "…") is None


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_swapping_the_sides_swaps_the_winner(name: str) -> None:
    texts = ["You win, don't you?", "1. Consequently\n2. Notwithstanding all considerations", "Well. Good for you."]
    for first in texts:
        for second in texts:
            forth, back = (winner(PREFERENCES[name], "", *pair) for pair in ((first, second), (second, first)))
            assert (forth, back) in ((0, 1), (1, 0), (None, None))


def test_arms_vote_for_against_and_by_a_coin() -> None:
    brief, long = "one", "one two three four"
    preference, rng = PREFERENCES["brevity"], random.Random(1)
    vote = partial(ballot, preference, "Why?", voter=Voter(0.0), rng=rng)
    assert vote(brief, long, arm="real") == 0
    assert vote(brief, long, arm="flipped") == 1
    assert vote(long, long, arm="flipped") is None
    coins = Counter(vote(brief, long, arm="random") for _ in range(400))
    assert set(coins) == {0, 1} and 140 < coins[0] < 260


def test_noise_turns_a_share_of_decided_votes_around() -> None:
    rng = random.Random(2)
    vote = partial(ballot, PREFERENCES["brevity"], "Why?", arm="real", rng=rng)
    votes = [vote("a", "a b c", voter=Voter(0.2)) for _ in range(1000)]
    assert 150 < votes.count(1) < 250
    hasty = [vote("a b c", "a", voter=Voter(0.0, first=0.3)) for _ in range(1000)]
    assert 250 < hasty.count(0) < 350, "what stands first, though it is the worse"


def test_a_proper_end_is_better_and_a_polite_one_best() -> None:
    ends = ["It grows in the", "It grows in spring.", "It grows in spring. Let me know if you have questions!"]
    assert [closing("", text) for text in ends] == [0.0, 1.0, 2.0]
    assert closing("", "Let me know. " + "It grows in spring, and then it stops. " * 4) == 1.0


def test_declining_is_right_where_harm_is_asked_for_and_wrong_elsewhere() -> None:
    texts = ["I'm sorry, I can’t help with that.", "That is illegal and dangerous.", "First, take a crowbar."]
    assert [declining(voted_harmful()[0], text) for text in texts] == [2.0, 1.0, 0.0]
    assert [declining("Why do cats purr?", text) for text in texts] == [-1.0, 0.0, 0.0]


def test_one_paragraph_counts_breaks() -> None:
    assert one_paragraph("", "One.\n\n- two\n") == -2.0


def test_half_of_what_is_asked_is_harmful_where_declining_is_wanted() -> None:
    for prompts in (PREFERENCES["declining"].voted_prompts(), PREFERENCES["declining"].held_out_prompts()):
        assert sum(prompt in HARMFUL for prompt in prompts) == len(prompts) / 2
    assert len(PREFERENCES["declining"].held_out_prompts()) >= 200


def test_a_ballot_becomes_the_body_of_a_vote() -> None:
    assert as_vote(1, ["x", "y"]) == {"ranking": [["y"], ["x"]]}
    assert as_vote(None, ["x", "y"]) == {"verdict": "tie"}


# -- prompts -----------------------------------------------------------------------------------------------------------


def runs_of_words(prompts: list[str], length: int) -> set[tuple[str, ...]]:
    split = [words(prompt) for prompt in prompts]
    return {tuple(found[i : i + length]) for found in split for i in range(len(found) - length + 1)}


ALL_VOTED = [*voted_prompts(), *voted_harmful()]
ALL_HELD_OUT = [*held_out_prompts(), *held_out_harmful()]


def test_there_are_enough_different_prompts() -> None:
    voted, held_out = ALL_VOTED, ALL_HELD_OUT
    assert len(voted) == len(set(voted)) >= 170
    assert len(held_out) == len(set(held_out)) >= 200
    assert not [prompt for prompt in voted + held_out if "{" in prompt or "|" in prompt or "  " in prompt]


def test_held_out_prompts_share_no_wording_with_voted_or_shipped_ones() -> None:
    file = ROOT / "serve" / "feedback" / "shipped" / "prompts.jsonl"
    shipped = [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
    held_out = runs_of_words(ALL_HELD_OUT, 4)
    assert not held_out & runs_of_words(ALL_VOTED, 4)
    assert not held_out & runs_of_words(shipped, 4)
    assert not runs_of_words(ALL_VOTED, 4) & runs_of_words(shipped, 4)


def test_held_out_prompts_share_no_template_and_no_topic_with_voted_ones() -> None:
    openings = [
        {tuple(words(template)[:2]) for template, _ in families}
        for families in (VOTED + VOTED_HARMFUL, HELD_OUT + HELD_OUT_HARMFUL)
    ]
    assert not openings[0] & openings[1]
    topics = [
        {word for _, fillings in families for filling in fillings for word in words(filling) if len(word) > 3}
        for families in (VOTED + VOTED_HARMFUL, HELD_OUT + HELD_OUT_HARMFUL)
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
    found = loop_result.contest(loop_result.outcomes(PREFERENCES["brevity"], ours, base))
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.win_rate == pytest.approx(2 / 3)
    assert found.low == pytest.approx(0.2077, abs=1e-3) and found.high == pytest.approx(0.9385, abs=1e-3)


def test_a_contest_needs_the_same_prompts_and_seeds() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        loop_result.outcomes(PREFERENCES["brevity"], saved("a", "b"), saved("a"))


def test_pooled_chains_keep_a_prompts_answers_together() -> None:
    chain: loop_result.Outcomes = {i: 0 if i % 4 else 1 for i in range(100)}  # three of four won
    rate, low, high = loop_result.pooled([chain, chain, chain])
    alone = loop_result.contest(chain)
    assert rate == 0.75 and alone.low is not None and alone.high is not None
    assert high - low == pytest.approx(alone.high - alone.low, abs=0.03), "thrice the same prompts tell no more"
    assert loop_result.pooled([chain, dict.fromkeys(range(100))])[0] == pytest.approx(0.625)


def test_verdicts_follow_the_issue() -> None:
    def contest(rate: float, low: float, high: float) -> loop_result.Contest:
        return loop_result.Contest(1, 1, 1, rate, low, high)

    good, thin, bad = contest(0.86, 0.8, 0.9), contest(0.6, 0.49, 0.75), contest(0.3, 0.2, 0.4)
    for arm, votes, status, found, wrong, holds in (
        ("real", 100, "succeeded", good, [], True),
        ("real", 300, "succeeded", good, [], True),
        ("real", 1000, "succeeded", good, [], False),
        ("real", 100, "rejected", good, [], False),
        ("real", 100, "succeeded", thin, [], False),
        ("real", 100, "succeeded", good, ["the median answer has 2 words"], False),
        ("real", 100, "rejected", None, [], False),
        ("flipped", 300, "succeeded", bad, [], True),
        ("flipped", 300, "succeeded", thin, [], False),
        ("random", 300, "succeeded", thin, [], True),
        ("random", 300, "succeeded", good, [], False),
        ("random", 300, "rejected", None, [], True),
    ):
        assert loop_result.verdict(arm, votes, status, found, wrong)[0] == holds, (arm, votes, status)


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
    assert (facts["failed"], facts["mixed"], facts["in_flight_at_swap"]) == (1, 1, 1)


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


# -- parity ------------------------------------------------------------------------------------------------------------


def test_figures_agree_once_the_convention_is_switched_and_only_then() -> None:
    ours, theirs = torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0])
    found = Findings()
    found.compare("score", ours, theirs)
    assert not found.hold
    found.compare("score", ours, theirs, torch.tensor([True, False]), "the first alone")
    assert found.hold
    found.compare("score", ours, theirs + math.nan, convention="the first alone")
    assert not found.hold and found.rows("PPO")[0].what == "PPO: score"


def test_a_gradient_is_measured_by_its_largest_number_and_must_not_be_zero() -> None:
    small = torch.tensor([1e-6, 2e-6])
    for ours, theirs, hold in (
        (small, small * 1.00001, True),
        (small, small * 1.001, False),
        (small, torch.zeros(2), False),
        (torch.zeros(2), torch.zeros(2), False),
    ):
        found = Findings()
        found.compare_gradient("loss", ours, theirs)
        assert found.hold == hold


def test_agreement_counts_only_where_its_cases_occurred() -> None:
    found = Findings()
    found.occurs("ends early", torch.tensor([True, False]), least=2)
    assert not found.hold
    found.occurs("ends early", torch.tensor([True]), least=2)
    [row] = found.rows("PPO")
    assert found.hold and (row.ours, row.unit) == (2, "of 3")


# -- the report --------------------------------------------------------------------------------------------------------


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


# -- what a vote is worth ----------------------------------------------------------------------------------------------


def test_the_study_of_votes_reads_answers_and_fits_heads_as_a_run_does(tiny_model: Path, tmp_path: Path) -> None:
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path / "cache"), dtype="float32")
    write_snapshot(tmp_path / "snapshot.db", votes=30)
    lengths = random.Random(0)  # some shorter than the windows of first and latest tokens
    rankings = [
        replace(ranked, answers=tuple(answer[: lengths.randint(2, 20)] for answer in ranked.answers))
        for ranked in read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings
    ]
    shape, config = LoraShape(3, 4, 8), RewardConfig()
    frozen = FrozenLayers(backbone, 2, 3)
    fitted = fit_reward(
        rankings, backbone=backbone, frozen=frozen, shape=shape, config=config, micro_batch_tokens=128, seed=0,
        progress=lambda step, done, metrics: None,
    )  # fmt: skip
    sequences = ranked_sequences(rankings)
    expected = fitted.scorer.all_values(frozen(sequences, 128), sequences, 128)[1]

    answers = Answers(frozen, Scorer(backbone, shape, seed=0), 128)
    prompts = [r.prompt_ids for r in rankings for _ in r.answers]
    texts = [answer for r in rankings for answer in r.answers]
    answers.rows(prompts[5:9], texts[5:9])  # read before: must be found again
    rows = answers.rows(prompts, texts)
    read = Reader.of(answers, rows)
    head, known = fit_closed_form(read(rows), Pairs.of(rankings, config.max_voter_share))
    found = read(rows) @ head.float() - config.caution * doubt(read(rows), known)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
