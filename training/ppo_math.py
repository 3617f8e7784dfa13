"""The arithmetic of PPO: pure functions on tensors; no model, no config, no state.

Shapes: B answers, T answer tokens, padded on the right. `mask` is True where a token was really sampled.
Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), GAE (Schulman et al. 2015, arXiv 1506.02438), KL in the reward
and the adaptive controller (Ziegler et al. 2019, arXiv 1909.08593), value from the reward model and the whole recipe
(Ouyang et al. 2022, arXiv 2203.02155).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios beyond ±20 mean a broken pair of models; exp() of more overflows."""


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, T) over the True places of mask (B, T): a scalar."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x − mean) / std over the mask; zero elsewhere. x, mask (B, T) → (B, T). Huang et al. 2024, arXiv 2403.17031."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def kl_rewards(scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of each token: −β (log π − log π_ref), and the answer's score on its last token.

    scores (B,), logprobs and reference_logprobs (B, T), mask (B, T) → (B, T). Ziegler et al. 2019, eq. 2.
    """
    log_ratio = (logprobs - reference_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    rewards = -beta * log_ratio * mask
    last = last_index(mask)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def last_index(mask: Tensor) -> Tensor:
    """Index of the last True place of each row: (B, T) → (B,)."""
    return mask.long().sum(-1).clamp(min=1) - 1


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns. All (B, T); the value after the last token is 0.

    A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t (Schulman et al. 2015, eq. 16); returns are A + V.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages, advantages + values


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), to be minimised, and the share of tokens it clips.

    All inputs (B, T) → two scalars. Without a clip it is the plain policy gradient with importance ratios.
    """
    bound = math.inf if clip is None else clip
    ratio = torch.exp((logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - bound, 1 + bound)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).to(loss.dtype), mask)


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """min(π_trainer / π_sampler, cap) of each token, without a gradient; 1 outside the mask. All (B, T).

    Where sampler and trainer round differently, answers come from a policy a little beside the one that learns;
    weighting corrects that, and the cap bounds its variance (truncated importance sampling, Ionides 2008).
    """
    ratio = torch.exp((logprobs - sampled_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    return torch.where(mask, ratio.clamp(max=cap), 1.0).detach()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None
) -> Tensor:
    """½ max((V − R)², (V clipped around the old value − R)²), averaged over the mask. All (B, T) → a scalar.

    Huang et al. 2024, arXiv 2403.17031.
    """
    bound = math.inf if clip is None else clip
    near = old_values + (values - old_values).clamp(-bound, bound)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask)


def answer_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The k1 estimate of KL(π ‖ π_ref) of each answer, in nats, summed over its tokens: (B, T) → (B,).

    Schulman 2020, "Approximating KL divergence".
    """
    return ((logprobs - reference_logprobs) * mask).sum(-1)


def adapt_beta(beta: float, kl: float, *, target: float, episodes: int, horizon: int) -> float:
    """The adaptive KL coefficient: β ← β (1 + e · min(1, n / horizon)), e the relative error clipped to −0.2 … 1.

    kl and target in nats an answer; `episodes` since the last update. Ziegler et al. 2019, section 2.2, who clip both
    ways at 0.2: over some twenty updates β could not catch up with a KL that has taken off. The minimum keeps β
    positive when the horizon is shorter than an update.
    """
    error = max(-0.2, min(1.0, kl / target - 1.0))
    return beta * (1.0 + error * min(1.0, episodes / horizon))


def ramp(done: float, over: float) -> float:
    """The share of its final height that something has reached which rises evenly over the share `over` of a run."""
    return 1.0 if done >= over else done / over


def explained(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """How much of the returns' variance the values foresaw: 1 all of it, 0 nothing, below 0 worse. All (B, T)."""
    wanted, missed = returns[mask], (returns - values)[mask]
    spread = float(wanted.var(correction=0))
    return 1 - float(missed.var(correction=0)) / spread if spread > 0 else 0.0
