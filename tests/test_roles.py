"""Four roles on one backbone: each equals the whole model it stands for, and none disturbs another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from serve.policy.base import Backbone, load_backbone, resolve_model
from training.roles import FrozenLayers, LoraShape, Policy
from training.scorer import Scorer
from training.sequences import Sequences

SHAPE = LoraShape(2, 4, 8)
NEAR = LoraShape(3, 4, 8)
SOME = Sequences.of([(40, 41, 42), (50, 51)], [(60, 61, 62, 63), (70, 2)])


@pytest.fixture(scope="module")
def backbone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(resolve_model(str(tiny_model), tmp_path_factory.mktemp("cache")), dtype="float32")


def disturb(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logprobs(policy: Policy, backbone: Backbone) -> torch.Tensor:
    states = FrozenLayers(backbone, 2, 3)(SOME, 1024)
    return policy.all_logprobs(states.boundary, SOME, 0.8, 1024)


def whole_model_logprobs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits = model(SOME.input_ids, attention_mask=SOME.attention_mask).logits
    expected = torch.zeros(SOME.answer_mask.shape)
    for row in range(len(SOME)):
        start = int(SOME.prompt_lengths[row])
        for step in range(int(SOME.answer_mask[row].sum())):
            distribution = torch.log_softmax(logits[row, start - 1 + step] / 0.8, -1)
            expected[row, step] = distribution[SOME.answer_ids[row, step]]
    return expected


def test_a_fresh_policy_is_the_base(backbone: Backbone) -> None:
    found = logprobs(Policy(backbone, SHAPE, seed=0), backbone)
    torch.testing.assert_close(found, whole_model_logprobs(backbone.model), atol=1e-5, rtol=1e-5)


def test_a_saved_policy_is_the_same_in_peft(backbone: Backbone, tmp_path: Path) -> None:
    policy = Policy(backbone, SHAPE, seed=0)
    disturb(policy)
    policy.save(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(backbone.folder.path)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logprobs(policy, backbone), whole_model_logprobs(theirs), atol=1e-5, rtol=1e-5)
    again = Policy(backbone, SHAPE, seed=9, start=tmp_path / "adapter")
    torch.testing.assert_close(logprobs(again, backbone), logprobs(policy, backbone))


def test_one_roles_lora_never_reaches_another_nor_the_backbone(backbone: Backbone) -> None:
    before = whole_model_logprobs(backbone.model)
    other = Policy(backbone, SHAPE, seed=1)
    disturb(Policy(backbone, SHAPE, seed=0))
    torch.testing.assert_close(logprobs(other, backbone), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(whole_model_logprobs(backbone.model), before)


def test_only_lora_and_heads_are_trained(backbone: Backbone) -> None:
    names = [n for n, p in Policy(backbone, SHAPE, seed=0).model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n and (".2." in n or ".3." in n) for n in names)
    scorer = [n for n, p in Scorer(backbone, NEAR, seed=0).named_parameters() if p.requires_grad]
    assert {n for n in scorer if "lora_" not in n} == {"weight", "bias"}


def test_micro_batches_change_no_result(backbone: Backbone) -> None:
    policy = Policy(backbone, SHAPE, seed=0)
    disturb(policy)
    states = FrozenLayers(backbone, 2, 3)(SOME, 1)
    torch.testing.assert_close(policy.all_logprobs(states.boundary, SOME, 0.8, 1), logprobs(policy, backbone))


def test_the_score_is_the_value_after_the_last_token(backbone: Backbone) -> None:
    scorer = Scorer(backbone, NEAR, seed=0)
    torch.nn.init.normal_(scorer.weight, generator=torch.Generator().manual_seed(0))
    states = FrozenLayers(backbone, 2, 3)(SOME, 1024)
    values, scores = scorer.all_values(states, SOME, 1024)
    longer = Sequences.of([(40, 41, 42), (50, 51)], [(60, 61, 62, 63, 9), (70, 2, 9)])
    further = scorer.all_values(FrozenLayers(backbone, 2, 3)(longer, 1024), longer, 1024)[0]
    torch.testing.assert_close(scores, torch.stack([further[0, 4], further[1, 2]]), atol=1e-4, rtol=1e-4)
    assert values[1, 2:].abs().max() == 0


def test_rescaling_maps_every_scalar_and_a_twin_takes_it_along(backbone: Backbone) -> None:
    scorer = Scorer(backbone, NEAR, seed=0)
    torch.nn.init.normal_(scorer.weight, generator=torch.Generator().manual_seed(0))
    states = FrozenLayers(backbone, 2, 3)(SOME, 1024)
    before = scorer.all_values(states, SOME, 1024)[1]
    scorer.rescale(3.0, 2.0)
    after = scorer.twin(backbone).all_values(states, SOME, 1024)[1]
    torch.testing.assert_close(after, (before - 3) / 2, atol=1e-4, rtol=1e-4)
