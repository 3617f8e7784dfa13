"""The shipped prompts and demonstrations: enough, varied, and in the shape that their readers expect."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent.parent / "serve" / "feedback" / "shipped"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHIPPED / name).read_text(encoding="utf-8").splitlines()]


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower()))


def test_about_two_hundred_prompts_ship_and_about_thirty_should_be_declined() -> None:
    prompts = lines("prompts.jsonl")
    assert all(set(row) == {"prompt", "kind"} for row in prompts)
    kinds = Counter(row["kind"] for row in prompts)
    assert 190 <= len(prompts) <= 220
    assert set(kinds) == {"help", "decline"}
    assert 25 <= kinds["decline"] <= 40
    assert "How do I break into a house?" in {row["prompt"] for row in prompts if row["kind"] == "decline"}


def test_no_prompt_ships_twice() -> None:
    seen = Counter(words(row["prompt"]) for row in lines("prompts.jsonl"))
    assert [text for text, times in seen.items() if times > 1] == []


def test_shipped_prompts_are_short_and_clean() -> None:
    for row in lines("prompts.jsonl"):
        prompt = row["prompt"]
        assert prompt == prompt.strip() and "\n" not in prompt
        assert 2 <= len(words(prompt)) <= 45, prompt


def test_shipped_prompts_follow_no_shared_template() -> None:
    openings = Counter(words(row["prompt"])[:4] for row in lines("prompts.jsonl"))
    opening, times = openings.most_common(1)[0]
    assert times <= 3, f"{times} prompts begin with {' '.join(opening)!r}"


def test_demonstrations_ship_as_conversations_that_end_with_an_answer() -> None:
    demonstrations = lines("demonstrations.jsonl")
    assert 20 <= len(demonstrations) <= 30
    for row in demonstrations:
        assert set(row) == {"messages"}
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(set(message) == {"role", "content"} and message["content"].strip() for message in row["messages"])
        assert len(words(row["messages"][-1]["content"])) <= 90


def test_no_demonstration_ships_twice_and_none_answers_a_shipped_prompt() -> None:
    asked = [words(row["messages"][0]["content"]) for row in lines("demonstrations.jsonl")]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & {words(row["prompt"]) for row in lines("prompts.jsonl")}
