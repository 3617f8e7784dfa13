"""Supervised fine-tuning: packing isolates texts, and the answer becomes likelier."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from serve.errors import InvalidInput
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.records import Message
from training.config import SFTConfig
from training.preferences import Shown
from training.roles import LoraShape, Policy
from training.sft import fine_tune, hold_out, pack
from training.split import Section, open_section

SHOWN = [Shown((Message("user", f"say {word}"),), f"{word} {word}!") for word in ("red", "blue", "green", "grey")]


@pytest.fixture(scope="module")
def backbone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(resolve_model(str(tiny_model), tmp_path_factory.mktemp("cache")), dtype="float32")


def loss(policy: Policy, trunk: Section, shown: list[Shown], length: int) -> float:
    rows = pack(policy, shown, length)
    total = 0.0
    with torch.no_grad():
        for row in rows:
            states = trunk(row.input_ids, row.attention_mask, row.positions)
            mean = policy.next_token_loss(states, row.attention_mask, row.positions, row.targets)
            total += float(mean) * row.loss_tokens
    return total / sum(row.loss_tokens for row in rows)


def test_packing_changes_no_loss(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    trunk = open_section(backbone.model, 0, 2)
    assert len(pack(policy, SHOWN, 400)) < len(pack(policy, SHOWN, 80)) == len(SHOWN)
    assert loss(policy, trunk, SHOWN, 400) == pytest.approx(loss(policy, trunk, SHOWN, 80), abs=1e-4)


def test_only_answer_tokens_and_the_eos_carry_loss(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    (row,) = pack(policy, SHOWN[:1], 200)
    targets = row.targets[row.targets >= 0].tolist()
    assert targets[-1] == 2
    assert backbone.tokenizer.decode(targets[:-1]) == "red red!"


def test_a_long_demonstration_loses_the_front_of_its_prompt_not_its_answer(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    (row,) = pack(policy, [Shown((Message("user", "x" * 500),), "fine")], 64)
    assert row.input_ids.shape == (1, 64)
    assert row.loss_tokens == 5


def test_a_long_answer_loses_its_end_before_its_question_is_gone(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    (row,) = pack(policy, [Shown((Message("user", "what is it?" * 9),), "y" * 500)], 64)
    assert row.input_ids.shape == (1, 64)
    assert row.loss_tokens == 48, "a quarter is the prompt's"
    (whole,) = pack(policy, [Shown((Message("user", "x"),), "y" * 500)], 200)
    assert "x" in backbone.tokenizer.decode(whole.input_ids[0].tolist()), "a short prompt is kept whole"


@pytest.mark.parametrize("copies", [1, 3])
def test_weights_that_blew_up_are_told_and_kept_by_nobody(backbone: Backbone, copies: int) -> None:
    """Three times: then some are held out, and their loss is no number."""
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    trunk = open_section(backbone.model, 0, 2)
    with torch.no_grad():
        policy.parameters()[0].fill_(math.nan)
    config = SFTConfig(epochs=1, sequence_length=200, tokens_per_batch=200)
    with pytest.raises(InvalidInput, match=r"halve sft\.learning_rate"):
        fine_tune(policy, trunk, SHOWN * copies, config=config, seed=0, progress=lambda step, done, metrics: None)


def test_demonstrations_become_likelier(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    trunk = open_section(backbone.model, 0, 2)
    before = loss(policy, trunk, SHOWN, 200)
    config = SFTConfig(epochs=8, learning_rate=5e-3, sequence_length=200, tokens_per_batch=200)
    report = fine_tune(policy, trunk, SHOWN, config=config, seed=0, progress=lambda step, done, metrics: None)
    assert loss(policy, trunk, SHOWN, 200) < before - 0.3
    assert report["demonstrations"] == 4


def test_all_turns_are_read_and_the_last_answer_alone_carries_loss(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    talk = (Message("user", "say red"), Message("assistant", "red!"), Message("user", "and blue"))
    (row,) = pack(policy, [Shown(talk, "blue!")], 400)
    assert backbone.tokenizer.decode(row.targets[row.targets >= 0].tolist()[:-1]) == "blue!"
    read = backbone.tokenizer.decode(row.input_ids[0].tolist())
    assert read.index("say red") < read.index("red!") < read.index("and blue")


def test_it_stops_where_the_held_out_loss_stops_falling_and_keeps_the_best(backbone: Backbone) -> None:
    policy = Policy(backbone, LoraShape(2, 4, 8), seed=0)
    trunk = open_section(backbone.model, 0, 2)
    rng = random.Random(0)
    noise = ["".join(rng.choice("abcdefghijklmnop") for _ in range(12)) for _ in range(20)]
    shown = [Shown((Message("user", f"say {i}"),), text) for i, text in enumerate(noise)]
    config = SFTConfig(epochs=30, learning_rate=0.05, sequence_length=200, tokens_per_batch=200, holdout=0.5)
    report = fine_tune(policy, trunk, shown, config=config, seed=0, progress=lambda step, done, metrics: None)
    *before, last = report["held_out_losses"]
    assert len(before) < 30 and last >= min(before)
    _, held = hold_out(shown, 0.5, seed=0)
    assert len(held) == 10
    assert loss(policy, trunk, held, 200) == pytest.approx(min(before), abs=1e-4)


def test_a_conversation_is_held_out_whole() -> None:
    shown = []
    for talk in range(20):
        first = (Message("user", f"say {talk}"),)
        shown += [Shown(first, "one"), Shown((*first, Message("assistant", "one"), Message("user", "more")), "two")]
    learned, held = hold_out(shown, 0.25, seed=0)
    assert len(held) == 10 and len(learned) == 30
    assert not {d.messages[0] for d in learned} & {d.messages[0] for d in held}
    often = [Shown((Message("user", "Hi"),), f"answer {i}") for i in range(60)]
    assert len(hold_out([*often, *shown], 0.1, seed=0)[1]) == 10, "not all that began alike"
    assert hold_out(shown[:2] * 10, 0.25, seed=0) == (shown[:2] * 10, [])  # one conversation: none to spare
