"""Datasets in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve.errors import Conflict, InvalidInput
from serve.feedback.ballots import ballots
from serve.feedback.entries import Ballot, ImportCounts
from serve.feedback.exchange import export, import_lines
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.records import FORMATS, STYLES, Message
from tests.scenes import Clock, add_versions, assistant, compare, prefer, ranking, say, user


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(DataFolder(tmp_path / "one" / "feedback.db"), clock=Clock()) as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.open(DataFolder(tmp_path / "two" / "feedback.db"), clock=Clock()) as store:
        yield store


def _rows(store: Store, format: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export(store, format)]


def _lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _ballots(store: Store) -> list[Ballot]:
    with store.reading() as db:
        return list(ballots(db))


def _gist(ballot: Ballot) -> tuple[tuple[Message, ...], list[list[str]] | None, str | None]:
    texts = [answer.text for answer in ballot.answers]
    groups = None if ballot.groups is None else [[texts[i] for i in group] for group in ballot.groups]
    return ballot.messages, groups, ballot.verdict


TALK = [Message("system", "Be kind."), user("Hi?"), assistant("Hello."), user("And now?\n\nTell me.")]


def _voted(store: Store) -> None:
    """One of each: a pair over a long prompt, a ranking of three, a tie, both bad, a skip, a demonstration."""
    prefer(store, compare(store, "anna", TALK, texts=("Less.", "More, with “quotes”.")), 1)
    three = compare(store, "ben", texts=("a", "b", "c"))
    store.add_vote(three.id, "ben", ranking(three, [1], [2], [0]))
    say(store, compare(store, "anna", texts=("p", "q")), "tie")
    say(store, compare(store, "ben", "Bad?", texts=("r", "s")), "both_bad")
    say(store, compare(store, "anna", texts=("t", "u")), "skip")
    store.add_demonstration("anna", TALK, "Now we go.")


# Out


def test_trl_is_every_pair_a_ranking_implies(store: Store) -> None:
    _voted(store)
    rows = _rows(store, "trl")
    assert rows[0] == {
        "prompt": [{"role": m.role, "content": m.content} for m in TALK],
        "chosen": [{"role": "assistant", "content": "More, with “quotes”."}],
        "rejected": [{"role": "assistant", "content": "Less."}],
    }
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows[1:]] == [
        ("b", "c"),
        ("b", "a"),
        ("c", "a"),
    ]


def test_hh_is_written_as_anthropic_writes_it(store: Store) -> None:
    talk = [user("Hi?"), assistant("Hello."), user("And now?")]
    prefer(store, compare(store, prompt=talk, texts=("Yes.", "No.")), 0)
    assert _rows(store, "hh") == [
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant: No.",
        }
    ]


def test_kto_labels_each_answer_once_and_both_bad_is_twice_bad(store: Store) -> None:
    _voted(store)
    labels = [(r["completion"][0]["content"], r["label"]) for r in _rows(store, "kto")]
    assert labels == [
        ("More, with “quotes”.", True),
        ("Less.", False),
        ("b", True),
        ("c", False),
        ("a", False),
        ("r", False),
        ("s", False),
    ]


def test_sft_is_the_demonstrations(store: Store) -> None:
    _voted(store)
    (row,) = _rows(store, "sft")
    assert [m["content"] for m in row["messages"]] == [*(m.content for m in TALK), "Now we go."]


def test_arena_names_versions_winners_and_judges_by_pseudonym(store: Store) -> None:
    add_versions(store, 1)
    prefer(store, compare(store, "anna", versions=(1, 0)), 1)
    say(store, compare(store, "ben"), "tie")
    say(store, compare(store, "ben", evidence=False), "both_bad")
    say(store, compare(store, "ben"), "skip")
    rows = _rows(store, "arena")
    assert [(r["model_a"], r["model_b"], r["winner"], r["judge"], r["anony"]) for r in rows] == [
        ("hustings-v1", "hustings-v0", "model_b", "voter-1", True),
        ("hustings-v0", "hustings-v0", "tie", "voter-2", True),
        ("hustings-v0", "hustings-v0", "tie (bothbad)", "voter-2", False),
    ]
    assert [m["content"] for m in rows[0]["conversation_a"]] == ["Why is the sea blue?", "Light."]
    assert rows[0]["turn"] == 1


def test_withdrawn_votes_are_not_exported(store: Store) -> None:
    store.withdraw_vote(prefer(store, compare(store), 0).id, "anna")
    for format in FORMATS:
        assert _rows(store, format) == []


def test_an_export_is_of_one_moment_and_may_be_taken_by_other_threads(store: Store) -> None:
    for _ in range(3):
        prefer(store, compare(store), 0)
    lines = export(store, "trl")
    taken = [next(lines)]
    prefer(store, compare(store), 0)
    with ThreadPoolExecutor(1) as pool:
        taken += pool.submit(list, lines).result()
    assert len(taken) == 3


def test_an_unknown_format_is_refused_at_once(store: Store) -> None:
    with pytest.raises(InvalidInput, match="trl, hh, kto, sft, arena"):
        export(store, "csv")
    with pytest.raises(InvalidInput, match="trl, hh, kto, sft, arena"):
        import_lines(store, "{}", "csv")


# Round trips


@pytest.mark.parametrize(
    ("format", "style"),
    [*((format, STYLES[0]) for format in ("trl", "hh", "kto", "arena")), ("trl", "plain"), ("kto", "plain")],
)
def test_a_pair_survives_the_way_out_and_in(store: Store, other: Store, format: str, style: str) -> None:
    prefer(store, compare(store, "anna", TALK, texts=("Less.", " More, with\n\n“quotes”. ")), 1)
    prefer(store, compare(store, "ben", texts=("Light.", "Water.")), 0)
    counts = import_lines(other, "".join(export(store, format, style)), format)
    assert counts == ImportCounts(prompts=2, answers=4, votes=2)
    assert [_gist(b) for b in _ballots(other)] == [_gist(b) for b in _ballots(store)]
    assert all(b.imported and not b.evidence for b in _ballots(other))
    assert other.standing_votes() == 2


def test_ties_and_both_bad_survive_in_arena_and_both_bad_in_kto(store: Store, other: Store) -> None:
    say(store, compare(store, texts=("p", "q")), "tie")
    say(store, compare(store, prompt="Bad?", texts=("r", "s")), "both_bad")
    import_lines(other, export(store, "arena"), "arena")
    assert [_gist(b) for b in _ballots(other)] == [_gist(b) for b in _ballots(store)]
    import_lines(other, export(store, "kto"), "kto")
    assert _gist(_ballots(other)[-1]) == ((user("Bad?"),), None, "both_bad")


@pytest.mark.parametrize("style", STYLES)
def test_demonstrations_survive_the_way_out_and_in(store: Store, other: Store, style: str) -> None:
    store.add_demonstration("anna", TALK, "Now we go.")
    assert import_lines(other, "".join(export(store, "sft", style)), "sft") == ImportCounts(demonstrations=1)
    assert _rows(other, "sft") == _rows(store, "sft")


def test_a_plain_prompt_that_only_quotes_hhs_marks_stays_as_it_is(store: Store) -> None:
    prompts = ["Go on:\n\nAssistant:", "\n\nHuman: Who says this?", "\n\nHuman: Hi\n\nAssistant: Hello.\n\nAssistant:"]
    import_lines(store, _lines(*({"prompt": prompt, "completion": "So."} for prompt in prompts)), "sft")
    assert [row["messages"][0]["content"] for row in _rows(store, "sft")] == prompts


# In


def test_the_shipped_demonstrations_can_be_imported(store: Store) -> None:
    shipped = Path(__file__).parent.parent / "serve" / "feedback" / "shipped" / "demonstrations.jsonl"
    counts = import_lines(store, shipped.read_bytes(), "sft")
    assert counts.demonstrations == store.demonstrations_count() >= 5
    again = import_lines(store, shipped.read_bytes().splitlines()[1:], "sft")
    assert again == ImportCounts(skipped=counts.demonstrations - 1)
    assert store.demonstrations_count() == counts.demonstrations


def test_a_file_comes_in_once_for_each_way_to_read_it(store: Store) -> None:
    row = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}
    assert import_lines(store, _lines(row), "trl").votes == 1
    with pytest.raises(Conflict, match="imported already, on 2026-07-04 at 12:00 UTC; import only what is new"):
        import_lines(store, [json.dumps(row) + "\r\n", "\n"], "trl")
    assert store.standing_votes() == 1
    assert import_lines(store, _lines(row), "trl", "demonstrations").demonstrations == 1
    assert import_lines(store, _lines(row, row), "trl").votes == 2, "that is another file"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "completion": "Hello."},
        {
            "prompt": [{"role": "user", "content": "Hi?"}],
            "completion": [{"role": "assistant", "content": "Hello."}],
        },
    ],
    ids=["plain", "conversational"],
)
def test_demonstrations_may_be_prompts_and_completions(store: Store, row: dict[str, Any]) -> None:
    assert import_lines(store, _lines(row), "sft") == ImportCounts(demonstrations=1)
    ((messages),) = [row["messages"] for row in _rows(store, "sft")]
    assert [m["content"] for m in messages] == ["Hi?", "Hello."]


def test_equal_demonstrations_are_stored_once_and_counted(store: Store) -> None:
    def line(said: str) -> str:
        return json.dumps({"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": said}]})

    assert import_lines(store, [line("a"), line("b"), line("a")], "sft") == ImportCounts(demonstrations=2, skipped=1)
    store.add_demonstration("anna", (user("Hi?"),), "c")  # a person's own is no dataset's, and stays beside one
    assert import_lines(store, line("c"), "sft") == ImportCounts(demonstrations=1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."},
        {
            "prompt": [{"role": "user", "content": "Hi?"}],
            "chosen": [{"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "assistant", "content": "What."}],
        },
        {
            "chosen": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "What."}],
        },
        {
            "prompt": "Hi?",
            "chosen": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "What."}],
        },
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}],
            "rejected": [{"role": "assistant", "content": "What."}],
        },
    ],
    ids=["plain", "conversational", "without a prompt", "sides whole", "in parts"],
)
def test_trl_comes_in_all_its_shapes(store: Store, row: dict[str, Any]) -> None:
    assert import_lines(store, _lines(row), "trl") == ImportCounts(prompts=1, answers=2, votes=1)
    assert _gist(_ballots(store)[0]) == ((user("Hi?"),), [["Hello."], ["What."]], None)


def test_an_hh_answer_may_hold_a_speakers_label(store: Store) -> None:
    """In four of 1,802 real lines the assistant goes on as if it were asked again."""
    row = {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Because.\n\nAssistant: And so on.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    }
    assert import_lines(store, _lines(row), "hh").votes == 1
    assert _gist(_ballots(store)[0]) == ((user("Why?"),), [["Because.\n\nAssistant: And so on."], ["No."]], None)


def test_a_line_of_the_real_hh_is_understood(store: Store) -> None:
    row = {
        "chosen": "\n\nHuman: What's up?\n\nAssistant: Not much.\n\nHuman: Why?\n\nAssistant: It is Sunday.",
        "rejected": "\n\nHuman: What's up?\n\nAssistant: Not much.\n\nHuman: Why?\n\nAssistant:",
    }
    import_lines(store, _lines(row), "hh")
    assert _gist(_ballots(store)[0]) == (
        (user("What's up?"), assistant("Not much."), user("Why?")),
        [["It is Sunday."], [""]],
        None,
    )


def test_equal_prompts_are_stored_once(store: Store) -> None:
    row = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}
    counts = import_lines(store, _lines(row, {**row, "rejected": "Who."}), "trl")
    assert counts == ImportCounts(prompts=1, answers=4, votes=2)


def test_kto_pairs_good_and_bad_and_keeps_the_rest_without_a_vote(store: Store) -> None:
    def row(prompt: str, completion: str, label: bool) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion, "label": label}

    counts = import_lines(
        store,
        _lines(
            row("One?", "good", True),
            row("Two?", "fine", True),
            row("One?", "bad", False),
            row("One?", "worse", False),
            row("Three?", "no", False),
            row("Three?", "nope", False),
        ),
        "kto",
    )
    assert counts == ImportCounts(prompts=3, answers=6, votes=2)
    assert [_gist(b)[1:] for b in _ballots(store)] == [([["good"], ["bad"]], None), (None, "both_bad")]


def test_arena_judges_stay_apart_and_stay_pseudonyms(store: Store) -> None:
    def battle(judge: str, winner: str) -> dict[str, Any]:
        sides = {side: [{"role": "user", "content": "Hi?"}] for side in ("conversation_a", "conversation_b")}
        sides["conversation_a"] = [*sides["conversation_a"], {"role": "assistant", "content": "A"}]
        sides["conversation_b"] = [*sides["conversation_b"], {"role": "assistant", "content": "B"}]
        return {"model_a": "x", "model_b": "y", "winner": winner, "judge": judge, **sides}

    import_lines(store, _lines(battle("j1", "model_a"), battle("j2", "model_b"), battle("j1", "tie")), "arena")
    found = _ballots(store)
    assert [_gist(b)[1] for b in found] == [[["A"], ["B"]], [["B"], ["A"]], [["A", "B"]]]
    assert found[0].voter_id == found[2].voter_id != found[1].voter_id


def test_rows_that_say_nothing_of_one_prompt_are_left_out_and_counted(store: Store) -> None:
    equal = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Hello."}
    apart = {"chosen": "\n\nHuman: One?\n\nAssistant: a", "rejected": "\n\nHuman: Two?\n\nAssistant: b"}
    good = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}
    assert import_lines(store, _lines(equal, good), "trl") == ImportCounts(1, 2, 1, skipped=1)
    assert import_lines(store, _lines(apart), "hh") == ImportCounts(skipped=1)


def test_blank_lines_a_byte_order_mark_and_line_separators_inside_strings_do_no_harm(store: Store) -> None:
    row = {"prompt": "Hi\u2028there?", "chosen": "Hello.", "rejected": "What.\x85"}
    text = "\ufeff\n" + json.dumps(row, ensure_ascii=False) + "\r\n\n"
    assert import_lines(store, text.encode(), "trl").votes == 1
    assert _ballots(store)[0].messages == (user("Hi\u2028there?"),)


GOOD: dict[str, dict[str, Any]] = {
    "trl": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."},
    "hh": {"chosen": "\n\nHuman: Hi?\n\nAssistant: a", "rejected": "\n\nHuman: Hi?\n\nAssistant: b"},
    "kto": {"prompt": "Hi?", "completion": "Hello.", "label": True},
    "sft": {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]},
    "arena": {
        "winner": "model_a",
        "conversation_a": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "a"}],
        "conversation_b": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "b"}],
    },
}


@pytest.mark.parametrize(
    ("format", "bad"),
    [
        ("trl", "{"),
        ("trl", "[" * 100_000),
        ("trl", "[1]"),
        ("trl", '"text"'),
        ("trl", json.dumps({"prompt": "Hi?", "chosen": "Hello."})),
        ("trl", json.dumps({"chosen": "Hello.", "rejected": "What."})),
        ("trl", json.dumps({"prompt": " ", "chosen": "Hello.", "rejected": "What."})),
        ("trl", json.dumps({"prompt": 7, "chosen": "Hello.", "rejected": "What."})),
        ("trl", json.dumps({"prompt": "\ud800", "chosen": "Hello.", "rejected": "What."})),
        ("trl", json.dumps({"prompt": "Hi?", "chosen": [], "rejected": "What."})),
        ("trl", json.dumps({"prompt": "Hi?", "chosen": [{"role": "robot", "content": "a"}], "rejected": "b"})),
        ("trl", json.dumps({"prompt": "Hi?", "chosen": [{"role": "assistant", "content": ["a"]}], "rejected": "b"})),
        ("hh", json.dumps({"chosen": "Hello.", "rejected": "What."})),
        ("hh", json.dumps({"chosen": "\n\nHuman: Hi?", "rejected": "\n\nHuman: Hi?"})),
        ("hh", json.dumps({"chosen": 1, "rejected": 2})),
        ("kto", json.dumps({"prompt": "Hi?", "completion": "Hello.", "label": 1})),
        ("kto", json.dumps({"prompt": "Hi?", "completion": "Hello."})),
        ("sft", json.dumps({"messages": []})),
        ("sft", json.dumps({"messages": [{"role": "user", "content": "Hi?"}]})),
        ("sft", json.dumps({"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": " "}]})),
        ("sft", json.dumps({"prompt": "Hi?"})),
        ("sft", json.dumps({"completion": "Hello."})),
        ("sft", json.dumps({"prompt": "Hi?", "completion": " "})),
        ("arena", json.dumps({**GOOD["arena"], "winner": "me"})),
        ("arena", json.dumps({**GOOD["arena"], "winner": ["model_a"]})),
        ("arena", json.dumps({**GOOD["arena"], "judge": 5})),
        ("arena", json.dumps({"winner": "tie"})),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_half_imported(store: Store, format: str, bad: str) -> None:
    text = f"{json.dumps(GOOD[format])}\n\n{bad}\n{json.dumps(GOOD[format])}\n"
    with pytest.raises(InvalidInput, match=r"^line 3: ") as refused:
        import_lines(store, text, format)
    assert refused.value.line == 3
    assert _ballots(store) == []
    with store.reading() as db:
        for table in ("voters", "messages", "demonstrations"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0


def test_a_number_too_long_to_read_is_named_by_line(store: Store) -> None:
    with pytest.raises(InvalidInput, match=r"^line 1: not JSON"):
        import_lines(store, '{"strength": ' + "9" * 5000 + "}", "trl")


def test_broken_utf8_is_named_by_line(store: Store) -> None:
    with pytest.raises(InvalidInput, match=r"^line 2: not UTF-8"):
        import_lines(store, json.dumps(GOOD["trl"]).encode() + b"\n\xff\xfe\n", "trl")


def test_an_empty_file_is_refused(store: Store) -> None:
    for empty in ("", "\n \n"):
        with pytest.raises(InvalidInput, match="nothing to import"):
            import_lines(store, empty, "trl")


def test_imported_prompts_never_show_imported_answers_as_ours(store: Store) -> None:
    import_lines(store, _lines(GOOD["trl"]), "trl")
    assert store.next_in_queue("anna") is None


LONGER = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And?"},
]
CHOSEN, REJECTED = ([*LONGER, {"role": "assistant", "content": said}] for said in ("Good day.", "What."))

HH = {
    side: f"\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: {said}"
    for side, said in (("chosen", "Good day."), ("rejected", "What."))
}


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("trl", {"chosen": CHOSEN, "rejected": REJECTED}),
        ("hh", HH),
        ("kto", {"prompt": LONGER, "completion": CHOSEN[-1:], "label": True}),
        ("sft", {"messages": CHOSEN}),
        ("arena", {"conversation_a": REJECTED, "conversation_b": CHOSEN, "winner": "model_b"}),
    ],
)
def test_answers_that_won_can_come_in_as_demonstrations(store: Store, format: str, row: dict[str, Any]) -> None:
    if format == "kto":
        bad = {"prompt": LONGER, "completion": REJECTED[-1:], "label": False}
        lines = _lines(row, bad)
    else:
        lines = _lines(row)
    assert import_lines(store, lines, format, "demonstrations") == ImportCounts(demonstrations=1)
    assert _rows(store, "sft") == [{"messages": CHOSEN}]
    assert _ballots(store) == []
    assert import_lines(store, lines, format, "turns") == ImportCounts(demonstrations=1, skipped=1)
    assert _rows(store, "sft") == [{"messages": CHOSEN}, {"messages": CHOSEN[:2]}]


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("hh", {side: f"\n\nHuman: \n\nAssistant: What?\n\nHuman: Hi\n\nAssistant: {side}." for side in HH}),
        ("sft", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello!"},
                              {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "chosen."}]}),
        ("sft", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "},
                              {"role": "assistant", "content": "Again"}, {"role": "user", "content": "Hi"},
                              {"role": "assistant", "content": "chosen."}]}),
    ],
)  # fmt: skip
def test_an_earlier_turn_that_answers_nothing_is_no_demonstration(
    store: Store, format: str, row: dict[str, Any]
) -> None:
    """Nor is a file refused for it: its last answer stands behind a real question."""
    assert import_lines(store, _lines(row), format, "turns") == ImportCounts(demonstrations=1)
    assert _rows(store, "sft")[0]["messages"][-1]["content"] == "chosen."


def test_ties_show_nothing_and_are_counted(store: Store) -> None:
    tie = {"conversation_a": CHOSEN, "conversation_b": REJECTED, "winner": "tie (bothbad)"}
    assert import_lines(store, _lines(tie), "arena", "demonstrations") == ImportCounts(skipped=1)


def test_an_unknown_way_to_read_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="as is one of whole, demonstrations, turns"):
        import_lines(store, _lines({"messages": CHOSEN}), "sft", "answers")
