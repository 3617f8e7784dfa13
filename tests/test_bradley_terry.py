"""The exact Bradley–Terry head."""

from __future__ import annotations

import math

import pytest
import torch

from training.bradley_terry import fit_head, known_directions, log_loss


def test_it_finds_the_minimum_that_gradient_descent_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    t = (torch.rand(40, generator=generator) < torch.sigmoid(d[:, 0] * 2)).double()
    c, m = torch.rand(40, generator=generator).double() + 0.5, torch.rand(40, generator=generator).double()
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(d @ w - m, t, reduction="none")
        loss = (c * losses).sum() + 0.15 * (w**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(fit_head(d, t, c, margins=m, ridge=0.3), w.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 3.0, 10.0])
def test_wide_margins_on_votes_that_agree_are_met(margin: float) -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(150, 40, generator=generator, dtype=torch.float64)
    d[:, 0] += 1.0
    d[:30] *= -1.0  # one vote in five is a mistake
    t, c, m = torch.ones(150).double(), torch.ones(150).double(), torch.full((150,), margin)
    w = fit_head(d, t, c, margins=m, ridge=1.0).requires_grad_()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(d @ w - m.double(), t, reduction="none")
    ((c * losses).sum() + 0.5 * (w**2).sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-4, "at the minimum the gradient vanishes"


def test_with_more_features_than_pairs_it_finds_the_same_minimum() -> None:
    """Features that are always zero change nothing, but make it solve for pairs instead of features."""
    generator = torch.Generator().manual_seed(2)
    d = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    t = (torch.rand(30, generator=generator) < 0.6).double()
    c, m = torch.rand(30, generator=generator).double() + 0.5, torch.rand(30, generator=generator).double()
    wide = torch.cat([d, torch.zeros(30, 40, dtype=torch.float64)], 1)
    torch.testing.assert_close(fit_head(wide, t, c, margins=m, ridge=0.3)[:5], fit_head(d, t, c, margins=m, ridge=0.3))


def test_ties_alone_teach_nothing() -> None:
    d = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    assert fit_head(d, torch.full((10,), 0.5), torch.ones(10), margins=torch.zeros(10), ridge=0.1).abs().max() < 1e-6


def test_separable_votes_stay_finite() -> None:
    head = fit_head(torch.eye(4), torch.ones(4), torch.ones(4), margins=torch.zeros(4), ridge=1e-3)
    assert torch.isfinite(head).all()
    assert (head > 0).all()


def test_log_loss_of_a_coin_is_log_two() -> None:
    assert log_loss(torch.zeros(3), torch.tensor([1.0, 0.0, 0.5]), torch.ones(3)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("votes", [5, 40])
def test_what_votes_leave_open_is_the_inverse_of_the_curvature(votes: int) -> None:
    """Fewer votes than features, and more."""
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(votes, 8, generator=generator, dtype=torch.float64)
    t, c, m = torch.ones(votes), torch.rand(votes, generator=generator) + 0.5, torch.rand(votes, generator=generator)
    head = fit_head(d, t, c, margins=m, ridge=0.5)
    p = torch.sigmoid(d @ head - m)
    covariance = torch.linalg.inv(0.5 * torch.eye(8) + d.T @ (d * (c.double() * p * (1 - p))[:, None]))
    known = known_directions(d, c, head, margins=m, ridge=0.5).double()
    torch.testing.assert_close((torch.eye(8) - known.T @ known) / 0.5, covariance, atol=1e-5, rtol=1e-4)
