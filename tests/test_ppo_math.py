"""PPO's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training import ppo_math as m

FULL = torch.tensor([[True, True, True]])
SHORT = torch.tensor([[True, True, False]])


def test_masked_mean_ignores_what_the_mask_leaves_out() -> None:
    assert m.masked_mean(torch.tensor([[1.0, 3.0, 100.0]]), SHORT) == 2.0


def test_whitening_gives_mean_zero_and_deviation_one_inside_the_mask_and_zero_outside() -> None:
    white = m.whiten(torch.tensor([[1.0, 3.0, 100.0]]), SHORT)
    torch.testing.assert_close(white, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_the_score_lands_on_the_last_real_token_and_each_token_pays_its_kl() -> None:
    rewards = m.kl_rewards(
        torch.tensor([2.0]), torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]]), SHORT, beta=0.1
    )
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1 + 2.0, 0.0]]))


def test_a_broken_log_ratio_is_clamped() -> None:
    rewards = m.kl_rewards(torch.zeros(1), torch.tensor([[0.0]]), torch.tensor([[-1e9]]), torch.ones(1, 1).bool(), 1.0)
    assert rewards.item() == -20.0


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = m.gae(rewards, values, FULL, gamma=1.0, lam=0.5)
    # δ = (0.1, 0.1, 0.3); A₂ = 0.3, A₁ = 0.1 + 0.5·0.3 = 0.25, A₀ = 0.1 + 0.5·0.25 = 0.225
    torch.testing.assert_close(advantages, torch.tensor([[0.225, 0.25, 0.3]]))
    torch.testing.assert_close(returns, torch.tensor([[0.725, 0.85, 1.0]]))


def test_two_answers_of_different_lengths_by_hand() -> None:
    mask = torch.cat([FULL, SHORT])
    scores = torch.tensor([1.0, 2.0])
    rewards = m.kl_rewards(scores, torch.full((2, 3), -1.0), torch.full((2, 3), -1.5), mask, beta=0.2)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.1, 0.9], [-0.1, 1.9, 0.0]]))
    values = torch.tensor([[0.5, 0.4, 0.3], [1.0, 1.0, 7.0]])
    advantages, returns = m.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    # δ: −0.1 + 0.9·0.4 − 0.5 = −0.24, −0.1 + 0.9·0.3 − 0.4 = −0.23, 0.9 − 0.3 = 0.6, each later one times γλ = 0.45
    # and −0.1 + 0.9·1 − 1 = −0.2, 1.9 − 1 = 0.9
    expected = torch.tensor([[-0.24 + 0.45 * 0.04, -0.23 + 0.45 * 0.6, 0.6], [-0.2 + 0.45 * 0.9, 0.9, 0.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns[mask], (expected + values)[mask])


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    rewards, values = torch.tensor([[0.1, -0.2, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    _, returns = m.gae(rewards, values, FULL, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[0.9, 0.8, 1.0]]))


def test_gae_takes_nothing_from_behind_an_answers_end() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 50.0]]), torch.tensor([[0.0, 0.0, 50.0]])
    advantages, _ = m.gae(rewards, values, SHORT, gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, 1.0, 0.0]]))


def test_the_policy_loss_stops_rewarding_a_ratio_beyond_the_clip() -> None:
    old = torch.zeros(1, 2)
    new = torch.tensor([[math.log(1.5), math.log(0.5)]])
    advantages = torch.tensor([[1.0, 1.0]])
    loss, clipped = m.clipped_policy_loss(new, old, advantages, torch.ones(1, 2).bool(), clip=0.2)
    # token 0: −min(1.5, 1.2) = −1.2, clipped; token 1: −min(0.5, 0.8) = −0.5, not
    assert loss.item() == pytest.approx((-1.2 - 0.5) / 2)
    assert clipped.item() == 0.5


def test_the_policy_loss_of_a_bad_token_is_not_clipped_when_it_grew_likelier() -> None:
    loss, clipped = m.clipped_policy_loss(
        torch.tensor([[math.log(1.5)]]), torch.zeros(1, 1), torch.tensor([[-1.0]]), torch.ones(1, 1).bool(), clip=0.2
    )
    assert loss.item() == pytest.approx(1.5)
    assert clipped.item() == 0.0


def test_without_a_clip_both_losses_are_the_plain_ones() -> None:
    policy_loss, clipped = m.clipped_policy_loss(
        torch.tensor([[math.log(1.5)]]), torch.zeros(1, 1), torch.tensor([[1.0]]), torch.ones(1, 1).bool(), clip=None
    )
    assert policy_loss.item() == pytest.approx(-1.5)
    assert clipped.item() == 0.0
    value_loss = m.clipped_value_loss(
        torch.tensor([[3.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1).bool(), clip=None
    )
    assert value_loss.item() == pytest.approx(0.5 * 2**2)


def test_importance_weights_are_ratios_up_to_the_cap_and_carry_no_gradient() -> None:
    logprobs = torch.tensor([[math.log(0.5), math.log(0.9), -9.0]], requires_grad=True)
    sampled = torch.tensor([[math.log(0.4), math.log(0.1), 0.0]])
    weights = m.importance_weights(logprobs, sampled, SHORT, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.25, 2.0, 1.0]]))
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("done", "over", "expected"), [(0.1, 0.5, 0.2), (0.5, 0.5, 1.0), (0.9, 0.5, 1.0), (0.1, 0.0, 1.0)]
)
def test_a_ramp_rises_evenly_and_stays(done: float, over: float, expected: float) -> None:
    assert m.ramp(done, over) == pytest.approx(expected)


def test_values_explain_all_none_or_less_than_none_of_the_returns() -> None:
    returns = torch.tensor([[1.0, 3.0, 100.0]])
    assert m.explained(torch.tensor([[1.5, 3.5, 0.0]]), returns, SHORT) == 1.0  # off by a constant
    assert m.explained(torch.zeros(1, 3), returns, SHORT) == 0.0
    assert m.explained(torch.tensor([[3.0, 1.0, 0.0]]), returns, SHORT) == pytest.approx(-3.0)


def test_the_last_index_is_that_of_the_last_real_token() -> None:
    assert m.last_index(torch.tensor([[True, True, False], [True, False, False]])).tolist() == [1, 0]


def test_the_value_loss_takes_the_worse_of_clipped_and_plain() -> None:
    loss = m.clipped_value_loss(
        torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1).bool(), clip=0.2
    )
    assert loss.item() == pytest.approx(0.5 * 0.8**2)


def test_answer_kl_sums_over_an_answers_tokens() -> None:
    kl = m.answer_kl(torch.tensor([[-1.0, -1.0, 9.0]]), torch.tensor([[-2.0, -1.5, 0.0]]), SHORT)
    assert kl.item() == pytest.approx(1.5)


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.05), (60.0, 0.05 * 1.5), (9.0, 0.05 * 1.25), (0.0, 0.05 * 0.9)])
def test_beta_follows_the_relative_error_clipped_to_a_fifth_below_and_to_one_above(kl: float, expected: float) -> None:
    assert m.adapt_beta(0.05, kl, target=6.0, episodes=50, horizon=100) == pytest.approx(expected)


def test_beta_stays_positive_when_the_horizon_is_shorter_than_an_update() -> None:
    # 1 − 0.2 · min(1, 100 / 10); unclamped it would be 1 − 2
    assert m.adapt_beta(0.05, 0.0, target=6.0, episodes=100, horizon=10) == pytest.approx(0.05 * 0.8)
